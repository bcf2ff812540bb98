"""Your own Flax linen network, trained in seconds on handwritten digits and evaluated.

    python -m examples.linen_model

What matters is `classifier`: a function from images [B, H, W, C] in [0, 1] to `si_jax.Outputs`, in evaluation
mode. The rest is a network and a training loop, as you have them already.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import si_jax
from si_jax import data


class Net(nn.Module):
    """A convolution, batch normalisation, a hidden layer of 64 features and a linear layer."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(16, (3, 3), strides=2)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        features = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        # Name the last layer, so that its kernel can be found among the parameters.
        return nn.Dense(10, name='last')(features), features


def train(images, labels, epochs):
    """The parameters and running statistics of a network that was trained on clean images."""
    net, optimiser = Net(), optax.adam(2e-3)
    variables = net.init(jax.random.key(0), images[:1], train=True)
    params, stats, state = variables['params'], variables['batch_stats'], optimiser.init(variables['params'])

    @jax.jit
    def step(params, stats, state, x, y):
        def loss(params):
            variables = {'params': params, 'batch_stats': stats}
            (logits, _), new = net.apply(variables, x, train=True, mutable=['batch_stats'])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(losses), new['batch_stats']

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), stats, state

    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for rows in np.split(order[: len(order) // 100 * 100], len(order) // 100):
            params, stats, state = step(params, stats, state, images[rows], labels[rows])
    return {'params': params, 'batch_stats': stats}


def digits(split):
    """Images [N, 8, 8, 1] in [0, 1] and labels."""
    found = data.load('digits', split)
    return np.float32(found.images) / found.scale, found.labels


def main(epochs=15, examples=397, steps=20):
    """Trains, attacks the first `examples` test images, and returns the result."""
    images, labels = digits('train')
    variables = train(images, labels, epochs)
    kernel = variables['params']['last']['kernel']
    # In evaluation mode: with the statistics of the batch, `evaluate` would refuse the network.
    apply = jax.jit(functools.partial(Net().apply, train=False))

    def classifier(images):
        logits, features = apply(variables, images)
        return si_jax.Outputs(logits, features, kernel)

    images, labels = digits('test')
    return si_jax.evaluate(
        classifier, images[:examples], labels[:examples], attacks='fgsm,pgd,sipgd', eps=0.1, steps=steps
    )


if __name__ == '__main__':
    print(main().table())
