"""ATen's convolution and normalisations as JAX functions.

`LAYERS` maps the name of an operation to a function of [B, *space, C] where ATen has [B, C, *space]: channels
come last, as in our own networks. The other arguments are ATen's. Convolutions go through
`si_jax.models.convolution` where it can express them, so that attack loops are as fast on the CPU.

Source of the signatures: pytorch:aten/src/ATen/native/native_functions.yaml.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from si_jax.interop.aten.arrays import affine, standardise
from si_jax.interop.aten.table import Table, per_axis
from si_jax.models.convolution import convolve

Array = jax.Array
LAYERS = Table()


@LAYERS.add('convolution')
def _convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    x, weight = x.astype(dtype), weight.astype(dtype)
    space = x.ndim - 2
    stride, padding, dilation = (per_axis(v, space) for v in (stride, padding, dilation))
    if transposed:
        y = _transposed(x, weight, stride, padding, dilation, per_axis(output_padding, space), groups)
    elif space == 2 and groups == 1 and dilation == (1, 1) and stride[0] == stride[1]:
        if padding[0] != padding[1]:
            x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
            padding = (0, 0)
        y = convolve(x, weight.transpose(2, 3, 1, 0), stride[0], padding[0])
    else:
        edges = [(p, p) for p in padding]
        y = _convolve(x, weight, stride, edges, rhs_dilation=dilation, feature_group_count=groups)
    return affine(y, None, bias)


def _convolve(x: Array, weight: Array, stride: Sequence[int], edges: Any, **options: Any) -> Array:
    space = '0123'[: x.ndim - 2]
    layout = (f'N{space}C', f'OI{space}', f'N{space}C')
    return lax.conv_general_dilated(x, weight, stride, edges, dimension_numbers=layout, **options)


def _transposed(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    # [C, O / groups, *window] -> [O, C / groups, *window], mirrored in space.
    window = weight.shape[2:]
    weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    weight = weight.reshape(-1, *weight.shape[2:])
    weight = lax.rev(weight, range(2, weight.ndim))
    edges = []
    for k, p, d, extra in zip(window, padding, dilation, output_padding, strict=True):
        edge = d * (k - 1) - p
        edges.append((edge, edge + extra))
    options = {'lhs_dilation': stride, 'rhs_dilation': dilation, 'feature_group_count': groups}
    return _convolve(x, weight, (1,) * len(window), edges, **options)


# Each normalisation returns a tuple, as in ATen, of which a network in evaluation mode uses the first entry.
@LAYERS.add('_native_batch_norm_legit_no_training')
def _batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    var: Array,
    momentum: float,
    epsilon: float,
) -> tuple[Array]:
    scale = lax.rsqrt(var + epsilon)
    return (affine((x - mean) * (scale if weight is None else scale * weight), None, bias),)


@LAYERS.add('_native_batch_norm_legit.no_stats')
def _instance_norm(
    x: Array, weight: Array | None, bias: Array | None, training: bool, momentum: float, epsilon: float
) -> tuple[Array]:
    # What instance normalisation becomes: statistics of the array that is given, in which B is 1.
    return (affine(standardise(x, tuple(range(x.ndim - 1)), epsilon), weight, bias),)


@LAYERS.add('native_group_norm')
def _group_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    rows: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> tuple[Array]:
    y = standardise(x.reshape(rows, pixels, groups, -1), (1, 3), epsilon)
    return (affine(y.reshape(x.shape), weight, bias),)
