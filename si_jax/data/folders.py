"""Folders of images: `train/<class>/*.png` and `test/<class>/*.jpg`, as torchvision's ImageFolder has them.

The classes are the folders of the training set in alphabetical order, or in that of a file `classes.txt`
beside `train` and `test`. The images of a split are in the order of their classes, then of their names.
"""

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from si_jax.data import preprocessing
from si_jax.data.dataset import SPLITS, Arrays, Source, check_classes, listed, read_classes
from si_jax.data.preprocessing import Preprocessing
from si_jax.data.stream import Lazy
from si_jax.errors import InputError

ENDINGS = ('.png', '.jpg', '.jpeg')
CHANNELS = {'L': 1, 'RGB': 3}  # of Pillow's modes, where no preprocessing changes them
END_OF_JPEG = b'\xff\xd9'  # the marker EOI
# Pillow decodes without Python's lock. Of worker processes there is one for each core already.
THREADS = min(16, os.cpu_count() or 1) if multiprocessing.parent_process() is None else 1


class Image(NamedTuple):
    """A file of a split."""

    path: pathlib.Path
    label: int


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of a split by their numbers, each decoded when it is asked for.

    Attributes:
        folder: Of the split.
        names: Of the files, from there.
        shape: (H, W, C) of all images.
        process: What is done to each first, if anything.
    """

    folder: pathlib.Path
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    process: Preprocessing | None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Images uint8 [B, H, W, C] of the numbers [B]; InputError for one that is broken or does not fit."""
        images = np.empty((len(rows), *self.shape), np.uint8)

        def store(number: int, image: Any) -> None:
            images[number] = np.asarray(self.process(image) if self.process else image).reshape(self.shape)

        self._go_through(rows, store)
        return images

    def check(self, rows: np.ndarray) -> None:
        """The same errors, though an image is decoded only where its file does not look whole."""

        def look(_: int, image: Any) -> None:
            if self.process:
                self.process.check(image)
            if not _looks_whole(image):
                with _opened(image.filename) as again:
                    again.load()

        self._go_through(rows, look)

    def _go_through(self, rows: np.ndarray, use: Callable[[int, Any], None]) -> None:
        """Opens these images and calls `use` with the position and the image; InputError for wrong ones."""

        def problem(number: int) -> tuple[str, str]:
            try:
                with _opened(self.folder / self.names[rows[number]]) as image:
                    width, height = image.size
                    if self.process is None and (height, width, CHANNELS.get(image.mode)) != self.shape:
                        return 'other', f'{height} x {width} {image.mode}'
                    use(number, image)
            except Exception as error:  # Pillow raises a dozen kinds
                return 'broken', str(error) or type(error).__name__
            return '', ''

        problems: dict[str, list[str]] = {'broken': [], 'other': []}
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for row, (kind, words) in zip(rows, pool.map(problem, range(len(rows))), strict=True):
                if kind:
                    problems[kind].append(f'{self.folder / self.names[row]} ({words})')
        height, width, channels = self.shape
        advice = {
            'broken': 'cannot be read as an image: replace it, or move it away',
            'other': f'is not {height} x {width} {"RGB" if channels == 3 else "L"}, as the first image is: '
            'give all images one size and mode, or give a preprocessing, such as '
            '--config.data.preprocessing=Res256Crop224 (evaluate.py: --preprocessing)',
        }
        for kind, which in problems.items():
            if which:
                more = f' and {len(which) - 1} more of {len(rows)} images' * (len(which) > 1)
                raise InputError(f'{which[0]}{more} {advice[kind]}')


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
        place, labels = folder / split, np.array([one.label for one in files[split]])
        names = tuple(one.path.relative_to(place).as_posix() for one in files[split])
        images = Lazy(Files(place, names, shape, process), (len(names), *shape))
        return Arrays(images, labels, (str(place),), names, _identity(files[split], names))

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


def _opened(path: str | pathlib.Path) -> Any:
    from PIL import Image

    return Image.open(path, formats=('PNG', 'JPEG'))


def _looks_whole(image: Any) -> bool:
    """Whether the bytes of an opened PNG are those of its checksums, or a JPEG ends as it should.

    Nothing is decoded for it. The image is of no use afterwards.
    """
    if image.format != 'PNG':
        image.fp.seek(-len(END_OF_JPEG), os.SEEK_END)
        return bool(image.fp.read() == END_OF_JPEG)
    try:
        image.verify()
    except Exception:  # Pillow raises several kinds
        return False
    return True


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


def _identity(files: list[Image], names: tuple[str, ...]) -> str:
    """A hash of the names of the files and of their sizes: to decode a large set would take hours."""
    lines = (f'{name} {one.path.stat().st_size}' for name, one in zip(names, files, strict=True))
    return hashlib.sha256('\n'.join(lines).encode('utf-8', 'surrogateescape')).hexdigest()
