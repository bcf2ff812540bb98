"""FAB against closed forms and against a loop of its own, step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks.fab import fab
from si_jax.attacks.search import Problem
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from tests.helpers.searches import init, run_search

NORMS = ['linf', 'l2', 'l1']
ORDER = {'linf': np.inf, 'l2': 2, 'l1': 1}
DUAL = {'linf': 1, 'l2': 2, 'l1': np.inf}


def problem_of(images, labels, targets=None, seed=0):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(images)))
    labels = jnp.asarray(labels, jnp.int32)
    return Problem(
        jnp.asarray(images), labels, keys, labels if targets is None else jnp.asarray(targets, jnp.int32)
    )


def run(search, classifier, problem, threat, chunks=None):
    return run_search(search, problem, threat, chunks, classifier)


def length(delta, norm):
    return np.linalg.norm(delta.reshape(len(delta), -1), ORDER[norm], axis=1)


class Network:
    """Two layers with tanh on 4 x 4 x 3 images, four classes; in JAX, and in numpy with its gradient."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.first = rng.standard_normal((48, 12)) / 2
        self.second = rng.standard_normal((12, 4))

    def __call__(self, images, keys):
        del keys
        return Outputs(jnp.tanh((images.reshape(len(images), -1) - 0.5) @ self.first) @ self.second)

    def logits(self, image):
        return np.tanh((image - 0.5) @ self.first) @ self.second

    def gradients(self, image):
        hidden = np.tanh((image - 0.5) @ self.first)
        return (self.first * (1 - hidden**2)) @ self.second  # [48, 4]


def project(point, w, b, norm):
    """The point of the box and the hyperplane <w, u> = b nearest to `point`: bisection, in L1 by turns."""
    gap = w @ point - b
    w = w if gap >= 0 else -w
    if norm == 'l1':
        point, left = point.copy(), abs(gap)
        for i in np.argsort(-np.abs(w)):
            end = 0.0 if w[i] > 0 else 1.0
            gained = min(w[i] * (point[i] - end), left)
            point[i] -= gained / w[i]
            left -= gained
        return point
    direction = np.sign(w) if norm == 'linf' else w
    low, high = 0.0, 1e6
    for _ in range(90):  # down to 1e-21
        middle = (low + high) / 2
        short = w @ (point - np.clip(point - middle * direction, 0, 1)) < abs(gap)
        low, high = (middle, high) if short else (low, middle)
    return np.clip(point - high * direction, 0, 1)


def fab_of_one_image(network, image, label, target, norm, iterations):
    """FAB on one flat image, written from its description: (point, nearest, distance)."""
    x0 = image.copy()
    x1 = image.copy()
    nearest, best = x0, np.inf
    order = ORDER[norm]
    for _ in range(iterations):
        g, gradients = network.logits(x1), network.gradients(x1)
        choice = target
        if target is None:
            away = {
                k: abs(g[k] - g[label]) / np.linalg.norm(gradients[:, k] - gradients[:, label], DUAL[norm])
                for k in range(4)
                if k != label
            }
            choice = min(away, key=away.get)
        w = gradients[:, choice] - gradients[:, label]
        b = w @ x1 - (g[choice] - g[label])
        d1, d2 = project(x1, w, b, norm) - x1, project(x0, w, b, norm) - x0
        a1, a2 = max(np.linalg.norm(d1, order), 1e-8), max(np.linalg.norm(d2, order), 1e-8)
        alpha = min(a1 / (a1 + a2), 0.1)
        x1 = np.clip((1 - alpha) * (x1 + 1.05 * d1) + alpha * (x0 + 1.05 * d2), 0, 1)
        if network.logits(x1).argmax() != label:
            if np.linalg.norm(x1 - x0, order) < best:
                nearest, best = x1, np.linalg.norm(x1 - x0, order)
            x1 = x0 + 0.9 * (x1 - x0)
    return x1, nearest, best


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('targeted', [True, False])
def test_iterates_equal_an_independent_loop(norm, targeted):
    network = Network(0)
    images = np.random.default_rng(1).random((12, 4, 4, 3))
    g = np.stack([network.logits(x.ravel()) for x in images])
    labels = g.argmax(axis=1)
    targets = g.argsort(axis=1)[:, -3]  # the class of rank three, so that the target matters
    threat = Threat(norm, 1e-6)
    state = run(fab(targeted=targeted, iterations=25), network, problem_of(images, labels, targets), threat)
    assert not state.fooled.any()
    np.testing.assert_array_equal(state.found, images)
    state = jax.device_get(state)
    for i, image in enumerate(images):
        target = targets[i] if targeted else None
        point, nearest, distance = fab_of_one_image(network, image.ravel(), labels[i], target, norm, 25)
        np.testing.assert_allclose(state.inner.point[i].ravel(), point, rtol=0, atol=1e-9)
        np.testing.assert_allclose(state.inner.nearest[i].ravel(), nearest, rtol=0, atol=1e-9)
        np.testing.assert_allclose(state.inner.distance[i], distance, rtol=0, atol=1e-9)
    assert np.isfinite(state.inner.distance).all()


