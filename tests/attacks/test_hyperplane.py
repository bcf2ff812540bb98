"""The projection on a hyperplane inside [0, 1]^d, against three oracles that share no code with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from si_jax.attacks.hyperplane import displacement
from si_jax.errors import InputError

CASES = 1000  # of each of five sizes


def random_cases(rng, size):
    """Points (some on the bounds), normals (some entries 0) and gaps (both signs, some out of reach)."""
    points = rng.random((CASES, size))
    points = np.where(rng.random(points.shape) < 0.1, np.round(points), points)
    normal = rng.standard_normal((CASES, size)) * 10.0 ** rng.uniform(-3, 3, (CASES, 1))
    normal = np.where(rng.random(points.shape) < 0.1, 0.0, normal)
    sign = rng.choice([-1.0, 1.0], CASES)
    oriented = normal * sign[:, None]
    reach = np.sum(np.abs(oriented) * np.where(oriented > 0, points, 1 - points), axis=1)
    return points, normal, sign * reach * rng.uniform(0, 1.2, CASES) ** 2


def moved(lengths, points, oriented, norm):
    """clip(t - lambda s sign(w)): the box projection along the steepest direction of the norm."""
    direction = np.sign(oriented) if norm == 'linf' else oriented
    return np.clip(points - lengths[:, None] * direction, 0, 1) - points


def by_bisection(points, normal, gap, norm):
    """Bisection on lambda, 200 halvings."""
    oriented = normal * np.where(gap < 0, -1, 1)[:, None]
    largest = np.abs(normal).max(axis=1)
    oriented = oriented / np.where(largest > 0, largest, 1)[:, None]
    target = np.abs(gap) / np.where(largest > 0, largest, 1)
    # A geometric interval: roots of very different sizes occur in L2.
    low, high = np.full(len(gap), 1e-30), np.full(len(gap), 1e30)
    for _ in range(200):
        middle = np.sqrt(low * high)
        short = -np.sum(oriented * moved(middle, points, oriented, norm), axis=1) < target
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return moved(np.where(target > 0, high, 0.0), points, oriented, norm)


def by_sorting(points, normal, gap):
    """Linf: coordinates in the order in which they meet their bounds, cumulative sums, searchsorted."""
    result = np.zeros_like(points)
    for i in range(len(points)):
        w = normal[i] * (-1 if gap[i] < 0 else 1)
        room = np.where(w > 0, points[i], np.where(w < 0, 1 - points[i], 0))
        order = np.argsort(room)
        weight, sorted_room = np.abs(w)[order], room[order]
        done = np.cumsum(weight * sorted_room)
        left = weight.sum() - np.cumsum(weight)
        covered = done + sorted_room * left  # sum |w| min(lambda, r) at lambda = r of each coordinate
        k = np.searchsorted(covered, abs(gap[i]))
        if k == len(w):
            length = np.inf
        else:
            before = done[k] - weight[k] * sorted_room[k]
            length = (abs(gap[i]) - before) / (left[k] + weight[k]) if left[k] + weight[k] > 0 else 0.0
        result[i] = -np.sign(w) * np.minimum(length, room)
    return result


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_equals_the_oracles_on_5000_random_cases(norm):
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 60, 500):
        points, normal, gap = random_cases(rng, size)
        ours = np.asarray(jax.jit(displacement, static_argnums=3)(points, normal, gap, norm))
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, by_bisection(points, normal, gap, norm), rtol=0, atol=1e-11)
        if norm == 'linf':
            np.testing.assert_allclose(ours, by_sorting(points, normal, gap), rtol=0, atol=1e-12)
        # What a projection promises: in the box, and on the plane wherever the box reaches it.
        assert np.all((points + ours >= -1e-15) & (points + ours <= 1 + 1e-15))
        w = normal * np.where(gap < 0, -1, 1)[:, None]
        reach = np.sum(np.abs(w) * np.where(w > 0, points, 1 - points), axis=1)
        left = np.abs(gap) + np.sum(w * ours, axis=1)
        np.testing.assert_allclose(
            left, np.maximum(np.abs(gap) - reach, 0), atol=1e-11 * np.abs(w).sum(axis=1).max()
        )
        assert np.mean(np.abs(gap) > reach) > 0.02  # both cases were met


def test_linf_distance_equals_a_linear_program():
    rng = np.random.default_rng(1)
    points, normal, gap = (a[:60] for a in random_cases(rng, 9))
    gap = gap * 0.5  # within reach
    ours = np.asarray(jax.jit(displacement, static_argnums=3)(points, normal, gap, 'linf'))
    for t, w, g, d in zip(points, normal, gap, ours, strict=True):
        # Variables (d, s): least s with |d_i| <= s, t + d in the box, <w, t + d> = b.
        bound = np.hstack([np.vstack([np.eye(9), -np.eye(9)]), -np.ones((18, 1))])
        program = linprog(
            np.r_[np.zeros(9), 1.0],
            A_ub=bound,
            b_ub=np.zeros(18),
            A_eq=np.r_[w, 0.0][None],
            b_eq=[-g],
            bounds=[*zip(-t, 1 - t, strict=True), (0, None)],
        )
        assert program.status == 0
        assert np.abs(d).max() == pytest.approx(program.fun, abs=1e-9)


def test_l1_distance_equals_a_linear_program():
    rng = np.random.default_rng(3)
    points, normal, gap = (a[:150] for a in random_cases(rng, 20))
    reach = np.sum(np.abs(normal) * np.where(np.sign(gap)[:, None] * normal > 0, points, 1 - points), axis=1)
    ours = np.asarray(jax.jit(displacement, static_argnums=3)(points, normal, gap, 'l1'))
    assert np.all((points + ours >= -1e-15) & (points + ours <= 1 + 1e-15))
    left = np.abs(gap + np.sum(normal * ours, axis=1))
    np.testing.assert_allclose(left, np.maximum(np.abs(gap) - reach, 0), rtol=1e-9, atol=1e-9)
    within = np.abs(gap) < reach
    assert 0.5 < within.mean() < 1
    for t, w, g, d in zip(points[within], normal[within], gap[within], ours[within], strict=True):
        # Variables (up, down), both not negative: least sum, t + up - down in the box and on the plane.
        program = linprog(
            np.ones(40),
            A_eq=np.r_[w, -w][None] / np.abs(w).max(),
            b_eq=[-g / np.abs(w).max()],
            bounds=[*((0, 1 - one) for one in t), *((0, one) for one in t)],
        )
        assert program.status == 0
        assert np.abs(d).sum() == pytest.approx(program.fun, abs=1e-9)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_zero_and_tiny_normals(norm):
    points = jnp.full((2, 4), 0.5, jnp.float32)
    normal = jnp.asarray([[0, 0, 0, 0], [1e-25, -2e-25, 1e-25, 1e-25]], jnp.float32)
    moves = displacement(points, normal, jnp.asarray([1.0, 5e-26], jnp.float32), norm)
    np.testing.assert_array_equal(moves[0], np.zeros(4))
    # Divided by the largest weight: weights (1, -2, 1, 1) / 2 and a gap of 1/4.
    expected = {'linf': [-0.1, 0.1, -0.1, -0.1], 'l2': np.array([-1, 2, -1, -1]) / 14, 'l1': [0, 0.25, 0, 0]}
    np.testing.assert_allclose(moves[1], expected[norm], rtol=1e-5)


def test_rows_do_not_depend_on_each_other():
    rng = np.random.default_rng(2)
    points, normal, gap = random_cases(rng, 40)
    project = jax.jit(displacement, static_argnums=3)
    together, alone = project(points, normal, gap, 'l2'), project(points[:1], normal[:1], gap[:1], 'l2')
    np.testing.assert_allclose(together[:1], alone, rtol=0, atol=1e-15)


def test_unknown_norm():
    with pytest.raises(InputError, match='l3'):
        displacement(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones(1), 'l3')
