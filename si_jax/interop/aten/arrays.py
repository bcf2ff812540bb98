"""ATen operations on whole arrays as JAX functions: products, reductions, shapes and indices.

The axes are PyTorch's. Source of the signatures: pytorch:aten/src/ATen/native/native_functions.yaml.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from si_jax.interop.aten.table import Table

Array = jax.Array
ARRAYS = Table()

# Products of matrices.
ARRAYS |= {'bmm': jnp.matmul, 'mm': jnp.matmul}


@ARRAYS.add('addmm')
def _addmm(bias: Array, x: Array, y: Array, beta: Any = 1, alpha: Any = 1) -> Array:
    return beta * bias + alpha * (x @ y)


@ARRAYS.add('constant_pad_nd')
def _constant_pad(x: Array, padding: Sequence[int], value: Any = 0) -> Array:
    pairs = list(zip(padding[::2], padding[1::2], strict=True))
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    # lax.pad crops where the padding is negative, as ATen does.
    return lax.pad(x, jnp.asarray(value, x.dtype), [(low, high, 0) for low, high in pairs])


def standardise(x: Array, axes: Any, epsilon: float) -> Array:
    """x with mean 0 and variance 1 over the axes, the variance with `epsilon` added."""
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + epsilon)


@ARRAYS.add('native_layer_norm')
def _layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, epsilon: float
) -> tuple[Array]:
    y = standardise(x, tuple(range(-len(shape), 0)), epsilon)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias,)


@ARRAYS.add('_softmax')
def _softmax(x: Array, axis: int, half_to_float: bool = False) -> Array:
    return jax.nn.softmax(x, axis)


@ARRAYS.add('_log_softmax')
def _log_softmax(x: Array, axis: int, half_to_float: bool = False) -> Array:
    return jax.nn.log_softmax(x, axis)


# Reductions. An absent or empty list of axes means all of them.
def _axes(axes: Any) -> Any:
    return axes if isinstance(axes, int) else tuple(axes) if axes else None


@ARRAYS.add('sum.dim_IntList')
def _sum(x: Array, axes: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    return jnp.sum(x, _axes(axes), dtype, keepdims=keepdim)


@ARRAYS.add('mean', 'mean.dim')
def _mean(x: Array, axes: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    return jnp.mean(x, _axes(axes), dtype, keepdims=keepdim)


@ARRAYS.add('prod.dim_int')
def _prod(x: Array, axis: int, keepdim: bool = False, dtype: Any = None) -> Array:
    return jnp.prod(x, axis, dtype, keepdims=keepdim)


@ARRAYS.add('amax')
def _amax(x: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return jnp.max(x, _axes(axes), keepdims=keepdim)


@ARRAYS.add('amin')
def _amin(x: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return jnp.min(x, _axes(axes), keepdims=keepdim)


@ARRAYS.add('any')
def _any(x: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return jnp.any(x, _axes(axes), keepdims=keepdim)


@ARRAYS.add('argmax')
def _argmax(x: Array, axis: int | None = None, keepdim: bool = False) -> Array:
    return jnp.argmax(x, axis, keepdims=keepdim)


def _picked(x: Array, index: Array, axis: int, keepdim: bool) -> tuple[Array, Array]:
    index = jnp.expand_dims(index, axis)
    value = jnp.take_along_axis(x, index, axis)
    return (value, index) if keepdim else (value.squeeze(axis), index.squeeze(axis))


@ARRAYS.add('max.dim')
def _max(x: Array, axis: int, keepdim: bool = False) -> tuple[Array, Array]:
    return _picked(x, jnp.argmax(x, axis), axis, keepdim)


@ARRAYS.add('min.dim')
def _min(x: Array, axis: int, keepdim: bool = False) -> tuple[Array, Array]:
    return _picked(x, jnp.argmin(x, axis), axis, keepdim)


@ARRAYS.add('var.correction')
def _var(x: Array, axes: Any = None, correction: Any = 1, keepdim: bool = False) -> Array:
    return jnp.var(x, _axes(axes), ddof=1 if correction is None else correction, keepdims=keepdim)


@ARRAYS.add('var_mean.correction')
def _var_mean(x: Array, axes: Any = None, correction: Any = 1, keepdim: bool = False) -> tuple[Array, Array]:
    return _var(x, axes, correction, keepdim), jnp.mean(x, _axes(axes), keepdims=keepdim)


@ARRAYS.add('linalg_vector_norm')
def _vector_norm(
    x: Array, order: Any = 2, axes: Any = None, keepdim: bool = False, dtype: Any = None
) -> Array:
    x, axes = jnp.asarray(x, dtype), _axes(axes)
    if order != 2:
        if math.isinf(order):
            return (jnp.max if order > 0 else jnp.min)(jnp.abs(x), axes, keepdims=keepdim)
        return jnp.sum(jnp.abs(x) ** order, axes, keepdims=keepdim) ** (1 / order)
    square = jnp.sum(x * x, axes, keepdims=keepdim)
    # The root of a safe number, so that the gradient at the zero vector is 0 and not NaN.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


@ARRAYS.add('cumsum')
def _cumsum(x: Array, axis: int, dtype: Any = None) -> Array:
    return jnp.cumsum(x, axis, dtype)


@ARRAYS.add('topk')
def _topk(x: Array, k: int, axis: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Array, Array]:
    order = jnp.argsort(x, axis, descending=largest, stable=True)
    index = lax.slice_in_dim(order, 0, k, axis=axis % x.ndim)
    return jnp.take_along_axis(x, index, axis), index


# Shapes.
@ARRAYS.add('view')
def _view(x: Array, shape: Sequence[int]) -> Array:
    return x.reshape(tuple(shape))


@ARRAYS.add('expand')
def _expand(x: Array, shape: Sequence[int], implicit: bool = False) -> Array:
    old = (1,) * (len(shape) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [o if s == -1 else s for s, o in zip(shape, old, strict=True)])


@ARRAYS.add('permute')
def _permute(x: Array, axes: Sequence[int]) -> Array:
    return jnp.transpose(x, axes)


@ARRAYS.add('squeeze.dims')
def _squeeze(x: Array, axes: Any = None) -> Array:
    if axes is None:
        return jnp.squeeze(x)
    axes = [axes] if isinstance(axes, int) else axes
    # An axis that is longer than 1 stays, without an error.
    return jnp.squeeze(x, tuple(axis % x.ndim for axis in axes if x.shape[axis] == 1))


@ARRAYS.add('unsqueeze')
def _unsqueeze(x: Array, axis: int) -> Array:
    return jnp.expand_dims(x, axis)


@ARRAYS.add('repeat')
def _repeat(x: Array, times: Sequence[int]) -> Array:
    return jnp.tile(x, times)


@ARRAYS.add('cat')
def _cat(parts: Sequence[Array], axis: int = 0) -> Array:
    return jnp.concatenate(parts, axis)


@ARRAYS.add('split_with_sizes')
def _split_with_sizes(x: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis)


@ARRAYS.add('flip')
def _flip(x: Array, axes: Sequence[int]) -> Array:
    return jnp.flip(x, tuple(axes))


@ARRAYS.add('slice')
def _slice(x: Array, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, end, step)
    return x[tuple(index)]


@ARRAYS.add('select')
def _select(x: Array, axis: int, index: int) -> Array:
    return lax.index_in_dim(x, index % x.shape[axis], axis, keepdims=False)


@ARRAYS.add('slice_scatter')
def _slice_scatter(
    x: Array, source: Array, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, end, step)
    return x.at[tuple(index)].set(source)


# Indices.
@ARRAYS.add('index')
def _index(x: Array, indices: Sequence[Any]) -> Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


@ARRAYS.add('index_select')
def _index_select(x: Array, axis: int, index: Array) -> Array:
    return jnp.take(x, index, axis)


@ARRAYS.add('gather')
def _gather(x: Array, axis: int, index: Array, sparse_grad: bool = False) -> Array:
    return jnp.take_along_axis(x, index, axis)


@ARRAYS.add('embedding')
def _embedding(weight: Array, index: Array, *ignored: Any) -> Array:
    return weight[index]


# New arrays.
@ARRAYS.add('full')
def _full(shape: Sequence[int], value: Any, dtype: Any = None) -> Array:
    return jnp.full(tuple(shape), value, dtype)


@ARRAYS.add('full_like')
def _full_like(x: Array, value: Any, dtype: Any = None) -> Array:
    return jnp.full_like(x, value, dtype)


@ARRAYS.add('arange.start_step')
def _arange_start(start: Any, end: Any, step: Any = 1, dtype: Any = None) -> Array:
    return jnp.arange(start, end, step, dtype=dtype)


@ARRAYS.add('sym_size')
def _sym_size(x: Array, axis: int) -> int:
    return x.shape[axis]


@ARRAYS.add('_assert_tensor_metadata')
def _nothing(*ignored: Any, **also_ignored: Any) -> None:
    """Checks that torch.export leaves in the graph; shapes are checked by JAX."""
