"""Networks. Every one maps images [B, H, W, C] in [0, 1] to `Outputs` in one forward pass.

    model = models.create('resnet18', num_classes=10)
    variables = model.init(key, images)
    outputs = model.apply(variables, images)                                  # running statistics
    outputs, updates = model.apply(variables, images, train=True, mask=mask, mutable=['batch_stats'])

`variables` holds 'params' and, for networks with batch normalisation, 'batch_stats'. In training mode without
`mutable` the statistics of the batch are used and the running ones stay. Joined by '.', with '_' read as '.',
the names of modules are those of the PyTorch networks they follow.
"""

import re
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from si_jax.errors import InputError, unknown
from si_jax.models.convolution import chosen_convolution, use_convolution
from si_jax.models.layers import ACTIVATIONS, NORMALISATIONS
from si_jax.models.preact_resnet import VARIANTS as PREACT_VARIANTS
from si_jax.models.preact_resnet import PreActResNet
from si_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from si_jax.models.small_cnn import SmallCNN
from si_jax.models.wide_resnet import WideResNet
from si_jax.outputs import Outputs

__all__ = [
    'ACTIVATIONS', 'ARCHITECTURES', 'DTYPES', 'NORMALISATIONS', 'create', 'from_config', 'predict',
    'use_convolution',
]  # fmt: skip

LARGEST = 100_000  # filters of a layer, or classes
DTYPES = ('bfloat16', 'float32', 'float64')


class Architecture(NamedTuple):
    """A row of the table of networks: variants by name, the first of which is the default."""

    variants: dict[str, Callable[..., nn.Module]]
    batch_norm: bool = True


def _wide(depth: int, widen: int) -> Architecture:
    return Architecture({'standard': partial(WideResNet, depth=depth, widen=widen)})


_resnet18 = partial(ResNet, blocks=(2, 2, 2, 2))
_resnet50 = partial(ResNet, blocks=(3, 4, 6, 3), block=Bottleneck)

ARCHITECTURES = {
    'resnet18': Architecture(
        {
            'standard': partial(_resnet18, block=BasicBlock),
            'gat': partial(_resnet18, block=partial(BasicBlock, relu_before_sum=True)),
        }
    ),
    'resnet50': Architecture({'standard': _resnet50, 'imagenet': partial(_resnet50, imagenet_stem=True)}),
    'preact_resnet18': Architecture(
        {name: partial(PreActResNet, variant=variant) for name, variant in PREACT_VARIANTS.items()}
    ),
    'wrn_28_10': _wide(28, 10),
    'wrn_34_10': _wide(34, 10),
    'small_cnn': Architecture({'standard': SmallCNN}, batch_norm=False),
}


def create(
    arch: str,
    *,
    num_classes: int,
    width: int | None = None,
    variant: str | None = None,
    normalise: str = 'none',
    dtype: Any = None,
    bn_axis: Hashable | None = None,
    hypersphere: bool = False,
    activation: str = 'relu',
    bn_momentum: float = 0.1,
    bn_branch: int | None = None,
) -> nn.Module:
    """A network by name.

    Args:
        arch: A row of `ARCHITECTURES`, or `wrn_<depth>_<widen>` with depth 6n + 4.
        num_classes: Number of classes.
        width: Filters of the first layer; None for the literature's (64; WRN and the small net 16). All
            other widths scale with it.
        variant: One of the architecture's variants; None for its first.
        normalise: A row of `NORMALISATIONS`, applied to the images inside of the network.
        dtype: What the convolutions compute in, one of `DTYPES`; None for that of parameters and images.
            Parameters, statistics, features and logits stay float32 under 'bfloat16'.
        bn_axis: Mapped axis (or axes) over which batch normalisation is synchronised, and the convention
            for losses and gradients that goes with it: see `batch_norm.BatchNorm`.
        hypersphere: Whether the logits are the cosines between features and weights (Pang et al., 2020): no
            bias, weight vectors of length one, which training has to keep so.
        activation: A row of `ACTIVATIONS`, in place of every ReLU.
        bn_momentum: Weight of a batch in the running statistics, in (0, 1] (torch's convention).
        bn_branch: Of batch normalisation with two sets of statistics and affine parameters the one that is
            used, 0 or 1; None where there is one set.

    Raises:
        InputError: For an unknown name, or a size that no network has.
    """
    architecture = _find(arch)
    variant = next(iter(architecture.variants)) if variant is None else variant
    if variant not in architecture.variants:
        raise unknown(f'variant of {arch}', variant, architecture.variants)
    if normalise not in NORMALISATIONS:
        raise unknown('normalisation', normalise, NORMALISATIONS)
    if activation not in ACTIVATIONS:
        raise unknown('activation', activation, ACTIVATIONS)
    if not 0 < bn_momentum <= 1:
        raise InputError(f'bn_momentum={bn_momentum:g} is not in (0, 1]: torch and most papers have 0.1')
    options: dict[str, Any] = {'num_classes': _positive('num_classes', num_classes), 'normalise': normalise}
    if width is not None:
        options['width'] = _positive('width', width)
    if dtype is not None:
        options['dtype'] = _dtype(dtype)
    if architecture.batch_norm:
        options |= {'bn_axis': bn_axis, 'bn_momentum': bn_momentum, 'bn_branch': bn_branch}
    elif bn_branch is not None:
        raise InputError(
            f'model.bn_branches: {arch} has no batch normalisation of which there could be two sets; use a '
            'network that has it, such as resnet18'
        )
    if hypersphere:
        options['hypersphere'] = True
    if activation != 'relu':
        options['activation'] = activation
    return architecture.variants[variant](**options)


