"""Folders of npz files, with `images` uint8 NHWC and `labels`.

A training set is one file `<name>_train.npz`, or parts `<name>_train_1.npz` to `<name>_train_K.npz`. A test
set is `<name>_test.npz`.
"""

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from si_jax.data import tfds
from si_jax.errors import InputError
from si_jax.storage import npz


def holds(folder: str | pathlib.Path, name: str) -> bool:
    """Whether a folder has npz files of the data set: its test set, or what may be its training set."""
    folder = pathlib.Path(folder).expanduser()
    return (folder / f'{name}_test.npz').exists() or any(folder.glob(f'{name}_train*.npz'))


def files(folder: str | pathlib.Path, name: str, split: str) -> list[pathlib.Path]:
    """The files of a split, those of a training set in the order of their parts.

    Raises:
        InputError: There is none; or beside the training set lies a file that could be meant as a part of it:
            the whole beside its parts, a part behind a gap, or any other name that begins like it.
    """
    folder = pathlib.Path(folder).expanduser()
    whole, paths = f'{name}_{split}.npz', sorted(folder.glob(f'{name}_{split}*.npz'))
    names = [path.name for path in paths]
    if split == 'test' or not names:
        if whole not in names:
            wanted = whole if split == 'test' else f'{whole}, nor {name}_train_1.npz'
            raise tfds.missing_data(name, f'{folder} has no {wanted}', None)
        return [folder / whole]
    parts = {
        int(found[1]): path
        for path in paths
        if (found := re.fullmatch(rf'{re.escape(name)}_train_([1-9]\d*)\.npz', path.name))
    }
    if whole in names and parts:
        raise InputError(
            f'{folder} has both {whole} and {parts[min(parts)].name}: images in both would be trained on and '
            'held out. Leave the whole file there, or its parts'
        )
    if strange := [one for one in names if one != whole and folder / one not in parts.values()]:
        remedy = f'{name}_train_{max(parts) + 1}.npz' if parts else whole
        if whole in names:
            remedy = f'{name}_train_2.npz, and {whole} {name}_train_1.npz'
        raise InputError(
            f'{folder} has {strange[0]}, which is neither {whole} nor a numbered part of it. If it is '
            f'not to be trained on, move it to another folder; if it is, call it {remedy}'
        )
    for number, part in enumerate(sorted(parts), 1):
        if number != part:
            raise InputError(
                f'{folder} has {parts[part].name} but no {name}_train_{number}.npz: copy the missing '
                'part, or number the parts that are there from 1 without gaps'
            )
    return [parts[number] for number in sorted(parts)] or [folder / whole]


def read(
    paths: Sequence[pathlib.Path], shape: tuple[int, int, int], num_classes: int, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split from its `files`: images uint8 [N, H, W, C] up to `scale`, and labels int32 [N].

    Parts are joined in their order. `shape` is (H, W, C).

    Raises:
        InputError: A file cannot be read or holds the wrong arrays.
    """
    parts = [_read_file(path, shape, num_classes, scale) for path in paths]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _read_file(
    path: pathlib.Path, shape: tuple[int, int, int], num_classes: int, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    try:
        arrays = npz.read(path, ('images', 'labels'))
    except (OSError, ValueError) as error:
        if 'has no array' in str(error):
            raise InputError(
                f'{path} {error}: it needs `images` and `labels`; if it calls them x and y, save them with '
                'np.savez(path, images=x, labels=y)'
            ) from error
        raise InputError(
            f'{path} {error}: it is truncated or no npz; copy it again, or save it with '
            'np.savez(path, images=..., labels=...)'
        ) from error
    images, labels = arrays['images'], arrays['labels']
    return images, check_arrays(path, images, labels, shape, num_classes, scale)


def check_arrays(
    path: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int, ...],
    num_classes: int,
    scale: int,
) -> np.ndarray:
    """The labels of a file as int32 [N].

    Raises:
        InputError: They, or the images, are not those of such a set.
    """
    if images.dtype != np.uint8:
        raise InputError(f'{path}: images are {images.dtype}, not uint8: store whole numbers 0 to 255')
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f'{path}: images have shape {images.shape}, not (N, {", ".join(map(str, shape))}): '
            'store them as [N, height, width, channels]'
        )
    if scale < 255 and images.max(initial=0) > scale:
        raise InputError(
            f'{path}: images go up to {images.max()}, where white is {scale}: store them up to {scale}'
        )
    if labels.dtype.kind not in 'iu':
        raise InputError(f'{path}: labels are {labels.dtype}, not integers: store class indices')
    if labels.shape != images.shape[:1] or not len(labels):
        raise InputError(
            f'{path}: labels have shape {labels.shape} for images {images.shape}: '
            'store one label an image, and at least one image'
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f'{path}: label {labels[wrong[0]]} of image {wrong[0]} is not in [0, {num_classes - 1}]: '
            f'number the {num_classes} classes from 0'
        )
    return labels.astype(np.int32)
