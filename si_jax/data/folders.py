"""Folders of images: `train/<class>/*.png` and `test/<class>/*.jpg`, as torchvision's ImageFolder has them.

The classes are the folders of the training set in alphabetical order, or in that of a file `classes.txt`
beside `train` and `test`. The images of a split are in the order of their classes, then of their names.
"""

import concurrent.futures
import functools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from si_jax.data import preprocessing
from si_jax.data.dataset import SPLITS, Arrays, Source, check_classes, listed, read_classes
from si_jax.data.preprocessing import Preprocessing
from si_jax.errors import InputError

ENDINGS = ('.png', '.jpg', '.jpeg')
CHANNELS = {'L': 1, 'RGB': 3}  # of Pillow's modes, where no preprocessing changes them
# Pillow decodes without Python's lock.
THREADS = min(16, os.cpu_count() or 1)


class Image(NamedTuple):
    """A file of a split."""

    path: pathlib.Path
    label: int


def source(folder: str | pathlib.Path, name: str = '') -> Source:
    """The data set of a folder with `train`, `test` or both.

    Args:
        folder: The folder. What lies in a class but is no PNG or JPEG is refused; names that begin with a dot
            are passed over.
        name: Of the preprocessing (`si_jax.data.preprocessing`); '' for images that have one size and one
            mode, grey or RGB.

    Raises:
        InputError: There is no such folder or preprocessing; a class is empty, or only the test set has it;
            or the first image cannot be read. All others are read with their split.
    """
    folder, process = pathlib.Path(folder).expanduser(), preprocessing.named(name)
    splits = {split: _classes(folder / split) for split in SPLITS if (folder / split).is_dir()}
    if not splits:
        raise InputError(
            f'{folder} has neither train/ nor test/: give folder:FOLDER, one with train/CLASS/*.png and '
            'test/CLASS/*.png'
        )
    names = read_classes(folder / 'classes.txt')
    first = next(iter(splits))
    classes = names or check_classes(str(folder / first), sorted(splits[first]))
    for split, found in splits.items():
        if more := sorted(found.keys() - set(classes)):
            where = 'classes.txt does not name' if names else f'{first}/ lacks'
            raise InputError(
                f'{folder / split} has {listed(more)}, which {where}: add it there, or take it away'
            )
    if 'train' in splits and (empty := [one for one in classes if one not in splits['train']]):
        raise InputError(
            f'{folder / "train"} has no folder {listed(empty)}, which classes.txt names: add images'
        )
    files = {
        split: [Image(path, label) for label, one in enumerate(classes) for path in found.get(one, ())]
        for split, found in splits.items()
    }
    shape = process.shape if process else _shape(files[first][0].path)

    def read(split: str, _: object) -> Arrays:
        if split not in files:
            raise InputError(f'{folder} has no {split}/: put images into {folder / split}/CLASS/')
        return _read(files[split], shape, process, folder / split)

    return Source(read, shape, len(classes), classes, len(files.get('train', ())), described=str(folder))


def _classes(split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The images of each class, by name; InputError for an empty class, or a file that is no image."""
    found = {}
    for place in sorted(_seen(split)):
        if not place.is_dir():
            raise InputError(f'{place} lies in no class: move it into {split}/CLASS/, or away')
        found[place.name] = sorted(_seen(place))
        if other := [path for path in found[place.name] if path.suffix.lower() not in ENDINGS]:
            raise InputError(f'{listed(other)}: no PNG or JPEG by its name; convert it, or move it away')
        if not found[place.name]:
            raise InputError(f'{place} is a class without an image: add some, or remove the folder')
    return found


def _seen(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / one.name for one in os.scandir(folder) if not one.name.startswith('.')]


def _opened(path: pathlib.Path) -> Any:
    from PIL import Image

    return Image.open(path, formats=('PNG', 'JPEG'))


def _shape(path: pathlib.Path) -> tuple[int, int, int]:
    """(H, W, C) of an image that is taken as it is."""
    try:
        with _opened(path) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:  # Pillow raises a dozen kinds
        raise InputError(f'{path} cannot be read as an image ({error}): replace it') from error
    if mode not in CHANNELS:
        raise InputError(
            f'{path} is of the mode {mode}, not L (grey) or RGB: convert it, or give a preprocessing, such '
            'as --config.data.preprocessing=Res256Crop224'
        )
    return height, width, CHANNELS[mode]


def _decoded(
    path: pathlib.Path, shape: tuple[int, int, int], process: Preprocessing | None
) -> np.ndarray | tuple[str, str]:
    """An image uint8 [H, W, C]; or ('broken', why) or ('other', what it is)."""
    try:
        with _opened(path) as image:
            width, height = image.size
            if process is None and (height, width, CHANNELS.get(image.mode)) != shape:
                return 'other', f'{height} x {width} {image.mode}'
            return np.asarray(process(image) if process else image).reshape(shape)
    except Exception as error:  # Pillow raises a dozen kinds
        return 'broken', str(error) or type(error).__name__


def _read(
    files: list[Image], shape: tuple[int, int, int], process: Preprocessing | None, folder: pathlib.Path
) -> Arrays:
    """The images of a split; InputError for broken ones, or ones of another size or mode."""
    images = np.empty((len(files), *shape), np.uint8)
    problems: dict[str, list[str]] = {'broken': [], 'other': []}
    decode = functools.partial(_decoded, shape=shape, process=process)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for number, found in enumerate(pool.map(decode, (one.path for one in files))):
            if isinstance(found, tuple):
                problems[found[0]].append(f'{files[number].path} ({found[1]})')
            else:
                images[number] = found
    advice = {
        'broken': 'cannot be read as an image: replace it, or move it away',
        'other': f'is not {shape[0]} x {shape[1]} {"RGB" if shape[2] == 3 else "L"}, as the first image is: '
        'give all images one size and mode, or give a preprocessing, such as '
        '--config.data.preprocessing=Res256Crop224 (evaluate.py: --preprocessing)',
    }
    for kind, which in problems.items():
        if which:
            more = f' and {len(which) - 1} more of {len(files)} images' * (len(which) > 1)
            raise InputError(f'{which[0]}{more} {advice[kind]}')
    names = tuple(one.path.relative_to(folder).as_posix() for one in files)
    return Arrays(images, np.array([one.label for one in files]), (str(folder),), names)
