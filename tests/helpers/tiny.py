"""The smallest network that has every kind of layer the training step meets; it compiles in a second."""

from collections.abc import Hashable

import flax.linen as nn

from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import Conv, Linear, global_mean, outputs_of


class TinyNet(nn.Module):
    """Convolution, batch normalisation, ReLU, mean, linear."""

    num_classes: int
    bn_axis: Hashable | None = None
    hypersphere: bool = False
    bn_momentum: float = 0.1
    bn_branch: int | None = None

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = Conv(8, 3, stride=2, padding=1, name='conv')(x)
        bn = BatchNorm(self.bn_axis, self.bn_momentum, branch=self.bn_branch, name='bn')
        x = nn.relu(bn(x, train=train, mask=mask))
        return outputs_of(global_mean(x), Linear(self.num_classes, self.hypersphere, name='linear'))
