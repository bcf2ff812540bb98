"""ATen operations on whole arrays as JAX functions: products, reductions, shapes and indices.

The axes are PyTorch's. Source of the signatures: pytorch:aten/src/ATen/native/native_functions.yaml.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from si_jax.interop.aten.table import Table

Array = jax.Array
ARRAYS = Table()

# Operations that are one expression of JAX. What a name leaves out (`*_`) changes nothing here.
ARRAYS |= {
    # Products of matrices.
    'addmm': lambda bias, x, y, beta=1, alpha=1: beta * bias + alpha * (x @ y),
    'bmm': jnp.matmul,
    'mm': jnp.matmul,
    # Along an axis.
    '_log_softmax': lambda x, axis, *_: jax.nn.log_softmax(x, axis),
    '_softmax': lambda x, axis, *_: jax.nn.softmax(x, axis),
    'cumsum': jnp.cumsum,
    # Shapes.
    'cat': jnp.concatenate,
    'flip': lambda x, axes: jnp.flip(x, tuple(axes)),
    'permute': jnp.transpose,
    'repeat': jnp.tile,
    'select': lambda x, axis, index: lax.index_in_dim(x, index % x.shape[axis], axis, keepdims=False),
    'slice': lambda x, *part: x[_part(x, *part)],
    'slice_scatter': lambda x, source, *part: x.at[_part(x, *part)].set(source),
    'split_with_sizes': lambda x, sizes, axis=0: jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis),
    'sym_size': lambda x, axis: x.shape[axis],
    'unsqueeze': jnp.expand_dims,
    'view': lambda x, shape: x.reshape(tuple(shape)),
    # Indices.
    'embedding': lambda weight, index, *_: weight[index],
    'gather': lambda x, axis, index, *_: jnp.take_along_axis(x, index, axis),
    'index': lambda x, indices: x[tuple(slice(None) if index is None else index for index in indices)],
    'index_select': lambda x, axis, index: jnp.take(x, index, axis),
    # New arrays.
    'arange.start_step': lambda start, end, step=1, dtype=None: jnp.arange(start, end, step, dtype=dtype),
    'full': lambda shape, value, dtype=None: jnp.full(tuple(shape), value, dtype),
    'full_like': jnp.full_like,
    # Checks that torch.export leaves in the graph; JAX checks shapes itself.
    '_assert_tensor_metadata': lambda *_, **__: None,
}


def _part(x: Array, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> tuple[slice, ...]:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, end, step)
    return tuple(index)


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


def affine(y: Array, weight: Array | None, bias: Array | None) -> Array:
    """y times the weight plus the bias, where there are any."""
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@ARRAYS.add('native_layer_norm')
def _layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, epsilon: float
) -> tuple[Array]:
    return (affine(standardise(x, tuple(range(-len(shape), 0)), epsilon), weight, bias),)


# Reductions. An absent or empty list of axes means all of them.
def _axes(axes: Any) -> Any:
    return axes if isinstance(axes, int) else tuple(axes) if axes else None


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(x: Array, axes: Any = None, keepdim: bool = False, **dtype: Any) -> Array:
        return function(x, _axes(axes), keepdims=keepdim, **dtype)

    return reduce


def _extreme(position: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """The extreme values along an axis, and where they are."""

    def pick(x: Array, axis: int, keepdim: bool = False) -> tuple[Array, Array]:
        index = jnp.expand_dims(position(x, axis), axis)
        value = jnp.take_along_axis(x, index, axis)
        return (value, index) if keepdim else (value.squeeze(axis), index.squeeze(axis))

    return pick


ARRAYS |= {
    'amax': _reduction(jnp.max),
    'amin': _reduction(jnp.min),
    'any': _reduction(jnp.any),
    'argmax': _reduction(jnp.argmax),
    'max.dim': _extreme(jnp.argmax),
    'mean': _reduction(jnp.mean),
    'min.dim': _extreme(jnp.argmin),
    'prod.dim_int': _reduction(jnp.prod),
    'sum.dim_IntList': _reduction(jnp.sum),
}


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


@ARRAYS.add('topk')
def _topk(x: Array, k: int, axis: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Array, Array]:
    order = jnp.argsort(x, axis, descending=largest, stable=True)
    index = lax.slice_in_dim(order, 0, k, axis=axis % x.ndim)
    return jnp.take_along_axis(x, index, axis), index


@ARRAYS.add('expand')
def _expand(x: Array, shape: Sequence[int], implicit: bool = False) -> Array:
    old = (1,) * (len(shape) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [o if s == -1 else s for s, o in zip(shape, old, strict=True)])


@ARRAYS.add('squeeze.dims')
def _squeeze(x: Array, axes: Any = None) -> Array:
    if axes is None:
        return jnp.squeeze(x)
    axes = [axes] if isinstance(axes, int) else axes
    # An axis that is longer than 1 stays, without an error.
    return jnp.squeeze(x, tuple(axis % x.ndim for axis in axes if x.shape[axis] == 1))
