"""Images that stay bytes until they are looked at: a set of ImageNet's size takes a quarter of the memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from si_jax import data
from si_jax.data.stream import parts
from si_jax.errors import InputError

PART = 2**25  # bytes of float32 that are made at once where all images are gone through


class Pixels:
    """Images [N, H, W, C] kept as bytes; whatever is taken of them by an index is float32 in [0, 1].

    It has the shape, type and length of the array that it stands for, and the same values as `data.to_unit`
    gives. `np.asarray` makes the whole array.

    Args:
        stored: uint8 [N, H, W, C], an array or a `data.stream.Lazy`.
        scale: The stored value of white, from 1 to 255.

    Raises:
        InputError: `stored` is something else, or goes beyond `scale`.
    """

    dtype, ndim = np.dtype(np.float32), 4

    def __init__(self, stored: Any, scale: int):
        if stored.dtype != np.uint8:
            raise InputError(f'scale={scale} is for uint8 images, these are {stored.dtype}: leave it out')
        if isinstance(scale, bool) or not isinstance(scale, int | np.integer) or not 1 <= scale <= 255:
            raise InputError(f'scale={scale!r} is no whole number from 1 to 255: white is 255 in most images')
        highest = 0 if scale == 255 else max((int(part.max(initial=0)) for part in parts(stored)), default=0)
        if highest > scale:
            raise InputError(f'images go up to {highest}, and scale={scale} says that white is {scale}')
        self.stored, self.shape, self.scale = stored, stored.shape, int(scale)
        self._values = data.to_unit_on_host(np.arange(256, dtype=np.uint8), scale)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._values[self.stored[rows]]

    def at(self, rows: Any) -> 'Pixels':
        """Those of an index, still bytes."""
        return Pixels(data.chosen(self.stored, rows), self.scale)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def parts(self) -> Iterator[np.ndarray]:
        """All images in order, some at a time."""
        each = max(1, PART // max(1, 4 * int(np.prod(self.shape[1:]))))
        return (self[first : first + each] for first in range(0, len(self), each))


Images = np.ndarray | Pixels


def alike(images: Images) -> bool:
    """Whether all images are copies of one."""
    return all(np.array_equal(image, images[0]) for image in images)  # type: ignore[union-attr]
