"""The smallest network that has every kind of layer the training step meets; it compiles in a second."""

from collections.abc import Hashable

import flax.linen as nn

from si_jax.models import Architecture
from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import ACTIVATIONS, Conv, Linear, global_mean, normalise_images, outputs_of


class TinyNet(nn.Module):
    """Convolution, batch normalisation, ReLU or what stands in its place, mean, linear."""

    num_classes: int
    bn_axis: Hashable | None = None
    hypersphere: bool = False
    bn_momentum: float = 0.1
    bn_branch: int | None = None
    width: int = 8
    normalise: str = 'none'
    activation: str = 'relu'

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = Conv(self.width, 3, stride=2, padding=1, name='conv')(normalise_images(x, self.normalise))
        bn = BatchNorm(self.bn_axis, self.bn_momentum, branch=self.bn_branch, name='bn')
        x = ACTIVATIONS[self.activation](bn(x, train=train, mask=mask))
        return outputs_of(global_mean(x), Linear(self.num_classes, self.hypersphere, name='linear'))


ROW = Architecture({'standard': TinyNet})  # for `models.ARCHITECTURES`, so that a config can name it
