"""Folders of npz files, with `images` uint8 NHWC and `labels`.

A training set is one file `train.npz`, or parts `train_1.npz` to `train_K.npz`. A test set is `test.npz`. In
a folder that is given for a data set of the table, its name comes first: `cifar10_train.npz`.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from si_jax.data import tfds
from si_jax.data.dataset import (
    SPLITS,
    Arrays,
    Source,
    check_classes,
    check_every_class,
    checked,
    read_classes,
)
from si_jax.data.stream import Joined, Lazy
from si_jax.errors import InputError
from si_jax.storage import npz


def holds(folder: str | pathlib.Path, name: str) -> bool:
    """Whether a folder has npz files of the data set: its test set, or what may be its training set."""
    folder = pathlib.Path(folder).expanduser()
    return (folder / f'{name}_test.npz').exists() or any(folder.glob(f'{name}_train*.npz'))


def files(folder: str | pathlib.Path, name: str, split: str) -> list[pathlib.Path]:
    """The files of a split, those of a training set in the order of their parts.

    `name` is that of a data set of the table, whose files begin with it; '' for a folder of its own.

    Raises:
        InputError: There is none; or beside the training set lies a file that could be meant as a part of it:
            the whole beside its parts, a part behind a gap, or any other name that begins like it.
    """
    folder, stem = pathlib.Path(folder).expanduser(), f'{name}_{split}' if name else split
    whole, paths = f'{stem}.npz', sorted(folder.glob(f'{stem}*.npz' if name else f'{stem}*'))
    names = [path.name for path in paths]
    if split == 'test' or not names:
        if whole not in names:
            wanted = whole if split == 'test' else f'{whole}, nor {stem}_1.npz'
            raise tfds.missing_data(name, f'{folder} has no {wanted}', None)
        return [folder / whole]
    parts = {
        int(found[1]): path
        for path in paths
        if (found := re.fullmatch(rf'{re.escape(stem)}_([1-9]\d*)\.npz', path.name))
    }
    if whole in names and parts:
        raise InputError(
            f'{folder} has both {whole} and {parts[min(parts)].name}: images in both would be trained on and '
            'held out. Leave the whole file there, or its parts'
        )
    if strange := [one for one in names if one != whole and folder / one not in parts.values()]:
        remedy = f'{stem}_{max(parts) + 1}.npz' if parts else whole
        if whole in names:
            remedy = f'{stem}_2.npz, and {whole} {stem}_1.npz'
        raise InputError(
            f'{folder} has {strange[0]}, which is neither {whole} nor a numbered part of it. If it is '
            f'not to be trained on, move it to another folder; if it is, call it {remedy}'
        )
    for number, part in enumerate(sorted(parts), 1):
        if number != part:
            raise InputError(
                f'{folder} has {parts[part].name} but no {stem}_{number}.npz: copy the missing '
                'part, or number the parts that are there from 1 without gaps'
            )
    return [parts[number] for number in sorted(parts)] or [folder / whole]


def source(folder: str | pathlib.Path) -> Source:
    """The data set of a folder with `train.npz` or its parts, `test.npz`, or both.

    Shape, counts and classes are those of the arrays. The classes have the names in `classes.txt`, one a
    line, or in an array `classes` of a file, if there are any.

    Raises:
        InputError: There is neither; a file cannot be read; a class has no training image or, where there are
            names, no name; or the test set has a class that the training set lacks.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f'{folder} is no folder: give npz:FOLDER, one with train.npz and test.npz')
    there = {'train': any(folder.glob('train*')), 'test': (folder / 'test.npz').exists()}
    paths = {split: files(folder, '', split) for split in SPLITS if there[split]}
    if not paths:
        raise InputError(f'{folder} has neither train.npz nor test.npz: the files have these names, exactly')
    every = [path for split in paths for path in paths[split]]
    labels = {split: np.concatenate([_labels(path) for path in paths[split]]) for split in paths}
    part, classes = labels['train' if 'train' in labels else 'test'], _classes(folder, every)
    count = len(classes) or int(part.max()) + 1
    for split, found in labels.items():
        if found.max() >= count:
            words = f'a name in {len(classes)} classes' if classes else f'in train.npz, from 0 to {count - 1}'
            raise InputError(
                f'{paths[split][-1]} has label {found.max()}, which is not {words}: add what is missing, or '
                'leave its images out'
            )
    if 'train' in labels or count < 2:
        check_every_class(str(folder), part, max(2, count), classes)
    header = _reading(every[0], lambda: npz.headers(every[0])).get('images')
    if header is None or len(header.shape) != 4:
        raise InputError(f'{every[0]} has no array `images` [N, height, width, channels]: store one, uint8')
    shape = header.shape[1:]

    def read_split(split: str, _: object) -> Arrays:
        chosen = files(folder, '', split)
        return Arrays(*read(chosen, shape, count, 255), tuple(map(str, chosen)))

    return Source(read_split, shape, count, classes, len(labels.get('train', ())), described=str(folder))


