"""MALT on a linear classifier, where the distance to a boundary is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import evaluate
from si_jax.attacks import malt
from si_jax.threat import Threat

CLASSES, SHAPE = 15, (3, 3, 1)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_distances_on_a_linear_classifier(norm):
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(9, CLASSES)), rng.normal(size=CLASSES)
    weights[:, 4] = weights[:, 2]  # the boundary between the classes 2 and 4 is nowhere
    images, labels = rng.uniform(size=(6, *SHAPE)), np.array([0, 1, 2, 2, 3, 4])
    candidates = np.stack([np.delete(np.arange(CLASSES), label)[:8] for label in labels])
    found = malt.distances(
        lambda x: x.reshape(len(x), -1) @ weights + bias,
        jnp.asarray(images), jnp.asarray(labels), jnp.asarray(candidates), Threat(norm, 0.1).ball,
    )  # fmt: skip
    logits = images.reshape(6, -1) @ weights + bias
    dual = {'linf': 1, 'l2': 2, 'l1': np.inf}[norm]
    for row, (label, others) in enumerate(zip(labels, candidates, strict=True)):
        for column, other in enumerate(others):
            length = np.linalg.norm(weights[:, other] - weights[:, label], dual)
            expected = (logits[row, label] - logits[row, other]) / length if length else np.inf
            assert found[row, column] == pytest.approx(expected, rel=1e-4), (label, other)
    assert np.isinf(found).sum() == 3


def steep(images):
    """Class 0 wins; all others but one are close and hardly move, and the last, far below, rises steeply."""
    level = images.mean(axis=(1, 2, 3))[:, None]
    close = jnp.linspace(-0.1, -0.2, CLASSES - 2) - 1e-3 * level
    return jnp.concatenate([0 * level, close, 40 * (level - 0.66)], axis=1)


def test_the_class_that_rises_steeply_comes_first():
    images = np.random.default_rng(1).uniform(0.5, 0.52, (4, *SHAPE)).astype(np.float32)
    assert np.asarray(steep(jnp.asarray(images))).argsort(axis=1)[:, 0].tolist() == [CLASSES - 1] * 4
    one = 'n_targets=1, choice=malt'
    names = 'apgd-t(steps=5, n_targets=2)', f'apgd-t(steps=5, {one})', f'fab-t(steps=5, {one})'
    result = evaluate(
        steep, images, np.zeros(4, int), attacks=names, eps=0.2, devices=jax.local_devices()[:1]
    )
    assert [result.accuracy[name] for name in names] == [1, 0, 0]
    stage = result.attacks[names[1]].stages[0]
    assert stage['backward_passes'] == stage['forward_passes'] - 4 + 4 * (CLASSES - 1)
    assert result.attacks[names[1]].protocol['stages'][0]['choice'] == 'malt'


def test_on_small_networks_of_many_classes_it_is_no_weaker_at_equal_cost():
    rng = np.random.default_rng(2)
    first, last = rng.normal(size=(36, 24)) / 6, rng.normal(size=(24, 120))
    last *= rng.uniform(0.3, 2, 120)  # some classes rise more steeply than others
    net = lambda x: jax.nn.relu((x.reshape(len(x), -1) - 0.5) @ first) @ last  # noqa: E731
    images = rng.uniform(size=(60, 6, 6, 1)).astype(np.float32)
    labels = np.asarray(net(jnp.asarray(images))).argmax(axis=1)
    names = [f'apgd-t(steps=8, n_targets=2{choice})' for choice in ('', ', choice=malt')]
    found = evaluate(net, images, labels, attacks=names, eps=0.02, devices=jax.local_devices()[:1])
    few, more = (found.accuracy[name] for name in reversed(names))
    assert 0 < few <= more < 1


def test_with_all_targets_every_flag_is_that_of_the_other_choice():
    """The order differs, and each target has the random numbers that it has there."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(9, CLASSES)) * rng.uniform(0.3, 2, CLASSES)
    net = lambda x: jnp.sin(3 * (x.reshape(len(x), -1) - 0.5)) @ weights  # noqa: E731
    images = rng.uniform(size=(60, *SHAPE)).astype(np.float32)
    labels = np.asarray(net(jnp.asarray(images))).argmax(axis=1)
    names = [f'apgd-t(steps=2, n_targets={CLASSES - 1}{choice})' for choice in ('', ', choice=malt')]
    found = evaluate(net, images, labels, attacks=names, eps=0.05, devices=jax.local_devices()[:1])
    np.testing.assert_array_equal(*(found.correct[name] for name in names))
    assert 0.1 < found.accuracy[names[0]] < 0.9
