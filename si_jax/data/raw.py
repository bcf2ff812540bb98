"""CIFAR-10, CIFAR-100 and SVHN as their authors publish them, unpacked into a folder.

    cifar-10-batches-py/     data_batch_1 to data_batch_5, test_batch      pickles
    cifar-100-python/        train, test                                   pickles
    train_32x32.mat, test_32x32.mat                                        SVHN, files of MATLAB

A pickle can run any code as it is read. These are read by a reader that knows arrays of whole numbers and
plain types, makes the arrays itself, and refuses everything else by name.
"""

import math
import pathlib
import pickle
from typing import Any

import numpy as np

from si_jax.data.dataset import SPLITS, Arrays
from si_jax.errors import InputError
from si_jax.storage.files import check_regular

LARGEST = 2**30  # bytes of a pickle; the authors' have up to 155 million
CIFAR = {
    'cifar10': (
        'cifar-10-batches-py',
        {'train': [f'data_batch_{part}' for part in range(1, 6)], 'test': ['test_batch']},
        'labels',
    ),
    'cifar100': ('cifar-100-python', {'train': ['train'], 'test': ['test']}, 'fine_labels'),
}


def holds(folder: str | pathlib.Path, name: str) -> bool:
    """Whether a folder has authors' files of the data set: a part of one split, at least."""
    return any(path.exists() for split in SPLITS for path in _files(folder, name, split))


def read(folder: str | pathlib.Path, name: str, split: str) -> Arrays:
    """One split in its original order: the batches one after the other.

    Raises:
        InputError: A file is missing, damaged, or holds something else.
    """
    paths = _files(folder, name, split)
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(
            f'{missing[0]} is not there: unpack the archive of its authors once more, and copy all of it'
        )
    read_one = _svhn if name == 'svhn' else _cifar
    try:
        parts = [read_one(path, name) for path in paths]
    except InputError:
        raise
    except Exception as error:  # of scipy and pickle, which raise a dozen kinds for damaged files
        raise InputError(
            f'{" or ".join(map(str, paths))} is damaged, or not the file of its authors '
            f'({error or type(error).__name__}): unpack their archive once more'
        ) from error
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Arrays(images, labels, tuple(map(str, paths)))


def _files(folder: str | pathlib.Path, name: str, split: str) -> list[pathlib.Path]:
    """The files of a split, in or below a folder; [] for another data set."""
    folder = pathlib.Path(folder).expanduser()
    if name == 'svhn':
        return [folder / f'{split}_32x32.mat']
    if name not in CIFAR:
        return []
    inside, names, _ = CIFAR[name]
    below = folder if folder.name == inside else folder / inside
    return [below / one for one in names[split]]


def _cifar(path: pathlib.Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A batch holds rows of 1,024 red, 1,024 green and 1,024 blue bytes, and a list of labels."""
    found = plain_pickle(path)
    rows, labels = found['data'], found[CIFAR[name][2]]
    if rows.dtype != np.uint8 or not all(type(label) is int for label in labels):
        raise ValueError('data is no array of bytes, or a label is no integer')
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _svhn(path: pathlib.Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """X is uint8 [32, 32, 3, N]; y is [N, 1], and the digit 0 is under 10."""
    import scipy.io

    found = scipy.io.loadmat(check_regular(path), variable_names=['X', 'y'])
    labels = found['y'].reshape(-1).astype(np.int64)
    return np.ascontiguousarray(found['X'].transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)


def plain_pickle(path: pathlib.Path) -> dict[Any, Any]:
    """The dictionary of a pickle, if it is made of plain types and arrays of numbers alone.

    Text of Python 2 is read as latin-1, so that the bytes of arrays stay what they are. Nothing of NumPy runs
    on what the file says: stand-ins take it, and the arrays are made of them here.

    Raises:
        InputError: It asks for anything else, which is named.
        Exception: It is damaged.
    """
    if check_regular(path).stat().st_size > LARGEST:
        raise InputError(f'{path} has more than {LARGEST} bytes: it is no file of the authors of CIFAR')

    # Made anew for each file, which could change them.
    class Stand:
        def __init__(self, *given: Any):
            self.given = given
            self.state: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Array(Stand):
        pass

    class Encoded(Stand):
        """`_codecs.encode`, by which Python 3 writes bytes for Python 2."""

    known = {('numpy', 'dtype'): Stand, ('numpy', 'ndarray'): Stand, ('_codecs', 'encode'): Encoded}
    known |= {(f'numpy.{core}.multiarray', '_reconstruct'): Array for core in ('core', '_core')}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise InputError(
                    f'{path} is refused: it asks for {module}.{name}, and could run any code. It is no '
                    'file of its authors; get their archive again'
                )
            return known[module, name]

    def array(found: Any) -> np.ndarray:
        _, shape, dtype, fortran, content = found.state  # as numpy.ndarray.__reduce__ gives them
        kind, order = np.dtype(str(dtype.given[0])), dtype.state[1]
        content = content.given[0] if isinstance(content, Encoded) else content
        content = content.encode('latin1') if isinstance(content, str) else content
        if kind.kind not in 'uif' or math.prod(shape) * kind.itemsize != len(content):
            raise ValueError(f'an array says {shape} of {kind} and has {len(content)} bytes')
        kind = kind.newbyteorder('=' if order == '|' else order)
        return np.frombuffer(content, kind).reshape(shape, order='F' if fortran else 'C')

    with open(path, 'rb') as file:
        found = Reader(file, encoding='latin1').load()
    if not isinstance(found, dict):
        raise ValueError(f'it holds a {type(found).__name__}')
    return {key: array(value) if isinstance(value, Array) else value for key, value in found.items()}
