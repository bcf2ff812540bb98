"""Folders of npz files: `<name>_test.npz` and `<name>_train*.npz`, with `images` uint8 NHWC and `labels`."""

import pathlib
import re

import numpy as np

from si_jax.data import tfds
from si_jax.errors import InputError
from si_jax.storage import npz


def _files(folder: pathlib.Path, name: str, split: str) -> list[pathlib.Path]:
    if split == 'test':
        return list(folder.glob(f'{name}_test.npz'))

    def natural(path: pathlib.Path) -> list[str | int]:  # part 2 before part 10
        return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', path.name)]

    return sorted(folder.glob(f'{name}_train*.npz'), key=natural)


def holds(folder: str | pathlib.Path, name: str) -> bool:
    """Whether a folder has npz files of the data set: its test set, or any part of its training set."""
    folder = pathlib.Path(folder).expanduser()
    return bool(_files(folder, name, 'test') or _files(folder, name, 'train'))


def read(
    folder: str | pathlib.Path, name: str, split: str, shape: tuple[int, int, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split: images uint8 [N, H, W, C] of this `shape` (H, W, C), and labels int32 [N].

    The parts of a training set are joined in natural order (part 2 before part 10). The files of the other
    split are not needed.

    Raises:
        InputError: No file of this split, or one that cannot be read or holds the wrong arrays.
    """
    folder = pathlib.Path(folder).expanduser()
    paths = _files(folder, name, split)
    if not paths:
        pattern = f'{name}_test.npz' if split == 'test' else f'{name}_train*.npz'
        raise tfds.missing_data(name, f'{folder} has no {pattern}', None)
    parts = [_read_file(path, shape, num_classes) for path in paths]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _read_file(
    path: pathlib.Path, shape: tuple[int, int, int], num_classes: int
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
    if images.dtype != np.uint8:
        raise InputError(f'{path}: images are {images.dtype}, not uint8: store whole numbers 0 to 255')
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f'{path}: images have shape {images.shape}, not (N, {", ".join(map(str, shape))}): '
            'store them as [N, height, width, channels]'
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
    return images, labels.astype(np.int32)
