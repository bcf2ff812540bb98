"""Sets of images that need not fit a device, nor memory: when they are read, and when they are handed over.

A set that fits is uploaded once and lives on the devices (resident). A larger one stays on the host, in
memory or in its files, and each batch is handed over when it is due (streamed). Images that stay in their
files are a `Lazy` in place of an array.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from si_jax.errors import InputError, unknown

STREAMS = ('auto', 'always', 'never')
# The share of a device's memory up to which a set is resident: the rest is for weights and a step.
RESIDENT = 0.5
PART = 2**25  # bytes that are read at once where all images are gone through


def is_streamed(stream: str, size: int, memory: float) -> bool:
    """Whether a set of `size` bytes is handed over batch by batch.

    Args:
        stream: 'always', 'never', or 'auto': where the set takes more than half of a device's memory.
        size: Bytes of all images.
        memory: Bytes of a device.

    Raises:
        InputError: `stream` is none of these, or 'never' for a set that no device can hold.
    """
    if stream not in STREAMS:
        raise unknown('data.stream', stream, STREAMS)
    if stream == 'never' and size > memory:
        raise InputError(
            f"data.stream='never' puts {size / 1e9:.2f} GB of images on a device with {memory / 1e9:.2f} GB: "
            'use --config.data.stream=auto'
        )
    return stream == 'always' or (stream == 'auto' and size > RESIDENT * memory)


class Lazy:
    """Images [N, H, W, C], as bytes, that are read when an index asks for them.

    It has the shape, type and length of the array that it stands for; `np.asarray` reads all of it.

    Args:
        read: Numbers [B] -> the images of these numbers, uint8 [B, H, W, C]. It can be pickled. If it has a
            method `check`, that takes numbers too, and raises what can be said of them without reading them.
        shape: (N, H, W, C).
        rows: Which of the N, in which order; None for all.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(
        self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], rows: np.ndarray | None = None
    ):
        self.read = read
        self.rows = np.arange(shape[0]) if rows is None else rows
        self.shape = len(self.rows), *shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return math.prod(self.shape)

    def at(self, rows: Any) -> 'Lazy':
        """Those of an index, still not read."""
        return Lazy(self.read, self.shape, self.rows[rows])

    def check(self) -> None:
        """Raises InputError for what is seen to be wrong without reading any image as a whole."""
        if hasattr(self.read, 'check'):
            self.read.check(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self.read(np.atleast_1d(self.rows[rows]))
        return found[0] if np.ndim(self.rows[rows]) == 0 else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def parts(self) -> Iterator[np.ndarray]:
        """All images in order, some at a time."""
        each = max(1, PART // max(1, math.prod(self.shape[1:])))
        return (self[first : first + each] for first in range(0, len(self), each))


def chosen(images: Any, rows: Any) -> Any:
    """The images of an index: of an array they are an array, of a `Lazy` they are not read yet."""
    return images.at(rows) if isinstance(images, Lazy) else images[rows]


def parts(images: Any) -> Iterator[np.ndarray]:
    """All images in order, so many at a time as memory bears."""
    return images.parts() if isinstance(images, Lazy) else iter((images,))


class Joined:
    """Arrays [N, ...] one behind another, indexed as one; each in memory, in its file, or a `Lazy`."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __reduce__(self) -> Any:
        # A mapped file goes to another process by its name, where NumPy would send all that is in it.
        parts = [_place(part) if isinstance(part, np.memmap) else part for part in self.parts]
        return _joined, (parts,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Rows [B, ...] at these indices [B], in memory."""
        first = self.parts[0]
        if len(self.parts) == 1:
            return np.asarray(first[indices])
        found = np.empty((len(indices), *first.shape[1:]), first.dtype)
        which = np.searchsorted(self._ends, indices, side='right')
        for number, part in enumerate(self.parts):
            here = which == number
            found[here] = part[indices[here] - (self._ends[number] - len(part))]
        return found

    def whole(self) -> np.ndarray:
        """All rows, in memory."""
        return np.concatenate(self.parts) if len(self.parts) > 1 else np.asarray(self.parts[0])


class _Place(tuple):
    """Where a mapped array lies in its file."""


def _place(mapped: np.memmap) -> _Place:
    order = 'C' if mapped.flags.c_contiguous else 'F'
    return _Place((mapped.filename, mapped.dtype, 'r', mapped.offset, mapped.shape, order))


def _joined(parts: list[Any]) -> Joined:
    return Joined([np.memmap(*part) if isinstance(part, _Place) else part for part in parts])
