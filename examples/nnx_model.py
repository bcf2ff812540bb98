"""Your own Flax NNX network, trained in seconds on handwritten digits and evaluated.

    python -m examples.nnx_model

The classifier is a function around the module, which has been put into evaluation mode with `eval()`.
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import si_jax
from si_jax import data


class Net(nnx.Module):
    """A convolution, batch normalisation, a hidden layer of 64 features and a linear layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.hidden = nnx.Linear(256, 64, rngs=rngs)
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def features(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        return nnx.relu(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, images):
        return self.last(self.features(images))


@nnx.jit
def step(net, optimiser, x, y):
    """One step on clean images."""

    def loss(net):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net(x), y))

    optimiser.update(net, nnx.grad(loss)(net))


def train(images, labels, epochs):
    """A network that was trained on clean images, in evaluation mode."""
    net = Net(nnx.Rngs(0))
    optimiser = nnx.Optimizer(net, optax.adam(2e-3), wrt=nnx.Param)
    net.train()
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for rows in np.split(order[: len(order) // 100 * 100], len(order) // 100):
            step(net, optimiser, images[rows], labels[rows])
    net.eval()  # otherwise an image's logits depend on the batch, and `evaluate` refuses the network
    return net


def digits(split):
    """Images [N, 8, 8, 1] in [0, 1] and labels."""
    found = data.load('digits', split)
    return np.float32(found.images) / found.scale, found.labels


def main(epochs=15, examples=397, steps=20):
    """Trains, attacks the first `examples` test images, and returns the result."""
    images, labels = digits('train')
    net = train(images, labels, epochs)

    def classifier(images):
        features = net.features(images)
        return si_jax.Outputs(net.last(features), features, net.last.kernel[...])

    images, labels = digits('test')
    return si_jax.evaluate(
        classifier, images[:examples], labels[:examples], attacks='fgsm,pgd,sipgd', eps=0.1, steps=steps
    )


if __name__ == '__main__':
    print(main().table())
