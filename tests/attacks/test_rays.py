"""RayS against a loop of its own, and against the exact distances of a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks.rays import average_distance, nearest, rays
from si_jax.attacks.search import Problem
from si_jax.outputs import Outputs
from si_jax.threat import Threat


def problem_of(images, labels):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(len(images)))
    labels = jnp.asarray(labels, jnp.int32)
    return Problem(jnp.asarray(images), labels, keys, labels)


def run(search, classifier, problem, threat, chunks=None):
    state = jax.jit(lambda p: search.init(classifier, p, threat))(problem)
    advance = jax.jit(
        lambda p, s, first, count: search.advance(classifier, p, threat, s, first, count), static_argnums=3
    )
    done = 0
    for count in chunks or [search.iterations]:
        state, done = advance(problem, state, done, count), done + count
    return state


class Network:
    """Two layers with tanh on 3 x 2 x 3 images, four classes."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.first, self.second = rng.standard_normal((18, 10)), rng.standard_normal((10, 4))

    def __call__(self, images, keys):
        del keys
        return Outputs(jnp.tanh((images.reshape(len(images), -1) - 0.5) @ self.first) @ self.second)

    def predict(self, image):
        return np.argmax(np.tanh((image.reshape(-1) - 0.5) @ self.first) @ self.second)


class OutOfQueriesError(Exception):
    pass


def rays_of_one_image(predict, image, label, limit, tolerance=1e-3):
    """RayS on one image [H, W, C], written from its description: (nearest image, queries)."""
    x = image.transpose(2, 0, 1).ravel()  # channel first
    height, width, channels = image.shape
    root, queries = np.sqrt(x.size), 0

    def back(flat):
        return flat.reshape(channels, height, width).transpose(1, 2, 0)

    def misclassified(v, distance):
        nonlocal queries
        if queries == limit:
            raise OutOfQueriesError
        queries += 1
        return predict(back(np.clip(x + distance * (v / root), 0, 1))) != label

    v, best = np.ones(x.size), np.inf
    level = 0
    try:
        while True:
            size = int(np.ceil(x.size / 2**level))
            for start in range(0, x.size, size):
                flipped = v.copy()
                flipped[start : start + size] *= -1
                if misclassified(flipped, best):
                    low, high = 0.0, min(best, root)
                    try:
                        while True:
                            middle = (low + high) / 2
                            if misclassified(flipped, middle):
                                high = middle
                            else:
                                low = middle
                            if high - low <= tolerance:
                                break
                    finally:
                        if high < best:
                            v, best = flipped, high
            level += 1
    except OutOfQueriesError:
        pass
    return back(np.clip(x + best * (v / root), 0, 1)), queries


@pytest.mark.parametrize('limit', [37, 400])
def test_equals_an_independent_loop(limit):
    network = Network(0)
    images = np.random.default_rng(1).random((10, 3, 2, 3))
    labels = np.array([network.predict(x) for x in images])
    threat = Threat('linf', 0.05)
    state = run(rays(query_limit=limit), network, problem_of(images, labels), threat)
    for i, image in enumerate(images):
        expected, queries = rays_of_one_image(network.predict, image, labels[i], limit)
        assert queries == state.queries[i] == limit
        np.testing.assert_allclose(nearest(jnp.asarray(images), state.inner)[i], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            state.inner.distance[i], np.abs(expected - image).max(), rtol=0, atol=1e-12
        )
    fooled = np.asarray(state.fooled)
    if limit == 400:
        assert 0 < fooled.sum() < 10
    np.testing.assert_array_equal(fooled, np.asarray(state.inner.distance) <= 0.05)
    threat.audit(np.asarray(state.found), images, source='rays')
    for i, image in enumerate(images):
        assert (network.predict(np.asarray(state.found[i])) != labels[i]) == fooled[i]
        if not fooled[i]:
            np.testing.assert_array_equal(state.found[i], image)