def from_config(
    config: ConfigDict,
    *,
    num_classes: int,
    hypersphere: bool = False,
    bn_axis: Hashable | None = None,
    dtype: str | None = None,
) -> nn.Module:
    """The network that the section `model` of a config describes; an empty field is the default of `create`.

    Args:
        config: With arch, width, variant and normalise; activation, bn_momentum and bn_branches where it has
            them (of two sets the first is used); dtype
            and sync_bn where training asks for them.
        num_classes: Number of classes.
        hypersphere: As for `create`; the defense asks for it.
        bn_axis: The mapped axis of a training step, None outside of one. It is used if the config asks for
            synchronised batch normalisation.
        dtype: 'float32' for a network that is evaluated, whatever it was trained in; None for the config's.

    Raises:
        InputError: As `create`.
    """
    dtype = config.dtype if dtype is None else dtype
    return create(
        config.arch,
        num_classes=num_classes,
        width=config.width or None,
        variant=config.variant or None,
        normalise=config.normalise,
        dtype=None if dtype == 'float32' else dtype,
        bn_axis=None if bn_axis is None or not config.sync_bn else bn_axis,
        hypersphere=hypersphere,
        activation=config.get('activation', 'relu'),
        bn_momentum=config.get('bn_momentum', 0.1),
        bn_branch=0 if config.get('bn_branches') else None,
    )


def predict(network: nn.Module, variables: Any, images: jax.Array) -> Outputs:
    """What a network returns for images [B, H, W, C], by its running statistics.

    It is compiled as one program for each number of images. Operation by operation, as `network.apply` runs
    outside of `jax.jit`, 18 layers are some 90 programs.
    """
    return _predict(network, chosen_convolution(), variables, images)


@partial(jax.jit, static_argnums=(0, 1))
def _predict(network: nn.Module, kind: str, variables: Any, images: jax.Array) -> Outputs:
    with use_convolution(kind):
        return network.apply(variables, images)  # type: ignore[return-value]


def _find(arch: str) -> Architecture:
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    match = re.fullmatch(r'wrn_([1-9]\d*)_([1-9]\d*)', str(arch))
    if not match:
        raise unknown('architecture', arch, [*ARCHITECTURES, 'wrn_<depth>_<widen>'])
    if max(map(len, match.groups())) > 4:
        raise InputError(f'{arch[:40]} is larger than wrn_9994_9999: did you mean wrn_34_10?')
    depth, widen = map(int, match.groups())
    if depth < 10 or (depth - 4) % 6:
        near = max(10, 6 * round((depth - 4) / 6) + 4)
        raise InputError(f'{arch}: depth {depth} is not 6n + 4 with n >= 1: did you mean wrn_{near}_{widen}?')
    return _wide(depth, widen)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'{name}={value!r} is not a positive whole number')
    if value > LARGEST:
        raise InputError(f'{name}={value} is above {LARGEST}: no network is that wide')
    return value


def _dtype(dtype: Any) -> jnp.dtype:
    name = jnp.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name not in DTYPES:
        raise unknown('dtype', name, DTYPES)
    return jnp.dtype(name)
