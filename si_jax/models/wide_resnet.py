"""Wide residual networks: Zagoruyko and Komodakis, "Wide Residual Networks" (2016), without dropout.

Layout and initialisation of TRADES:models/wideresnet.py. Its checkpoints hold a second, unused copy of the
first stage (`sub_block1`), which has no place here. Module names are PyTorch's with '_' for '.'.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import (
    ACTIVATIONS,
    Conv,
    Linear,
    global_mean,
    he_fan_out,
    normalise_images,
    outputs_of,
)
from si_jax.models.preact_resnet import PreActBlock
from si_jax.outputs import Outputs

Array = jax.Array


class WideResNet(nn.Module):
    """[B, H, W, C] in [0, 1] -> `Outputs`; with ReLU features are non-negative.

    Its blocks are those of the PreActResNet. Where the number of channels changes (with every stride), ReLU
    and normalisation feed the 1x1 shortcut; else the shortcut is the raw input.

    Attributes:
        depth: 6n + 4, for three stages of n blocks.
        widen: Factor on the filters of the stages, `width` x (1, 2, 4).
        width: Filters of the stem, 16 in the literature.
    """

    num_classes: int
    depth: int
    widen: int
    width: int = 16
    normalise: str = 'none'
    dtype: Any = None
    bn_axis: Any = None
    hypersphere: bool = False
    activation: str = 'relu'
    bn_momentum: float = 0.1
    bn_branch: int | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False, mask: Array | None = None) -> Outputs:
        conv = partial(Conv, kernel_init=he_fan_out, dtype=self.dtype)
        norm = partial(BatchNorm, axis=self.bn_axis, momentum=self.bn_momentum, branch=self.bn_branch)
        activate = ACTIVATIONS[self.activation]
        x = conv(self.width, 3, name='conv1')(normalise_images(images, self.normalise))
        for stage in range(3):
            for i in range((self.depth - 4) // 6):
                filters = self.width * self.widen * 2**stage
                stride = 2 if stage > 0 and i == 0 else 1
                name = f'block{stage + 1}_layer_{i}'
                rest = True, 'convShortcut', activate
                x = PreActBlock(filters, stride, conv, norm, *rest, name=name)(x, train, mask)
        x = activate(norm(name='bn1')(x, train, mask))
        linear = Linear(self.num_classes, self.hypersphere, bias_init=nn.initializers.zeros, name='fc')
        return outputs_of(global_mean(x), linear)
