"""The engine on losses whose values are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.ascent import Rule, advance, ascend, begin, evaluate_last
from si_jax.attacks.steps import steepest_step


def images_of(*values):
    return jnp.asarray(values, jnp.float64).reshape(-1, 1, 1, 1)


def numbers(images):
    return np.asarray(images).ravel()


def hill(i, x):
    """-(x - 0.5)^2; "misclassified" between 0.15 and 0.35."""
    del i
    x = x[:, 0, 0, 0]
    return -((x - 0.5) ** 2), -2 * (x - 0.5)[:, None, None, None], (x > 0.15) & (x < 0.35)


def free(x):
    return x


def test_tracks_best_point_and_latest_misclassified_point():
    start = images_of(0.0, 0.45, 0.9, 0.3)
    seen = ascend(hill, start, rule=steepest_step('linf', 0.1), project=free, steps=4)
    # Evaluated, then last: 0, .1, .2, .3, then .4; .45, .55, .45, .55, then .45; .9, .8, .7, .6, then .5. The
    # fourth goes .3, .4, .5, where its gradient is 0 but for rounding.
    np.testing.assert_allclose(numbers(seen.last)[:3], [0.4, 0.45, 0.5], atol=1e-12)
    np.testing.assert_allclose(numbers(seen.best)[:3], [0.3, 0.45, 0.6], atol=1e-12)
    np.testing.assert_allclose(seen.best_loss[:3], [-0.04, -0.0025, -0.01], atol=1e-12)
    np.testing.assert_array_equal(seen.fooled, [True, False, False, True])
    # Latest misclassified point, and the start where there is none.
    np.testing.assert_allclose(numbers(seen.fooled_image), [0.3, 0.45, 0.9, 0.3], atol=1e-12)


def test_last_point_is_a_candidate_only_when_evaluated():
    start = images_of(0.0)
    under_way = advance(
        hill,
        begin(start, steepest_step('linf', 0.1)),
        first=0,
        steps=2,
        rule=steepest_step('linf', 0.1),
        project=free,
    )
    assert not under_way.seen.fooled[0]
    np.testing.assert_allclose(numbers(under_way.seen.best), [0.1])
    seen = evaluate_last(hill, under_way, steps=2)
    assert seen.fooled[0]
    np.testing.assert_allclose([*numbers(seen.best), *numbers(seen.fooled_image)], [0.2, 0.2])


def test_ties_and_nan_do_not_replace_the_best_point():
    def value(i, x):
        loss = jnp.where(i == 1, jnp.nan, jnp.asarray([1.0, 2.0]))
        return loss, jnp.ones_like(x), jnp.zeros(2, bool)

    seen = ascend(value, images_of(0.0, 0.5), rule=steepest_step('linf', 0.25), project=free, steps=4)
    np.testing.assert_array_equal(numbers(seen.best), [0.0, 0.5])
    np.testing.assert_array_equal(seen.best_loss, [1.0, 2.0])


def test_no_step_leaves_the_start():
    start = images_of(0.2, 0.7)
    seen = ascend(hill, start, rule=steepest_step('linf', 0.1), project=free, steps=0)
    for points in (seen.last, seen.best, seen.fooled_image):
        np.testing.assert_array_equal(points, start)
    np.testing.assert_array_equal(seen.best_loss, [-np.inf, -np.inf])
    np.testing.assert_array_equal(seen.fooled, [False, False])


def test_parts_equal_the_whole_with_the_step_index_running_on():
    def value(i, x):
        loss, gradient, fooled = hill(i, x)
        return loss + i, gradient * jnp.cos(i), fooled & (i % 3 == 1)

    def update(i, x, loss, gradient, state, project):
        return project(x + 0.02 * gradient + 0.01 * state), 0.5 * state + i

    rule = Rule(jnp.zeros_like, update)
    start = images_of(0.1, 0.25, 0.6)

    def project(x):
        return jnp.clip(x, 0, 1)

    whole = advance(value, begin(start, rule), first=0, steps=9, rule=rule, project=project)
    # The number of the first step may be traced.
    part = jax.jit(
        lambda under_way, first: advance(value, under_way, first=first, steps=3, rule=rule, project=project)
    )
    under_way = begin(start, rule)
    for first in (0, 3, 6):
        under_way = part(under_way, first)
    unrolled = advance(value, begin(start, rule), first=0, steps=9, rule=rule, project=project, unroll=True)
    for other in (under_way, unrolled):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-14), whole, other)
    np.testing.assert_array_equal(whole.seen.best_loss > 7, True)  # the latest steps count most


def test_a_rule_may_project_more_than_once():
    seen = []

    def project(x):
        seen.append(1)
        return jnp.clip(x, 0.0, 0.3)

    def update(i, x, loss, gradient, state, project):
        del i, loss
        return project(project(x + gradient) + 0.1), state

    rule = Rule(lambda x: (), update)
    result = ascend(hill, images_of(0.0), rule=rule, project=project, steps=1)
    assert len(seen) == 2
    np.testing.assert_allclose(numbers(result.last), [0.3])
