"""How a point moves in one step, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks.steps import sparse_step, steepest_step
from si_jax.errors import InputError
from si_jax.threat import BALLS, NORMS


def batch(*rows):
    """[B, 1, 2, 1] images of two pixels."""
    return jnp.asarray(rows, jnp.float64).reshape(len(rows), 1, 2, 1)


def move(rule, x, gradient, project=lambda x: x):
    moved, state = rule.update(jnp.asarray(0), x, jnp.zeros(len(x)), gradient, rule.init(x), project)
    assert state == ()
    return np.asarray(moved).reshape(len(x), 2)


def test_step_in_linf():
    x, gradient = batch([0.5, 0.5], [0.2, 0.8]), batch([1e-30, -7.0], [0.0, 2.0])
    np.testing.assert_allclose(
        move(steepest_step('linf', 0.1), x, gradient), [[0.6, 0.4], [0.2, 0.9]], atol=1e-15
    )


def test_step_in_l2():
    x, gradient = batch([0.5, 0.5], [0.2, 0.8]), batch([3.0, -4.0], [0.0, 0.0])
    np.testing.assert_allclose(
        move(steepest_step('l2', 0.1), x, gradient), [[0.56, 0.42], [0.2, 0.8]], atol=1e-15
    )


def test_step_in_l1():
    x, gradient = batch([0.5, 0.5], [0.2, 0.8]), batch([3.0, -4.0], [0.0, 0.0])
    np.testing.assert_allclose(
        move(steepest_step('l1', 0.1), x, gradient), [[0.5, 0.4], [0.2, 0.8]], atol=1e-15
    )
    # Half of it goes as far as 0, and the rest to the next pixel.
    np.testing.assert_allclose(
        move(steepest_step('l1', 0.6), x, gradient), [[0.6, 0.0], [0.2, 0.8]], atol=1e-15
    )


def test_a_sparse_step_moves_a_share_of_the_pixels():
    x = jnp.full((1, 2, 2, 1), 0.5)
    gradient = jnp.asarray([1.0, -4.0, 3.0, 2.0]).reshape(x.shape)
    for share, moved in ((0.25, [0.5, 0.4, 0.5, 0.5]), (0.5, [0.5, 0.45, 0.55, 0.5])):
        rule = sparse_step(0.1, share)
        found, _ = rule.update(jnp.asarray(0), x, jnp.zeros(1), gradient, (), lambda x: x)
        np.testing.assert_allclose(found.ravel(), moved, atol=1e-9)
    with pytest.raises(InputError, match=r'share=0 is not in \(0, 1\]'):
        sparse_step(0.1, 0)


@pytest.mark.parametrize('norm', NORMS)
def test_a_step_is_projected(norm):
    rule = steepest_step(norm, 0.5)
    x, gradient = batch([0.5, 0.5]), batch([1.0, 0.0])
    moved = move(rule, x, gradient, lambda x: jnp.clip(x, 0.0, 0.7))
    np.testing.assert_allclose(moved, [[0.7, 0.5]], atol=1e-15)


def test_l2_direction_of_the_smallest_gradients_has_length_one():
    # Their squares are 0 in float32.
    direction = BALLS['l2'].steepest(batch([3e-25, 4e-25]).astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(direction).ravel(), [0.6, 0.8], rtol=1e-6)


def test_steepest_step_refuses_an_unknown_norm():
    with pytest.raises(InputError, match='linf'):
        steepest_step('l-inf', 0.1)


@pytest.mark.parametrize('norm', NORMS)
def test_the_step_size_drops_to_a_tenth_at_the_given_steps(norm):
    rule, x = steepest_step(norm, 0.1, (60, 85)), batch([0.5, 0.5])
    for i, size in ((0, 0.1), (59, 0.1), (60, 0.01), (84, 0.01), (85, 0.001), (99, 0.001)):
        moved, _ = rule.update(jnp.asarray(i), x, jnp.zeros(1), batch([2.0, 0.0]), (), lambda x: x)
        np.testing.assert_allclose(np.asarray(moved).ravel(), [0.5 + size, 0.5], rtol=1e-12)


@pytest.mark.parametrize('norm', NORMS)
def test_the_step_size_falls_along_half_a_cosine_in_each_period(norm):
    rule, x = steepest_step(norm, 0.2, period=4), batch([0.5, 0.5])
    # 0.2 (1 + cos(pi i / 4)) / 2 for i = 0..3, and again.
    for i, size in ((0, 0.2), (1, 0.1707106781), (2, 0.1), (3, 0.0292893219), (4, 0.2), (6, 0.1)):
        moved, _ = rule.update(jnp.asarray(i), x, jnp.zeros(1), batch([1.0, 0.0]), (), lambda x: x)
        np.testing.assert_allclose(np.asarray(moved).ravel(), [0.5 + size, 0.5], atol=1e-9)
