"""The layers that all networks are made of, with PyTorch's conventions (the reference code of every method).

Padding is explicit and symmetric, default weights follow torch's distributions, and batch normalisation keeps
torch's momentum and unbiased running variance. Parameters are float32; computation is in the `dtype` of a
layer, or in the common dtype of parameters and inputs if that is None. Statistics, features and logits are
never narrower than float32.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from si_jax.errors import InputError
from si_jax.models.convolution import convolve
from si_jax.outputs import Outputs, inverse_norm

Array = jax.Array
Initializer = Callable[..., Array]  # (key, shape, dtype) -> weights


def _variance_scaling(law: Callable[..., Array], variance: float, fan: str) -> Initializer:
    """`law` draws with variance one; the weights [..., in, out] get `variance` / fan.

    Like `jax.nn.initializers.variance_scaling`, but it draws a flat vector: compiling the initialisation of a
    ResNet-18 on the CPU is nearly all random numbers, and took three times as long with 4-D ones.
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        connections = math.prod(shape) / shape[-1 if fan == 'in' else -2]
        return (law(key, (math.prod(shape),), dtype) * math.sqrt(variance / connections)).reshape(shape)

    return init


def _uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


# torch.nn.Conv2d and torch.nn.Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = _variance_scaling(_uniform, 1 / 3, 'in')
# N(0, sqrt(2 / (k * k * out))): TRADES:models/wideresnet.py, understanding-fast-adv-training:models.py.
he_fan_out = _variance_scaling(jax.random.normal, 2, 'out')
# N(0, sqrt(2 / in)), linear layers of understanding-fast-adv-training:models.py.
he_fan_in = _variance_scaling(jax.random.normal, 2, 'in')


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
    'imagenet': Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'torchvision, robustbench'),
    '2x-1': Normalisation((0.5,), (0.5,), 'hendrycks/pre-training, robustness/adversarial'),
}


# In place of every ReLU. SiLU is x sigmoid(x), softplus log(1 + e^x). Both are smooth: Xie et al.,
# "Smooth Adversarial Training" (2020); Gowal et al. (2020) have SiLU. SiLU takes both signs.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'relu': nn.relu,
    'silu': nn.silu,
    'softplus': nn.softplus,
}


def normalise_images(images: Array, name: str) -> Array:
    """Images [B, H, W, C] in [0, 1], scaled by a row of `NORMALISATIONS`, at least float32.

    Raises:
        InputError: If the images are integers, or their channels are not those of the normalisation.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f'images are {images.dtype}: divide them by their scale (255) to floats in [0, 1] first'
        )
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
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = (self.size - 1) // 2 if self.padding is None else self.padding
        y = convolve(x, kernel, self.stride, padding)
        return y if bias is None else y + bias


class Linear(nn.Module):
    """torch.nn.Linear: [B, F] -> [B, features]; the kernel is [F, features].

    With `hypersphere` it is the last layer of hypersphere embedding: no bias, and weight vectors of length
    one, which training keeps by `unit_kernels`. Given features of length one its outputs are cosines.
    """

    features: int
    hypersphere: bool = False
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel_init, bias = self.kernel_init, None
        if self.hypersphere:
            kernel_init = _unit(kernel_init)
        kernel = self.param('kernel', kernel_init, (x.shape[-1], self.features), jnp.float32)
        if not self.hypersphere:
            bias = _torch_bias(self, self.features, x.shape[-1], self.bias_init)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        # Highest precision: logits must be W^T z + b to rounding, which TF32 or bf16 products are not.
        precision = lax.Precision.HIGHEST if self.dtype is None else None
        y = jnp.dot(x, kernel, precision=precision)
        return y if bias is None else y + bias


def _unit(init: Initializer) -> Initializer:
    def unit(*arguments: Any) -> Array:
        kernel = init(*arguments)
        return kernel * inverse_norm(kernel, axis=0)

    return unit


def unit_kernels(params: Any) -> Any:
    """Parameters whose last layer's weight vectors have length one again; gradients know nothing of it.

    The last layer is found by its form, whatever the network calls it: hypersphere embedding has no bias, so
    it is the one layer whose only parameter is a kernel [F, K].

    Args:
        params: The 'params' of a network made with `Linear(hypersphere=True)`; nested dictionaries.

    Raises:
        InputError: There is no such layer, or there are several.

    Source: Pang et al. (2020), repository ShawnXYang/AT_HE, which overwrites them before each forward pass.
    """
    layers = [path for path, layer in _layers(params) if [*layer] == ['kernel'] and layer['kernel'].ndim == 2]
    if len(layers) != 1:
        found = f'{len(layers)} of them: {", ".join(map("/".join, layers))}' if layers else 'none'
        raise InputError(
            'hypersphere embedding needs exactly one linear layer without bias, the last one, and this '
            f'network has {found}. Make the last layer si_jax.models.layers.Linear(num_classes, '
            'hypersphere=True), and give every other linear layer a bias'
        )

    def unit(tree: Any, path: tuple[str, ...]) -> Any:
        if path:
            return tree | {path[0]: unit(tree[path[0]], path[1:])}
        return tree | {'kernel': tree['kernel'] * inverse_norm(tree['kernel'], axis=0)}

    return unit(params, layers[0])


def _layers(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every dictionary in a tree of parameters, with its path."""
    yield path, tree
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from _layers(branch, (*path, name))


def outputs_of(features: Array, linear: Linear) -> Outputs:
    """The end of every network: features [B, F] -> linear layer -> `Outputs`, at least float32.

    With hypersphere embedding the features are first scaled to length one.
    """
    features = features.astype(at_least_float32(features.dtype))
    if linear.hypersphere:
        features = features * inverse_norm(features, axis=1)
    logits = linear(features)
    return Outputs(logits, features, linear.variables['params']['kernel'])


def global_mean(x: Array) -> Array:
    """Global average pooling, [B, H, W, C] -> [B, C], at least float32."""
    return jnp.mean(x.astype(at_least_float32(x.dtype)), axis=(1, 2))
