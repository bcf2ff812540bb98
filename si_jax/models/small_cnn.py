"""A small convolutional network without batch normalisation, for digits, tests and quick experiments."""

from typing import Any

import flax.linen as nn
import jax

from si_jax.models.layers import ACTIVATIONS, Conv, Linear, normalise_images, outputs_of
from si_jax.outputs import Outputs

Array = jax.Array


class SmallCNN(nn.Module):
    """[B, H, W, C] in [0, 1] -> `Outputs`; an own design, it is in no paper.

    Three 3x3 convolutions of `width` x (1, 2, 4) filters, the last two with stride 2, and a layer of 8
    `width` features, all with ReLU or what stands in its place. It is flattened, not pooled: its parameters
    belong to one image size.
    """

    num_classes: int
    width: int = 16
    normalise: str = 'none'
    dtype: Any = None
    hypersphere: bool = False
    activation: str = 'relu'

    @nn.compact
    def __call__(self, images: Array, train: bool = False, mask: Array | None = None) -> Outputs:
        del train, mask  # No layer here depends on the batch; the signature is that of all models.
        activate = ACTIVATIONS[self.activation]
        x = normalise_images(images, self.normalise)
        for i, stride in enumerate((1, 2, 2)):
            x = Conv(self.width * 2**i, 3, stride, use_bias=True, dtype=self.dtype, name=f'conv{i + 1}')(x)
            x = activate(x)
        x = x.reshape(x.shape[0], -1)
        features = activate(Linear(8 * self.width, dtype=self.dtype, name='hidden')(x))
        return outputs_of(features, Linear(self.num_classes, self.hypersphere, name='linear'))
