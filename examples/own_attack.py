"""Your own attacks, beside the library's, on a network of the zoo.

    python -m examples.own_attack

There are two ways. A function gets the classifier and returns adversarial images; an `Attack` record is a
loss that the library's PGD climbs. Either is audited and classified again like all other attacks: one that
leaves the ball, or is not deterministic for its key, is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np

import si_jax
from si_jax import data
from si_jax.objectives import Objective


def momentum(classifier, images, labels, threat, key, steps=20):
    """MI-FGSM (Dong et al., 2018) on cross-entropy: steps along the signs of an average of past gradients."""

    def loss(x):
        log_probabilities = jax.nn.log_softmax(classifier(x).logits)
        return -jnp.sum(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))

    def step(_, carry):
        x, velocity = carry
        gradient = jax.grad(loss)(x)
        size = jnp.mean(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        velocity = velocity + gradient / (size + 1e-12)  # no division by zero where the gradient vanishes
        x = threat.project(x + threat.eps / 10 * jnp.sign(velocity), images)  # into the ball and [0, 1]
        return x, velocity

    # All random numbers come from the key: one for each image.
    start = threat.uniform_start(jax.random.split(key, len(images)), images)
    return jax.lax.fori_loop(0, steps, step, (start, jnp.zeros_like(start)))[0]


def confidence(adversarial, natural, labels, step):
    """[B], to be maximised: the logit of the second class, whatever it is, less that of the label."""
    is_label = jax.nn.one_hot(labels, adversarial.shape[1], dtype=bool)
    others = jnp.where(is_label, -jnp.inf, adversarial)
    return jnp.max(others, axis=1) - jnp.max(jnp.where(is_label, adversarial, -jnp.inf), axis=1)


# The row of PGD with another loss; it runs with the caller's steps, step size and restarts, as `pgd` does.
RECORD = si_jax.ATTACKS['pgd']._replace(objective=Objective(confidence, frozenset({'adv'})))


def main(examples=397, steps=20):
    """Attacks the first `examples` test images, and returns the result."""
    model = si_jax.load_model('zoo:digits-tradessi')
    test = data.load('digits', 'test')
    return si_jax.evaluate(
        model,
        np.float32(test.images[:examples]) / test.scale,
        test.labels[:examples],
        attacks=['pgd', momentum, ('pgd-mine', RECORD)],
        eps=model.config.threat.eps,
        steps=steps,
        batch_size=200,  # a function is traced for each batch: a few large ones are quicker
    )


if __name__ == '__main__':
    print(main().table())