def _array(path: pathlib.Path, name: str) -> np.ndarray:
    found: dict[str, np.ndarray] = _reading(path, lambda: npz.read(path, [name]))
    return found[name]


def _labels(path: pathlib.Path) -> np.ndarray:
    found = _array(path, 'labels')
    right = found.ndim == 1 and found.dtype.kind in 'iu' and len(found)
    if not right or (labels := found.astype(np.int64)).min() < 0:
        raise InputError(f'{path}: labels are {found.dtype} {found.shape}, not integers from 0, one an image')
    return labels


def _reading(path: pathlib.Path, read: Callable[[], Any]) -> Any:
    """What `read` gives of a file; InputError if it cannot be read, or lacks an array."""
    try:
        return read()
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


def _classes(folder: pathlib.Path, paths: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """The names of the classes, () if there are none; InputError if two places name others."""
    found = {'classes.txt': read_classes(folder / 'classes.txt')}
    for path in paths:
        if 'classes' in _reading(path, functools.partial(npz.headers, path)):
            names = _array(path, 'classes')
            if names.ndim != 1 or names.dtype.kind != 'U':
                raise InputError(
                    f'{path}: classes are {names.dtype} {names.shape}, not one text a class: save them as '
                    "classes=np.array(['cat', 'dog'])"
                )
            found[path.name] = check_classes(str(path), map(str, names))
    found = {place: names for place, names in found.items() if names}
    if len(set(found.values())) > 1:
        raise InputError(f'{folder}: {" and ".join(found)} name other classes: leave one of them there')
    return next(iter(found.values()), ())


def read(
    paths: Sequence[pathlib.Path], shape: tuple[int, int, int], num_classes: int, scale: int
) -> tuple[Any, np.ndarray]:
    """Reads one split from its `files`: images uint8 [N, H, W, C] up to `scale`, and labels int32 [N].

    Parts are joined in their order. `shape` is (H, W, C). Images that the files hold uncompressed, as
    np.savez writes them, stay there (`Lazy`), once their checksums were compared.

    Raises:
        InputError: A file cannot be read or holds the wrong arrays.
    """
    parts = [_read_file(path, shape, num_classes, scale) for path in paths]
    images, labels = [images for images, _ in parts], np.concatenate([labels for _, labels in parts])
    if not any(isinstance(part, np.memmap) for part in images):
        return np.concatenate(images), labels
    return Lazy(Joined(images).__getitem__, (len(labels), *shape)), labels


def _read_file(
    path: pathlib.Path, shape: tuple[int, int, int], num_classes: int, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    found = _reading(path, lambda: npz.mapped(path, ('images', 'labels'), verify=True))
    images, labels = found['images'], found['labels']
    return images, checked(str(path), images, labels, shape, num_classes, scale)
