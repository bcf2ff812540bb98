"""ATen operations as JAX functions, and the layout in which they are computed.

PyTorch's images are [B, C, *space]. Convolutions, their gradients above all, want [B, *space, C], so an image
is kept as `ChannelsLast` from one layer to the next, and turned round only where an operation needs PyTorch's
axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.interop.aten.arrays import ARRAYS
from si_jax.interop.aten.elementwise import ELEMENTWISE
from si_jax.interop.aten.layers import LAYERS
from si_jax.interop.aten.pooling import POOLING
from si_jax.interop.aten.table import Function, Table

__all__ = ['IMAGES', 'TABLES', 'ChannelsLast', 'call', 'find', 'plain']

Array = jax.Array
# Functions of images with channels last.
IMAGES = Table({**LAYERS, **POOLING})
TABLES = (ELEMENTWISE, IMAGES, ARRAYS)
_ELEMENTWISE_NAMES = {name.split('.')[0] for name in ELEMENTWISE}


class ChannelsLast(NamedTuple):
    """[B, *space, C], in place of an array [B, C, *space]."""

    array: Array


def find(name: str, overload: str) -> Function | None:
    """The function for an operation, from whichever table has it."""
    return next(filter(None, (table.find(name, overload) for table in TABLES)), None)


def plain(value: Any) -> Any:
    """The array with PyTorch's axes."""
    return jnp.moveaxis(value.array, -1, 1) if isinstance(value, ChannelsLast) else value


def call(name: str, overload: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """The result of an operation: an array, an image as `ChannelsLast`, or a list or tuple of them."""
    function = find(name, overload)
    assert function is not None, name
    if IMAGES.find(name, overload):
        first, *rest = arguments
        image = first.array if isinstance(first, ChannelsLast) else jnp.moveaxis(first, 1, -1)
        result = function(image, *map(plain, rest), **keywords)
        return tuple(map(ChannelsLast, result)) if isinstance(result, tuple) else ChannelsLast(result)

    images = [a.array.ndim for a in _flat(arguments) if isinstance(a, ChannelsLast)]
    if images:
        turned = _turned(name, arguments, keywords, max(images))
        if turned is not None:
            arguments, is_image = turned
            result = function(*arguments, **keywords)
            return ChannelsLast(result) if is_image else result
    arguments = [[plain(v) for v in a] if isinstance(a, list) else plain(a) for a in arguments]
    return function(*arguments, **keywords)


def _flat(arguments: Sequence[Any]) -> list[Any]:
    return [v for a in arguments for v in (a if isinstance(a, list) else [a])]


def _turned(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], ndim: int
) -> tuple[Sequence[Any], bool] | None:
    """Arguments with which an operation works on images of `ndim` axes with channels last, and whether its
    result is such an image; None if there are none."""

    def last(value: Any) -> Any:
        if isinstance(value, ChannelsLast):
            return value.array
        if getattr(value, 'ndim', 0) == 0:
            return value
        return jnp.moveaxis(value.reshape((1,) * (ndim - value.ndim) + value.shape), 1, -1)

    axes = {0: 0, 1: ndim - 1} | {axis: axis - 1 for axis in range(2, ndim)}
    if name in _ELEMENTWISE_NAMES:
        fits = all(getattr(a, 'ndim', 0) <= ndim for a in arguments if not isinstance(a, ChannelsLast))
        return ([last(a) for a in arguments], True) if fits else None
    if name == 'cat' and len(arguments) == 2:
        return [[last(a) for a in arguments[0]], axes[arguments[1] % ndim]], True
    if name in ('mean', 'sum', 'amax') and len(arguments) > 1 and arguments[1]:
        keep = bool((arguments[2] if len(arguments) > 2 else None) or keywords.get('keepdim'))
        reduced = sorted(axis % ndim for axis in arguments[1])
        # Without its axes of space an image is [B, C] in either layout.
        if keep or reduced == list(range(2, ndim)):
            return [last(arguments[0]), [axes[a] for a in reduced], keep], keep
    if name == 'constant_pad_nd':
        # A pair an axis, from the last axis to the first: here of space, channels and batch.
        pairs = [*arguments[1], *[0] * (2 * ndim - len(arguments[1]))]
        space = 2 * (ndim - 2)
        pairs = [*pairs[space : space + 2], *pairs[:space], *pairs[space + 2 :]]
        return [last(arguments[0]), pairs, *arguments[2:]], True
    return None
