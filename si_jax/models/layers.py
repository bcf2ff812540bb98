"""The layers that all networks are made of, with PyTorch's conventions (the reference code of every method).

Padding is explicit and symmetric, default weights follow torch's distributions, and batch normalisation keeps
torch's momentum and unbiased running variance. Parameters are float32; computation is in the `dtype` of a layer,
or in the common dtype of parameters and inputs if that is None. Statistics, features and logits are never
narrower than float32.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, normal, variance_scaling, zeros  # noqa: F401

from si_jax.errors import InputError
from si_jax.models.convolution import convolve
from si_jax.outputs import Outputs

Array = jax.Array

# torch.nn.Conv2d and torch.nn.Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = variance_scaling(1 / 3, 'fan_in', 'uniform')
# N(0, sqrt(2 / (k * k * out))): TRADES:models/wideresnet.py, understanding-fast-adv-training:models.py.
he_fan_out = variance_scaling(2.0, 'fan_out', 'normal')
# N(0, sqrt(2 / in)), linear layers of understanding-fast-adv-training:models.py.
he_fan_in = variance_scaling(2.0, 'fan_in', 'normal')


class Normalisation(NamedTuple):
    """Input scaling (x - mean) / std, one value a channel or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


NORMALISATIONS: dict[str, Normalisation | None] = {
    'none': None,
    'cifar10': Normalisation(
        (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), 'fast_adversarial:CIFAR10, AT_HE:CIFAR-10'
    ),
    '2x-1': Normalisation((0.5,), (0.5,), 'hendrycks/pre-training, robustness/adversarial'),
}


def normalise_images(images: Array, name: str) -> Array:
    """Images [B, H, W, C] in [0, 1], scaled by a row of `NORMALISATIONS`, at least float32.

    Raises:
        InputError: If the number of channels is not that of the normalisation.
    """
    images = images.astype(at_least_float32(images.dtype))
    row = NORMALISATIONS[name]
    if row is None:
        return images
    if len(row.mean) not in (1, images.shape[-1]):
        raise InputError(
            f'normalise={name!r} is made for {len(row.mean)} channels, the images have {images.shape[-1]}: '
            f"use 'none' or '2x-1'"
        )
    return (images - jnp.asarray(row.mean, images.dtype)) / jnp.asarray(row.std, images.dtype)


def at_least_float32(dtype: Any) -> jnp.dtype:
    """`dtype`, or float32 where that is narrower."""
    return jnp.promote_types(dtype, jnp.float32)


def _torch_bias(module: nn.Module, features: int, fan_in: int, initial: Initializer | None) -> Array:
    def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * fan_in**-0.5

    return module.param('bias', initial or uniform, (features,), jnp.float32)


class Conv(nn.Module):
    """torch.nn.Conv2d: [B, H, W, C] -> [B, H', W', features], zero padding (size - 1) // 2 unless given."""

    features: int
    size: int
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    kernel_init: Initializer = torch_uniform
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = _torch_bias(self, self.features, self.size**2 * x.shape[-1], None)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = (self.size - 1) // 2 if self.padding is None else self.padding
        y = convolve(x, kernel, self.stride, padding)
        return y if bias is None else y + bias


class Linear(nn.Module):
    """torch.nn.Linear: [B, F] -> [B, features]; the kernel is [F, features]."""

    features: int
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = _torch_bias(self, self.features, x.shape[-1], self.bias_init)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        # Highest precision: logits must be W^T z + b to rounding, which TF32 or bf16 products are not.
        precision = lax.Precision.HIGHEST if self.dtype is None else None
        return jnp.dot(x, kernel, precision=precision) + bias


def outputs_of(features: Array, linear: Linear) -> Outputs:
    """The end of every network: features [B, F] -> linear layer -> `Outputs`, at least float32."""
    features = features.astype(at_least_float32(features.dtype))
    logits = linear(features)
    return Outputs(logits, features, linear.variables['params']['kernel'])


def global_mean(x: Array) -> Array:
    """Global average pooling, [B, H, W, C] -> [B, C], at least float32."""
    return jnp.mean(x.astype(at_least_float32(x.dtype)), axis=(1, 2))


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d over real rows and, with `axis`, over all devices.

    In evaluation mode the running statistics normalise. In training mode the mean and biased variance of the real
    rows of the whole batch do; if the collection `batch_stats` is mutable the running statistics move towards
    them (the variance unbiased, as in torch), else they stay as they are (an attack in training mode).

    Statistics of devices are merged by one psum of a vector (count, shifted sum, squares), after Chan et al.,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979): squared deviations from
    the local mean, plus those of the local means. The latter are taken from the running mean, which all devices share,
    so that little cancels. A device, or a batch, without a real row is finite and changes nothing.

    With `axis` the transpose of psum is psum (pmap, or shard_map with check_vma=False): the local loss must be
    sum_local / psum(count), and gradients of parameters must be summed, not averaged, over devices.

    Attributes:
        axis: Name or names of the mapped axes to reduce over; None for this device's rows alone.
        momentum: Weight of the new statistics (torch's convention; Flax calls 1 - 0.1 momentum).
        epsilon: Added to the variance.
    """

    axis: Hashable | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        """[B, ..., C] -> the same shape and dtype; `mask` [B] is True for real rows, None if all are."""
        channels = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)

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
    if axis is None:
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
