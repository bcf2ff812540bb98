"""Clean images tell of outputs that are no logits, of networks that have collapsed, and of wrong inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import audit, evaluate
from si_jax.evaluation import sanity
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)
LOGITS = np.asarray(NET(jnp.asarray(IMAGES)).logits)


def warnings(classifier, images=IMAGES, labels=LABELS):
    settings = {'attacks': 'fgsm', 'eps': 0.01, 'devices': jax.local_devices()[:1]}
    return evaluate(classifier, images, labels, **settings).warnings


@pytest.mark.parametrize(
    ('squash', 'words'),
    [
        (jax.nn.softmax, 'look like probabilities'),
        (lambda g: jax.nn.softmax(4 * g.astype('float16')), 'look like probabilities'),
        (lambda g: jax.nn.sigmoid(2 * g), 'look like a sigmoid'),
        (lambda g: 100 * jax.nn.softmax(3 * g), 'each row sums to 100'),
        (lambda g: jax.nn.softmax(g) - 0.01, 'each row sums to 0.96'),
    ],
)
def test_outputs_that_are_bounded(squash, words):
    found = warnings(lambda x: squash(NET(x).logits))[0]
    assert words in found and 'return the logits before the' in found


@pytest.mark.parametrize(
    'logits',
    [
        LOGITS,
        1e-3 * LOGITS,
        LOGITS - LOGITS.mean(axis=1, keepdims=True),
        np.stack([-LOGITS[:, 0], LOGITS[:, 0]], axis=1) / 2,  # what one output is to be turned into
        np.stack([0.1 - LOGITS[:, 0], LOGITS[:, 0]], axis=1),
        np.log(np.asarray(jax.nn.softmax(LOGITS))),
        np.maximum(LOGITS, 0),
        LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True),
        np.asarray([[0.2, 0.7]]),
        np.zeros((40, 4)),
    ],
)
def test_honest_logits(logits):
    assert sanity.outputs(logits) == []


def collapsing(x):
    """Class 3 for every image, with logits that move."""
    return NET(x)._replace(logits=NET(x).logits + 12 * jnp.eye(4)[3])


def test_one_answer_for_all_images():
    share = int(np.sum(LABELS == 3))
    words = f"every image gets class 3 (40 of 40); the accuracy is that class's share ({share} of 40,"
    assert words in warnings(collapsing)[0]
    report = audit(collapsing, IMAGES, LABELS, eps=0.01)
    (check,) = [one for one in report.checks if one.name == 'clean']
    assert check.outcome == 'fail' and words in check.words
    assert not any('stuck' in one.words for one in report.checks)
    # All images of one class, and copies of one image, are no sign of it.
    ours = LABELS == 3
    assert warnings(collapsing, IMAGES[ours], LABELS[ours]) == []
    copies, wrong = np.repeat(IMAGES[:1], 12, axis=0), np.full(12, 1 if LABELS[0] != 1 else 2)
    assert warnings(NET, copies, wrong) == []


def test_the_same_logits_for_all_images():
    def constant(x):
        return jnp.broadcast_to(jnp.arange(4.0, dtype=x.dtype), (len(x), 4))

    assert 'the same logits for every image' in ' '.join(warnings(constant))
    assert warnings(lambda x: NET(x).logits, np.repeat(IMAGES[:1], 6, axis=0), np.repeat(LABELS[:1], 6)) == []


def test_inputs_on_another_scale():
    """A network for pixels from 0 to 255 gets them in [0, 1]; then the remedy is followed."""

    def for_bytes(x):
        return NET(x / 255)

    labels = np.argmax(LOGITS, axis=1)
    (found,) = warnings(for_bytes, labels=np.where(labels == np.argmax(NET.b), (labels + 1) % 4, labels))
    assert 'another scale' in found
    assert warnings(lambda x: for_bytes(255 * x), labels=labels) == []


@pytest.mark.parametrize(
    ('right', 'count', 'classes', 'warned'),
    [
        (0, 40, 10, True),
        (0, 1, 10, False),
        (0, 12, 10, True),
        (100, 1000, 10, True),
        (250, 1000, 10, False),
        (52, 100, 2, False),
        (520, 1000, 2, True),
        (700, 1000, 2, False),
        (1, 100, 100, True),
        (5, 100, 100, False),
        (100, 10000, 100, True),
        (300, 10000, 100, False),
        (3, 5, 4, False),
    ],
)
def test_when_an_accuracy_is_chance(right, count, classes, warned):
    found = sanity.chance(right, count, classes)
    assert bool(found) == warned
    assert not warned or f'{right} of {count}' in found[0]


@pytest.mark.parametrize(
    'bound',
    [
        lambda g: jnp.tanh(4 * g),
        lambda g: 10 * jax.nn.sigmoid(6 * g) - 5,
        lambda g: 20 * jnp.tanh(6 * g) + 3,
        lambda g: 100 * (jax.nn.softmax(8 * g) - 0.25),
    ],
)
def test_outputs_with_bounds_of_their_own(bound):
    found = warnings(lambda x: bound(NET(x).logits))[0]
    assert 'look bounded, as by a sigmoid, tanh or softmax' in found and 'return the logits before' in found


@pytest.mark.parametrize('constant', [-1e4, -1e9, float(np.finfo(np.float32).min), 1e9])
def test_a_masked_class_is_no_bound(constant):
    centred = LOGITS - LOGITS.mean(axis=1, keepdims=True)
    for logits in (LOGITS, centred, centred + 1e6):
        assert sanity.outputs(np.append(logits, np.full((len(logits), 1), constant), axis=1)) == []
