"""ATen's pooling and resizing of images as JAX functions of [B, *space, C], as in `layers`.

Source of the signatures: pytorch:aten/src/ATen/native/native_functions.yaml.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from si_jax.errors import InputError
from si_jax.interop.aten.table import Table, per_axis

Array = jax.Array
POOLING = Table()


def _edges(
    x: Array, window: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Any, ceil: bool
) -> list[tuple[int, int]]:
    """Padding of the axes between first and last, before and after."""
    if len(window) != x.ndim - 2:
        raise InputError(f'a pooling of {len(window)} axes needs images with B and C, not shape {x.shape}')
    edges = []
    for size, k, s, p, d in zip(x.shape[1:-1], window, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        free = size + 2 * p - reach
        count = free // s + 1
        # Rounded up there is one window more, unless it would start beyond the image and its left padding.
        if ceil and free % s and count * s < size + p:
            count += 1
        edges.append((p, max(0, (count - 1) * s + reach - size - p)))
    return edges


def _inner(values: Any, outer: Any = 1) -> tuple[Any, ...]:
    return (outer, *values, outer)


@POOLING.add('max_pool2d_with_indices', 'max_pool3d_with_indices')
def _max_pool(
    x: Array,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[Array]:
    stride, padding, dilation = (per_axis(v, len(window)) for v in (stride or window, padding, dilation))
    edges = _edges(x, window, stride, padding, dilation, ceil_mode)
    if set(dilation) != {1}:
        return (_dilated_max_pool(x, window, stride, edges, dilation),)
    return (lax.reduce_window(x, -jnp.inf, lax.max, _inner(window), _inner(stride), _inner(edges, (0, 0))),)


def _dilated_max_pool(
    x: Array, window: Sequence[int], stride: Sequence[int], edges: Any, dilation: Sequence[int]
) -> Array:
    # lax has no derivative of a pooling with dilation.
    x = jnp.pad(x, _inner(edges, (0, 0)), constant_values=-jnp.inf)
    shifted = []
    for place in itertools.product(*map(range, window)):
        index = [slice(None)]
        for size, k, s, d, p in zip(x.shape[1:-1], window, stride, dilation, place, strict=True):
            index.append(slice(p * d, size - (k - 1 - p) * d, s))
        shifted.append(x[tuple(index)])
    return jnp.max(jnp.stack(shifted), 0)


@POOLING.add('avg_pool2d')
def _avg_pool(
    x: Array,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    space = len(window)
    stride, padding = per_axis(stride or window, space), per_axis(padding, space)
    edges = _edges(x, window, stride, padding, (1,) * space, ceil_mode)

    def total(values: Array, edges: Any) -> Array:
        return lax.reduce_window(values, 0.0, lax.add, _inner(window), _inner(stride), _inner(edges, (0, 0)))

    if divisor_override:
        return total(x, edges) / divisor_override
    # The zeros of `padding` count, but not those that rounding up has added beyond them.
    counted = [
        (p, min(p, high)) if count_include_pad else (0, 0)
        for p, (_, high) in zip(padding, edges, strict=True)
    ]
    ones = jnp.pad(jnp.ones((1, *x.shape[1:-1], 1), x.dtype), _inner(counted, (0, 0)), constant_values=1)
    rest = [(low - a, high - b) for (low, high), (a, b) in zip(edges, counted, strict=True)]
    return total(x, edges) / total(ones, rest)


def _along(x: Array, matrices: Sequence[np.ndarray]) -> Array:
    """Multiplies the axes between first and last by one [new, old] matrix each."""
    for axis, matrix in enumerate(matrices, start=1):
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1)), -1, axis)
    return x


def _bins(old: int, new: int) -> list[tuple[int, int]]:
    return [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]


@POOLING.add('_adaptive_avg_pool2d')
def _adaptive_avg_pool(x: Array, shape: Sequence[int]) -> Array:
    if all(size == 1 for size in shape):
        return jnp.mean(x, tuple(range(1, x.ndim - 1)), keepdims=True)
    matrices = []
    for old, new in zip(x.shape[1:-1], shape, strict=True):
        matrix = np.zeros((new, old))
        for row, (start, end) in zip(matrix, _bins(old, new), strict=True):
            row[start:end] = 1 / (end - start)
        matrices.append(matrix)
    return _along(x, matrices)


@POOLING.add('adaptive_max_pool2d')
def _adaptive_max_pool(x: Array, shape: Sequence[int]) -> tuple[Array]:
    for axis, new in enumerate(shape, start=1):
        bins = _bins(x.shape[axis], new)
        parts = [jnp.max(lax.slice_in_dim(x, *ends, axis=axis), axis, keepdims=True) for ends in bins]
        x = jnp.concatenate(parts, axis)
    return (x,)


def _new_sizes(x: Array, sizes: Any, factors: Any) -> list[tuple[int, int, float]]:
    """(old, new, step in the old image for one step in the new one) of each axis between first and last."""
    if sizes is not None:
        return [(old, new, old / new) for old, new in zip(x.shape[1:-1], sizes, strict=True)]
    return [(old, int(old * factor), 1 / factor) for old, factor in zip(x.shape[1:-1], factors, strict=True)]


@POOLING.add('upsample_nearest2d.vec')
def _nearest(x: Array, sizes: Any, factors: Any) -> Array:
    for axis, (old, new, step) in enumerate(_new_sizes(x, sizes, factors), start=1):
        x = jnp.take(x, np.minimum(np.floor(np.arange(new) * step).astype(int), old - 1), axis)
    return x


@POOLING.add('upsample_bilinear2d.vec')
def _bilinear(x: Array, sizes: Any, align_corners: bool, factors: Any) -> Array:
    matrices = []
    for old, new, step in _new_sizes(x, sizes, factors):
        place = (np.arange(new) + 0.5) * step - 0.5
        if align_corners:
            place = np.arange(new) * ((old - 1) / max(new - 1, 1))
        start = np.floor(place).astype(int)
        matrix = np.zeros((new, old))
        for offset, weight in ((0, start + 1 - place), (1, place - start)):
            # A neighbour beyond the edge is the edge.
            np.add.at(matrix, (np.arange(new), np.clip(start + offset, 0, old - 1)), weight)
        matrices.append(matrix)
    return _along(x, matrices)
