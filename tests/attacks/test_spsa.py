"""SPSA: the estimate, Adam's trajectory, queries and the early stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks.search import Problem
from si_jax.attacks.spsa import estimate_gradient, spsa
from si_jax.errors import InputError
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from tests.helpers.searches import advance, init, run_search


def keys_of(number, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(number))


def problem_of(images, labels, seed=0):
    labels = jnp.asarray(labels, jnp.int32)
    return Problem(jnp.asarray(images), labels, keys_of(len(images), seed), labels)


def run(search, classifier, problem, threat, chunks=None):
    return run_search(search, problem, threat, chunks, classifier)


def linear(images, keys):
    """Two classes, margin of class 0 a weighted sum of the pixels; weights of both signs."""
    del keys
    flat = images.reshape(len(images), -1)
    weights = jnp.sin(jnp.arange(flat.shape[1]) + 1.0).astype(images.dtype)
    level = (flat - 0.5) @ weights
    return Outputs(jnp.stack([level, jnp.zeros_like(level)], axis=1))


def test_the_estimate_converges_to_the_gradient_of_a_quadratic():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((27, 27)) / 5
    matrix = jnp.asarray(matrix + matrix.T)
    images = rng.random((6, 3, 3, 3))

    def loss(x, labels, keys):
        del labels, keys
        flat = x.reshape(len(x), -1)
        return jnp.einsum('bi,ij,bj->b', flat, matrix, flat) / 2

    exact = (images.reshape(6, -1) @ np.asarray(matrix)).reshape(images.shape)
    labels = jnp.zeros(6, jnp.int32)

    def error(evaluations):
        estimate = jax.jit(
            lambda x, keys: estimate_gradient(loss, x, labels, keys, evaluations=evaluations, radius=0.001)
        )(images, keys_of(6))
        return np.linalg.norm(estimate - exact) / np.linalg.norm(exact)

    errors = {n: error(n) for n in (64, 1024, 16384)}
    # v^T g v has variance (d - 1) |g|^2 over N / 2 pairs: the error is near sqrt(26 / (N / 2)).
    for n, measured in errors.items():
        assert measured == pytest.approx(np.sqrt(26 / (n / 2)), rel=0.25)


def test_evaluations_are_forward_passes_in_antithetic_pairs():
    image = np.full((2, 2, 2, 1), 0.5)
    asked = []

    def loss(x, labels, keys):
        assert len(x) == len(labels) == len(keys)
        asked.append((np.asarray(x), np.asarray(labels)))
        return jnp.zeros(len(x))

    with jax.disable_jit():
        estimate_gradient(
            loss, jnp.asarray(image), jnp.asarray([3, 4]), keys_of(2), evaluations=24, radius=0.01
        )
    points = np.concatenate([x for x, _ in asked])
    labels = np.concatenate([y for _, y in asked])
    assert [np.sum(labels == y) for y in (3, 4)] == [24, 24]
    delta = points - 0.5
    np.testing.assert_allclose(np.abs(delta), 0.01)
    for y in (3, 4):
        np.testing.assert_allclose(delta[labels == y][::2], -delta[labels == y][1::2])
    # Each image has directions of its own, and not one direction only.
    assert not np.array_equal(np.sign(delta[labels == 3]), np.sign(delta[labels == 4]))
    assert len(np.unique(np.sign(delta[labels == 3]).reshape(24, -1), axis=0)) > 8


def test_trajectory_equals_adam_by_hand():
    # With a single pixel the estimate of a smooth loss is its central difference, whatever the signs.
    def curved(images, keys):
        del keys
        level = 1.0 + (images.reshape(-1) - 0.8) ** 2
        return Outputs(jnp.stack([level, jnp.zeros_like(level)], axis=1))

    threat, images = Threat('linf', 0.3), np.asarray([0.2, 0.5, 0.9]).reshape(3, 1, 1, 1)
    problem = problem_of(images, [0, 0, 0])
    search = spsa(evaluations=4, iterations=60)
    start = np.asarray(search.init(curved, problem, threat).inner.point).ravel()
    state = run(search, curved, problem, threat)
    assert not state.fooled.any()
    for i in range(3):
        x, first, second = start[i], 0.0, 0.0
        for t in range(1, 61):
            descent = 2 * (x - 0.8)  # the margin loss is minus the level
            first, second = 0.9 * first + 0.1 * descent, 0.999 * second + 0.001 * descent**2
            x -= 0.01 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            x = np.clip(x, max(images[i].item() - 0.3, 0), min(images[i].item() + 0.3, 1))
        np.testing.assert_allclose(state.inner.point[i].item(), x, atol=1e-7)
    np.testing.assert_allclose(state.inner.point.ravel(), [0.5, 0.8, 0.8], atol=0.03)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_early_stop_and_queries(norm):
    rng = np.random.default_rng(1)
    images = rng.random((12, 4, 4, 3))
    logits = np.asarray(linear(jnp.asarray(images), None).logits)
    labels = logits.argmax(axis=1)
    eps = 0.02 if norm == 'linf' else 0.1
    threat, search = Threat(norm, eps), spsa(evaluations=16, iterations=30)
    problem = problem_of(images, labels)
    state = run(search, linear, problem, threat)
    assert 0 < state.fooled.sum() < 12
    assert np.all(state.queries[~state.fooled] == 1 + 30 * 17)
    weights = np.sin(np.arange(48) + 1.0)  # no image is fooled below its distance from the plane
    dual = np.abs(weights).sum() if norm == 'linf' else np.linalg.norm(weights)
    assert not np.any(np.asarray(state.fooled) & (np.abs(logits[:, 0]) / dual > eps))

    threat.audit(np.asarray(state.found), images, source='spsa')
    predicted = np.asarray(linear(state.found, None).logits).argmax(axis=1)
    np.testing.assert_array_equal(predicted != labels, state.fooled)
    np.testing.assert_array_equal(state.found[~state.fooled], images[~state.fooled])

    # One iteration at a time: each image stops at its first misclassified point.
    now = jax.device_get(init(search, linear, problem, threat))
    for i in range(30):
        wrong = np.asarray(linear(now.inner.point, None).logits).argmax(axis=1) != labels
        np.testing.assert_array_equal(now.fooled, wrong)
        following = jax.device_get(advance(search, linear, problem, threat, now, i, 1))
        np.testing.assert_array_equal(following.queries - now.queries, np.where(wrong, 0, 17))
        np.testing.assert_array_equal(following.inner.point[wrong], now.inner.point[wrong])
        now = following
    np.testing.assert_array_equal(now.fooled, state.fooled)


def test_chunks_and_batches_do_not_matter():
    images = np.random.default_rng(2).random((7, 4, 4, 3))
    labels = np.asarray(linear(jnp.asarray(images), None).logits).argmax(axis=1)
    problem, threat, search = (
        problem_of(images, labels),
        Threat('linf', 0.02),
        spsa(evaluations=8, iterations=12),
    )
    whole = run(search, linear, problem, threat)
    some = run(search, linear, jax.tree.map(lambda a: a[2:3], problem), threat, chunks=[7, 5])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[2:3], rtol=0, atol=1e-12), some, whole)


@pytest.mark.parametrize('evaluations', [0, 7, -2])
def test_odd_evaluations_are_refused(evaluations):
    with pytest.raises(InputError, match=f'evaluations={evaluations} is not a positive even number'):
        spsa(evaluations=evaluations)
