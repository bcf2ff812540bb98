"""Batch normalisation with PyTorch's conventions, over real rows only and over all devices."""

from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from si_jax.errors import InputError
from si_jax.models.layers import at_least_float32

Array = jax.Array
BRANCH = 'branch_'  # begins the names of a second set's parameters and statistics


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d over real rows and, with `axis`, over all devices.

    In evaluation mode the running statistics normalise. In training mode the mean and biased variance of the
    real rows of the whole batch do; if the collection `batch_stats` is mutable the running statistics move
    towards them (the variance unbiased, as in torch), else they stay as they are (an attack in training
    mode).

    Statistics of devices are merged by one psum of a vector (count, shifted sum, squares), after Chan et al.,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979): squared deviations
    from the local mean, plus those of the local means. The latter are taken from the running mean, which all
    devices share, so that little cancels. A device, or a batch, without a real row is finite and changes
    nothing.

    With `axis` the transpose of psum is psum (pmap, or shard_map with check_vma=False): the local loss must
    be sum_local / psum(count), and gradients of parameters must be summed, not averaged, over devices.

    Attributes:
        axis: Name or names of the mapped axes to reduce over; None for this device's rows alone.
        momentum: Weight of the new statistics (torch's convention; Flax calls 1 - 0.1 momentum).
        epsilon: Added to the variance.
        branch: None for one set of statistics and affine parameters. Else there are two, of which this one is
            used: 0 the first, 1 the other, whose names begin with `branch_` (AdvProp, Xie et al., 2020).
    """

    axis: Hashable | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    branch: int | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        """[B, ..., C] -> the same shape and dtype; `mask` [B] is True for real rows, None if all are."""
        channels = x.shape[-1:]

        def names(prefix: str) -> tuple[Any, ...]:
            return (
                self.param(f'{prefix}scale', nn.initializers.ones, channels, jnp.float32),
                self.param(f'{prefix}bias', nn.initializers.zeros, channels, jnp.float32),
                self.variable('batch_stats', f'{prefix}mean', jnp.zeros, channels, jnp.float32),
                self.variable('batch_stats', f'{prefix}var', jnp.ones, channels, jnp.float32),
            )

        sets = [names('')] if self.branch is None else [names(''), names(BRANCH)]
        scale, bias, running_mean, running_var = sets[self.branch or 0]
        mean, var = running_mean.value, running_var.value
        wide = x.astype(at_least_float32(x.dtype))
        # Initialisation runs outside of any mapped axis and must leave the statistics at 0 and 1.
        if train and not self.is_initializing():
            count, mean, var = _moments(wide, mask, mean.astype(wide.dtype), self.axis)
            if self.is_mutable_collection('batch_stats'):
                rate = jnp.where(count > 0, self.momentum, 0.0)
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    moved = running.value + rate * (new - running.value)
                    running.value = moved.astype(running.value.dtype)
        y = (wide - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
        # float64 parameters widen float32 images, as everywhere; bf16 activations stay bf16.
        return y.astype(x.dtype if x.dtype.itemsize < 4 else y.dtype)


def _moments(x: Array, mask: Array | None, shift: Array, axis: Hashable | None) -> tuple[Array, Array, Array]:
    """Number of values a channel, mean [C] and biased variance [C] of the real rows of x [B, ..., C]."""
    axes = tuple(range(x.ndim - 1))
    if mask is None:
        real = jnp.ones((), bool)
        rows = jnp.asarray(x.shape[0], x.dtype)
    else:
        if mask.shape != x.shape[:1]:
            raise InputError(f'mask has shape {mask.shape}: it must be {x.shape[:1]}, one entry per image')
        real = mask.astype(bool).reshape(-1, *[1] * (x.ndim - 1))
        rows = jnp.sum(mask, dtype=x.dtype)
    pixels = x[0, ..., 0].size
    count = rows * pixels
    floor = jnp.maximum(count, 1)
    mean = jnp.sum(jnp.where(real, x, 0), axes) / floor
    squares = jnp.sum(jnp.square(jnp.where(real, x - mean, 0)), axes)
    # XLA would keep a sum over one device, and merge nothing across it.
    if axis is None or lax.axis_size(axis) == 1:
        return count, mean, squares / floor

    local = mean - shift
    parts = (count[None], count * local, squares + count * jnp.square(local))
    total = lax.psum(jnp.concatenate(parts), axis)
    count, sums, squares = total[0], *jnp.split(total[1:], 2)
    floor = jnp.maximum(count, 1)
    offset = sums / floor
    var = squares / floor - jnp.square(offset)
    # Rounding can leave a constant channel slightly below 0. Not jnp.maximum: its gradient at 0 is one half.
    return count, shift + offset, jnp.where(var < 0, 0.0, var)