def test_exact_distance_of_a_linear_model():
    rng = np.random.default_rng(2)
    weights = rng.standard_normal(27) * rng.uniform(0.1, 1, 27)
    weights -= weights.mean()  # so that the images are near the boundary

    def linear(images, keys):
        del keys
        level = (images.reshape(len(images), -1) - 0.5) @ weights
        return Outputs(jnp.stack([level, jnp.zeros_like(level)], axis=1))

    images = rng.uniform(0.4, 0.6, (8, 3, 3, 3))
    level = np.asarray(linear(jnp.asarray(images), None).logits)[:, 0]
    labels = (level < 0).astype(int)
    exact = np.abs(level) / np.abs(weights).sum()  # no pixel meets a bound on the way
    state = run(
        rays(query_limit=1500, tolerance=1e-7), linear, problem_of(images, labels), Threat('linf', 0.1)
    )
    np.testing.assert_allclose(state.inner.distance, exact, rtol=0, atol=1e-7)
    assert np.all(np.asarray(state.inner.distance) >= exact * (1 - 1e-9))
    assert average_distance(state.inner.distance) == pytest.approx(exact.mean(), abs=1e-7)
    np.testing.assert_array_equal(
        state.inner.signs[0].ravel(), np.sign(weights) * (1 if labels[0] == 1 else -1)
    )


def test_blocks_go_through_channels_rows_and_columns():
    # A classifier that is never wrong: every query is the corner that the attempted sign vector points to.
    images = np.full((1, 2, 3, 2), 0.25)
    asked = []

    def right(x, keys):
        asked.append(np.asarray(x))
        return Outputs(jnp.zeros((len(x), 2)).at[:, 0].set(1))

    problem, search = problem_of(images, [0]), rays(query_limit=25)
    with jax.disable_jit():
        state = search.advance(
            right, problem, Threat('linf', 0.1), search.init(right, problem, Threat('linf', 0.1)), 0, 25
        )
    blocks = [np.flatnonzero(x[0].transpose(2, 0, 1).ravel() == 0) for x in asked]
    expected = []
    for size in (12, 6, 3, 2, 1):  # ceil(12 / 2^l)
        expected += [np.arange(start, start + size) for start in range(0, 12, size)]
    assert len(asked) == 25 and len(expected) == 1 + 2 + 4 + 6 + 12
    for block, wanted in zip(blocks, expected, strict=True):
        np.testing.assert_array_equal(block, wanted)
    # Nothing was found: the original, and the distance of the all-white image as in the public code.
    assert not state.fooled.any()
    np.testing.assert_array_equal(state.found, images)
    np.testing.assert_allclose(state.inner.distance, 0.75)
    assert state.inner.queries == state.queries == 25


def test_white_images_without_a_misclassified_one_are_not_fooled():
    images = np.full((1, 2, 2, 1), 0.99)
    state = run(
        rays(query_limit=20),
        lambda x, keys: Outputs(jnp.zeros((len(x), 2), x.dtype).at[:, 0].set(1)),
        problem_of(images, [0]),
        Threat('linf', 0.1),
    )
    assert state.inner.distance[0] < 0.1 and not state.fooled[0]


def test_misclassified_images_count_in_the_average():
    network = Network(3)
    images = np.random.default_rng(4).random((3, 3, 2, 3))
    labels = np.array([network.predict(x) for x in images])
    labels[0] = (labels[0] + 1) % 4
    # Always wrong: the binary search ends within its tolerance of the original.
    state = run(rays(query_limit=100), network, problem_of(images, labels), Threat('linf', 0.05))
    assert 0 < state.inner.distance[0] <= 1e-3 / np.sqrt(18) and state.fooled[0]
    assert average_distance(state.inner.distance) == pytest.approx(np.mean(np.asarray(state.inner.distance)))
    # The first query was wrong already; the distance was within eps a few halvings later.
    assert state.inner.queries[0] < 15


def test_fooled_only_after_the_last_query_and_chunks_do_not_matter():
    network = Network(5)
    images = np.random.default_rng(6).random((6, 3, 2, 3))
    labels = np.array([network.predict(x) for x in images])
    problem, threat, search = problem_of(images, labels), Threat('linf', 0.2), rays(query_limit=90)
    whole = run(search, network, problem, threat)
    before = run(search, network, problem, threat, chunks=[45])
    assert np.any(before.inner.distance <= 0.2) and not before.fooled.any()
    parts = run(search, network, problem, threat, chunks=[45, 45])
    alone = run(search, network, jax.tree.map(lambda a: a[4:5], problem), threat)
    assert whole.fooled.any()

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

    jax.tree.map(same, parts, whole)
    jax.tree.map(lambda a, b: same(a, np.asarray(b)[4:5]), alone, whole)
    # Queries until success: the distance was still larger one query earlier.
    i = int(np.argmax(np.asarray(whole.fooled)))
    stop = int(whole.inner.queries[i])
    for queries, success in ((stop - 1, False), (stop, True)):
        cut = run(rays(query_limit=queries), network, problem, threat)
        assert bool(cut.fooled[i]) == success