def linear_model(images, keys):
    """Logits (-l, l, -1, -2) with l = <w, x> - 1/2 and w = 1/d."""
    del keys
    level = jnp.mean(images, axis=(1, 2, 3)) - 0.5
    return Outputs(jnp.stack([-level, level, jnp.full_like(level, -1), jnp.full_like(level, -2)], axis=1))


def exact_distances(images, norm):
    """The distance to mean(x) = 1/2 inside the box."""
    flat = images.reshape(len(images), -1)
    ends = [project(x, np.full(x.size, 1 / x.size), 0.5, norm) for x in flat]
    return length(np.stack(ends) - flat, norm)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('targeted', [True, False])
def test_distance_of_a_linear_model(norm, targeted):
    rng = np.random.default_rng(2)
    images = rng.random((20, 4, 4, 3)) ** rng.uniform(0.3, 3, (20, 1, 1, 1))
    labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    exact = exact_distances(images, norm)
    problem = problem_of(images, labels, 1 - labels)
    search = fab(targeted=targeted)
    state = run(search, linear_model, problem, Threat(norm, 1e-9))
    assert np.all(state.inner.distance >= exact * (1 - 1e-9))
    assert np.all(state.inner.distance <= 1.25 * exact)

    # At 1.25 times the largest exact distance every image breaks, inside the ball.
    threat = Threat(norm, 1.25 * exact.max())
    state = run(search, linear_model, problem, threat)
    assert state.fooled.all()
    assert np.all(np.argmax(linear_model(state.found, None).logits, axis=1) != labels)
    threat.audit(np.asarray(state.found), images, source='fab')


def test_fooled_means_within_eps():
    network = Network(3)
    images = np.random.default_rng(4).random((30, 4, 4, 3))
    labels = np.asarray(network(jnp.asarray(images), None).logits).argmax(axis=1)
    problem = problem_of(images, labels)
    search = fab(targeted=False)
    free = run(search, network, problem, Threat('linf', 1e-6))
    threat = Threat('linf', float(np.median(free.inner.distance)))
    state = run(search, network, problem, threat)
    # Neither eps nor stopping at the first success changes which distances are reached.
    np.testing.assert_array_equal(state.inner.distance, free.inner.distance)
    np.testing.assert_array_equal(state.fooled, np.asarray(free.inner.distance) <= threat.eps)
    assert 0 < state.fooled.sum() < 30
    np.testing.assert_array_equal(state.found[~state.fooled], images[~state.fooled])
    assert np.all(np.argmax(network(state.found, None).logits, axis=1)[state.fooled] != labels[state.fooled])
    threat.audit(np.asarray(state.found), images, source='fab')
    assert np.all(state.queries[~state.fooled] == 200) and np.all(state.queries[state.fooled] <= 200)


@pytest.mark.parametrize('norm', NORMS)
def test_chunks_and_batches_do_not_matter(norm):
    network = Network(5)
    images = np.random.default_rng(6).random((8, 4, 4, 3))
    labels = np.asarray(network(jnp.asarray(images), None).logits).argmax(axis=1)
    problem, threat = problem_of(images, labels), Threat(norm, 0.2)
    search = fab(targeted=False, random_start=True, iterations=10)
    whole = run(search, network, problem, threat)
    rows = slice(3, 5)
    some = run(search, network, jax.tree.map(lambda a: a[rows], problem), threat, chunks=[7, 3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[rows], rtol=0, atol=1e-10), some, whole)


@pytest.mark.parametrize('norm', NORMS)
def test_random_start_lies_half_way(norm):
    images = np.full((5, 4, 4, 3), 0.5)
    threat = Threat(norm, 0.25)
    search = fab(targeted=True, random_start=True)
    starts = [
        np.asarray(init(search, linear_model, problem_of(images, np.zeros(5), seed=seed), threat).inner.point)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.allclose(starts[0], starts[2])
    np.testing.assert_allclose(length(starts[0] - images, norm), 0.125, rtol=1e-12)
    assert len(np.unique(starts[0].reshape(5, -1)[:, 0])) == 5


def test_two_classes():
    def two(images, keys):
        return Outputs(linear_model(images, keys).logits[:, :2])

    images = np.random.default_rng(7).random((6, 4, 4, 3))
    labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    exact = exact_distances(images, 'linf')
    state = run(fab(targeted=False), two, problem_of(images, labels), Threat('linf', 1.25 * exact.max()))
    assert state.fooled.all()
