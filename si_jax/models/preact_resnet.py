"""PreActResNet-18 for small images: He et al., "Identity Mappings in Deep Residual Networks" (2016).

Public adversarial-training code has four networks under this name. They differ in places that no parameter
name or shape shows, so that weights of one load into another without an error and give wrong outputs; hence
each is a row of `VARIANTS`. Module names are PyTorch's with '_' for '.'.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import (
    ACTIVATIONS,
    Conv,
    Linear,
    global_mean,
    he_fan_in,
    he_fan_out,
    normalise_images,
    outputs_of,
)
from si_jax.outputs import Outputs

Array = jax.Array


class Variant(NamedTuple):
    """What distinguishes the four networks.

    Attributes:
        preactivated_shortcut: Projection shortcuts see ReLU(bn1(x)), not x.
        final_norm: BN and ReLU before pooling; without them features have both signs.
        he_init: N(0, sqrt(2 / fan)) weights and zero biases, not torch's defaults.
        source: Where this network is defined.
    """

    preactivated_shortcut: bool
    final_norm: bool
    he_init: bool
    source: str


VARIANTS = {
    'bag_of_tricks': Variant(True, True, False, 'Bag-of-Tricks-for-AT, robust_overfitting, AWP'),
    'fast_at': Variant(False, True, False, 'locuslab/fast_adversarial 54f7287'),
    'fast_at_2019': Variant(
        False, False, False, 'fast_adversarial before 2019-12-21, RobustBench Wong2020Fast'
    ),
    'gradalign': Variant(
        False, False, True, 'understanding-fast-adv-training, RobustBench Andriushchenko2020Understanding'
    ),
}


class PreActBlock(nn.Module):
    """BN, ReLU and 3x3 convolution, twice; a projection shortcut is a bare 1x1 convolution.

    Attributes:
        preactivated_shortcut: As for `Variant`.
        shortcut: The name of the projection.
        activate: What stands in place of ReLU.
    """

    filters: int
    stride: int
    conv: Any
    norm: Any
    preactivated_shortcut: bool
    shortcut: str
    activate: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y = self.activate(self.norm(name='bn1')(x, train, mask))
        if self.stride != 1 or x.shape[-1] != self.filters:
            source = y if self.preactivated_shortcut else x
            x = self.conv(self.filters, 1, self.stride, name=self.shortcut)(source)
        y = self.conv(self.filters, 3, self.stride, name='conv1')(y)
        y = self.activate(self.norm(name='bn2')(y, train, mask))
        return self.conv(self.filters, 3, name='conv2')(y) + x


class PreActResNet(nn.Module):
    """[B, H, W, C] in [0, 1] -> `Outputs`; four stages of two blocks, 1, 2, 4 and 8 times `width` filters."""

    num_classes: int
    variant: Variant
    width: int = 64
    normalise: str = 'none'
    dtype: Any = None
    bn_axis: Any = None
    hypersphere: bool = False
    activation: str = 'relu'
    bn_momentum: float = 0.1
    bn_branch: int | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False, mask: Array | None = None) -> Outputs:
        conv = partial(Conv, dtype=self.dtype)
        linear = partial(Linear, self.num_classes, self.hypersphere, name='linear')
        if self.variant.he_init:
            conv = partial(conv, kernel_init=he_fan_out)
            linear = partial(linear, kernel_init=he_fan_in, bias_init=nn.initializers.zeros)
        norm = partial(BatchNorm, axis=self.bn_axis, momentum=self.bn_momentum, branch=self.bn_branch)
        activate = ACTIVATIONS[self.activation]
        rest = self.variant.preactivated_shortcut, 'shortcut_0', activate

        x = conv(self.width, 3, name='conv1')(normalise_images(images, self.normalise))
        for stage in range(4):
            for i in range(2):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f'layer{stage + 1}_{i}'
                block = PreActBlock(self.width * 2**stage, stride, conv, norm, *rest, name=name)
                x = block(x, train, mask)
        if self.variant.final_norm:
            x = activate(norm(name='bn')(x, train, mask))
        return outputs_of(global_mean(x), linear())
