"""The arithmetic of the L1 ball, against bisections in float64, the conditions of optimality, and sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import l1
from si_jax.threat import BALLS, Threat

EPS = {'linf': 0.1, 'l2': 0.5, 'l1': 3.0}


def cases(rng, count, size, dtype):
    """Images (some with all pixels 0 or 1, some gray), points (dense, sparse, equal moves) and radii."""
    centre = rng.uniform(size=(count, size))
    centre[::5] = np.round(centre[::5])
    centre[3::10] = 0.5
    y = rng.normal(size=(count, size)) * 10.0 ** rng.uniform(-3, 1, (count, 1))
    y[1::3] *= rng.uniform(size=y[1::3].shape) < 0.05
    y[2::9] = np.sign(y[2::9]) * 0.3
    # From a thousandth of what there is room for to beyond it.
    eps = np.abs(y).sum(axis=1).clip(1e-3, size) * 10.0 ** rng.uniform(-3, 0.3, count)
    centre = centre.astype(dtype)
    return (centre + y).astype(dtype), centre, eps.clip(1e-3, size).astype(dtype)


def by_bisection(images, centre, eps):
    """The projections in float64: 70 halvings, below what its digits tell apart."""
    y = images.astype(np.float64) - centre
    room = np.minimum(np.abs(y), np.where(y > 0, 1 - centre.astype(np.float64), centre))
    low, high = np.zeros((len(y), 1)), np.abs(y).max(axis=1, keepdims=True)
    high = np.where(room.sum(axis=1) <= eps, 0, high[:, 0])[:, None]
    for _ in range(70):
        middle = (low + high) / 2
        inside = np.clip(np.abs(y) - middle, 0, room).sum(axis=1, keepdims=True) <= eps[:, None]
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return np.sign(y) * np.clip(np.abs(y) - high, 0, room)


@jax.jit
@jax.vmap
def project(images, centre, eps):
    return jnp.clip(l1.project(images[None], centre[None], eps)[0], 0, 1)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize(('size', 'count'), [(3, 4000), (48, 1000), (192, 250), (3072, 12), (150_528, 2)])
def test_projection_equals_bisection_and_is_optimal(size, count, dtype):
    images, centre, eps = cases(np.random.default_rng(size), count, size, dtype)
    found = np.asarray(project(images, centre, eps))
    assert found.dtype == dtype and found.min() >= 0 and found.max() <= 1
    delta = found.astype(np.float64) - centre
    exact = by_bisection(images, centre, eps)
    ulp = np.finfo(dtype).eps
    # The numbers added up are as large as the images that are projected.
    scale = np.maximum(np.abs(images).max(axis=1), 1)[:, None]
    assert (np.abs(delta - exact) <= 16 * ulp * scale).all()
    assert (np.abs(delta).sum(axis=1) <= eps + BALLS['l1'].tolerance * np.maximum(1, eps)).all()
    # What is cut away is exactly 0, whatever the rounding.
    assert (delta[np.abs(exact) == 0] == 0).mean() > 0.999

    # Optimal: |y| is cut by one a where the room has no end, by no more where nothing is left, and anything
    # less where the pixel is at 0 or 1.
    y = images.astype(np.float64) - centre
    room = np.minimum(np.abs(y), np.where(y > 0, 1 - centre.astype(np.float64), centre))
    slack = 32 * ulp * scale
    cut, kept = np.abs(y) - np.abs(delta), np.abs(delta)
    assert (kept <= room + slack).all() and (y * delta >= 0).all()
    between = (kept > slack) & (kept < room - slack)
    a = np.where(between, cut, -np.inf).max(axis=1, keepdims=True)
    some = between.any(axis=1)
    assert some.mean() > 0.3
    np.testing.assert_allclose(np.where(between, cut, a)[some] - a[some], 0, atol=2 * slack.max())
    assert (np.where((kept == 0) & (room > slack), cut - a, 0)[some] <= 2 * slack[some]).all()


def test_equal_moves_of_equal_pixels_stay_in_the_ball():
    """All rounding goes the same way there: without care 150,528 pixels leave the ball by 1e-3."""
    move = jax.jit(lambda images, eps: Threat('l1', eps).project(images + jnp.float32(0.1), images))
    for pixel in (0.5, 0.3, 0.7, 0.1):
        images = jnp.full((1, 224, 224, 3), pixel, jnp.float32)
        for eps in (3.0, 12.0, 255.0):
            threat, moved = Threat('l1', eps), move(images, eps)
            assert threat.audit(np.asarray(moved), np.asarray(images), source='pgd') > 0.9 * eps


def test_projection_by_hand():
    # Rooms 0.5, 0.1 and 0.2 of moves 2, 1 and 0.2: cut by a = 0.15, 0.5 + 0.1 + 0.05 = 0.65.
    centre = jnp.array([[0.5, 0.9, 0.2]])
    images = centre + jnp.array([[2.0, 1.0, -0.2]])
    np.testing.assert_allclose(project(images, centre, jnp.array([0.65]))[0], [1, 1, 0.15], atol=1e-15)
    # All that there is room for: 0.8.
    np.testing.assert_allclose(project(images, centre, jnp.array([0.81]))[0], [1, 1, 0.0], atol=1e-15)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_level_is_the_order_statistic(dtype):
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=(50, 101)) * 10.0 ** rng.uniform(-30, 30, (50, 1))).astype(dtype)
    values[::4, ::2] = 0
    values[1::4] = np.repeat(values[1::4, :1], 101, axis=1)
    ascending = np.sort(values, axis=1)
    for rank in (1, 20, 60, 101):
        found = l1.level(jnp.asarray(values), jnp.ones_like(values), rank)
        np.testing.assert_array_equal(found[:, 0], ascending[:, 101 - rank])
    np.testing.assert_array_equal(l1.level(jnp.asarray(values), jnp.ones_like(values), 102), 0)


def test_fill_by_hand():
    priority, amount = jnp.array([[3.0, 5.0, 3.0, 1.0]]), jnp.array([[1.0, 2.0, 3.0, 4.0]])
    for wanted, share in (
        (0.0, [0, 0, 0, 0]),
        (1.0, [0, 0.5, 0, 0]),
        (4.0, [0.5, 1, 0.5, 0]),
        (8.0, [1, 1, 1, 0.5]),
        (11.0, [1, 1, 1, 1]),
    ):
        np.testing.assert_allclose(l1.fill(priority, amount, wanted)[0], share, atol=1e-15)


def test_largest_by_hand():
    gradient = jnp.array([[3.0, -5.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    for share, direction in ((0.0, [0, -1, 0, 0]), (0.25, [0, -1, 0, 0]), (0.5, [1, -1, 1, 0])):
        found = l1.largest(gradient, share)
        np.testing.assert_allclose(found[0], np.array(direction) / np.abs(direction).sum(), rtol=1e-9)
        np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(l1.largest(gradient, jnp.array([1.0, 0.5]))[0], [0.25, -0.25, 0.25, 0.25])


def test_the_step_of_steepest_ascent_spends_its_length_where_there_is_room():
    images = jnp.array([0.9, 0.4, 0.5, 0.5]).reshape(1, 2, 2, 1)
    gradient = jnp.array([9.0, -5.0, 0.0, 1.0]).reshape(1, 2, 2, 1)
    ball = BALLS['l1']
    for length, moved in ((0.1, [1, 0.4, 0.5, 0.5]), (0.3, [1, 0.2, 0.5, 0.5]), (9.0, [1, 0, 0.5, 1])):
        np.testing.assert_allclose(ball.ascend(images, gradient, length).ravel(), moved, atol=1e-15)
    np.testing.assert_allclose(ball.steepest(gradient).ravel(), [1, 0, 0, 0], atol=1e-9)
    assert ball.dual_length(gradient)[0] == 9


@pytest.mark.parametrize('norm', BALLS)
def test_the_dual_length_is_that_of_the_steepest_direction(norm):
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 3)))
    ball = BALLS[norm]
    direction = ball.steepest(gradient)
    np.testing.assert_allclose(ball.length(direction), 1, rtol=1e-9)
    np.testing.assert_allclose(
        jnp.sum(direction * gradient, axis=(1, 2, 3)), ball.dual_length(gradient), rtol=1e-9
    )


@pytest.mark.parametrize('norm', BALLS)
def test_corners_and_samples_have_their_length(norm):
    ball, eps, shape = BALLS[norm], EPS[norm], (6, 6, 3)
    corner = ball.corner(jax.random.key(0), shape, np.float64, eps)
    np.testing.assert_allclose(ball.length(corner[None]), eps, rtol=1e-9)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(ball.length(ball.sample(rng, (4, *shape), eps, corners=True), np), eps)
    inside = ball.length(ball.sample(rng, (400, *shape), eps, corners=False), np)
    assert (inside <= eps).all() and inside.max() > 0.99 * eps
