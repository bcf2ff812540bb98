"""ResNet-18 and ResNet-50: He et al., "Deep Residual Learning" (2016), for small images with a 3x3 stem.

Layout and initialisation of TRADES:models/resnet.py, which MART and Bag-of-Tricks share. Module names are
PyTorch's with '_' for '.': `layer2_0.shortcut_1.scale` is `layer2.0.shortcut.1.weight`. The variant for
ImageNet has the layout of torchvision:models/resnet.py, whose strides are in the 3x3 convolutions too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import ACTIVATIONS, Conv, Linear, global_mean, normalise_images, outputs_of
from si_jax.outputs import Outputs

Array = jax.Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. `relu_before_sum` is the extra ReLU of GAMA-GAT's networks: a net trained with it
    loads into one without and gives wrong outputs."""

    filters: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    relu_before_sum: bool = False
    activate: Callable[[Array], Array] = nn.relu

    expansion = 1

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y = self.conv(self.filters, 3, self.stride, name='conv1')(x)
        y = self.activate(self.norm(name='bn1')(y, train, mask))
        y = self.conv(self.filters, 3, name='conv2')(y)
        y = self.norm(name='bn2')(y, train, mask)
        if self.relu_before_sum:
            y = self.activate(y)
        return self.activate(y + _shortcut(self, x, train, mask))


class Bottleneck(nn.Module):
    """1x1 to `filters`, 3x3 with the stride, 1x1 to 4 `filters`."""

    filters: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activate: Callable[[Array], Array] = nn.relu

    expansion = 4

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        y = self.activate(self.norm(name='bn1')(self.conv(self.filters, 1, name='conv1')(x), train, mask))
        y = self.conv(self.filters, 3, self.stride, name='conv2')(y)
        y = self.activate(self.norm(name='bn2')(y, train, mask))
        y = self.conv(self.filters * self.expansion, 1, name='conv3')(y)
        y = self.norm(name='bn3')(y, train, mask)
        return self.activate(y + _shortcut(self, x, train, mask))


def _shortcut(block: Any, x: Array, train: bool, mask: Array | None) -> Array:
    filters = block.filters * block.expansion
    if block.stride == 1 and x.shape[-1] == filters:
        return x
    x = block.conv(filters, 1, block.stride, name='shortcut_0')(x)
    return block.norm(name='shortcut_1')(x, train, mask)


class ResNet(nn.Module):
    """[B, H, W, C] in [0, 1] -> `Outputs`; with ReLU features are non-negative.

    Attributes:
        block: `BasicBlock` or `Bottleneck`, perhaps as a partial.
        blocks: Number of blocks in each of the four stages, of 1, 2, 4 and 8 times `width` filters.
        imagenet_stem: Whether a 7x7 convolution and a pooling, of stride 2 each, come first.
    """

    num_classes: int
    block: Callable[..., nn.Module]
    blocks: tuple[int, int, int, int]
    width: int = 64
    normalise: str = 'none'
    dtype: Any = None
    bn_axis: Any = None
    hypersphere: bool = False
    activation: str = 'relu'
    bn_momentum: float = 0.1
    bn_branch: int | None = None
    imagenet_stem: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False, mask: Array | None = None) -> Outputs:
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, axis=self.bn_axis, momentum=self.bn_momentum, branch=self.bn_branch)
        activate = ACTIVATIONS[self.activation]
        size, stride = (7, 2) if self.imagenet_stem else (3, 1)
        x = conv(self.width, size, stride, name='conv1')(normalise_images(images, self.normalise))
        x = activate(norm(name='bn1')(x, train, mask))
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f'layer{stage + 1}_{i}'
                block = self.block(self.width * 2**stage, stride, conv, norm, activate=activate, name=name)
                x = block(x, train, mask)
        return outputs_of(global_mean(x), Linear(self.num_classes, self.hypersphere, name='linear'))
