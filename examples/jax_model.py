"""Your own network in plain JAX, trained in seconds on handwritten digits and evaluated.

    python -m examples.jax_model

The classifier returns logits alone. For the SI attack, which needs the features and the kernel of the last
linear layer, `evaluate` finds both in the traced function; if it could not, it would say why.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import si_jax
from si_jax import data


def initial(key, sizes=(64, 128, 10)):
    """Weights and biases of a perceptron."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(one, (n, m)) * (2 / n) ** 0.5, jnp.zeros(m))
        for one, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


def logits(params, images):
    """[B, H, W, C] in [0, 1] -> [B, 10]."""
    x = images.reshape(len(images), -1)
    for weights, bias in params[:-1]:
        x = jax.nn.relu(x @ weights + bias)
    weights, bias = params[-1]
    return x @ weights + bias


def train(images, labels, epochs):
    """The parameters of a network that was trained on clean images."""
    optimiser, params = optax.adam(2e-3), initial(jax.random.key(0))
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y))

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for rows in np.split(order[: len(order) // 100 * 100], len(order) // 100):
            params, state = step(params, state, images[rows], labels[rows])
    return params


def digits(split):
    """Images [N, 8, 8, 1] in [0, 1] and labels."""
    found = data.load('digits', split)
    return np.float32(found.images) / found.scale, found.labels


def main(epochs=15, examples=397, steps=20):
    """Trains, attacks the first `examples` test images, and returns the result."""
    images, labels = digits('train')
    params = train(images, labels, epochs)
    images, labels = digits('test')
    return si_jax.evaluate(
        lambda x: logits(params, x),
        images[:examples],
        labels[:examples],
        attacks='fgsm,pgd,sipgd',
        eps=0.1,
        steps=steps,
    )


if __name__ == '__main__':
    print(main().table())
