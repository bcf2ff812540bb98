"""APGD in L1 step by step in float64 against a loop of its own, written from its description."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import objectives
from si_jax.attacks.apgd_l1 import apgd_l1, balls, random_start, rule
from si_jax.attacks.ascent import begin, step
from si_jax.attacks.pgd import value_function
from si_jax.attacks.search import Problem
from si_jax.errors import InputError
from si_jax.outputs import Outputs, logits
from si_jax.threat import Threat
from tests.helpers.searches import advance, init, run_search

SHAPE, BATCH, EPS = (4, 4, 3), 6, 0.8
RNG = np.random.default_rng(1)
WEIGHTS = RNG.standard_normal((48, 20)) / 2, RNG.standard_normal((20, 6))


def network(images, keys):
    del keys
    return Outputs(jnp.tanh((images.reshape(len(images), -1) - 0.5) @ WEIGHTS[0]) @ WEIGHTS[1])


def problem(seed=0):
    images = jnp.asarray(np.random.default_rng(seed).uniform(size=(BATCH, *SHAPE)))
    order = jnp.argsort(-network(images, None).logits, axis=1).astype(jnp.int32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(BATCH))
    return Problem(images, order[:, 0], keys, order[:, 2])


def project(x, image, eps):
    """The nearest point of the L1 ball in [0, 1], by bisection."""
    y = x - image
    room = np.minimum(np.abs(y), np.where(y > 0, 1 - image, image))
    if room.sum() <= eps:
        return image + np.sign(y) * room
    low, high = 0.0, np.abs(y).max()
    for _ in range(80):
        middle = (low + high) / 2
        inside = np.clip(np.abs(y) - middle, 0, room).sum() <= eps
        low, high = (low, middle) if inside else (middle, high)
    kept = np.clip(np.abs(y) - high, 0, room)
    return np.where(kept > 0, image + np.sign(y) * kept, image)


def one_run(image, start, steps, eps, evaluate, sparse_start):
    """A run on one flat image: the points it evaluates, and the one of highest loss."""
    n, x = image.size, start
    topk, before, size = 0.2, n, eps
    if sparse_start:
        before = np.sum(x != image)
        topk = before / n / 1.5
    every = max(int(0.04 * steps), 1)
    loss, gradient = evaluate(x)
    points, best, best_loss, best_gradient = [x], x, loss, gradient
    for i in range(steps):
        threshold = np.sort(np.abs(gradient))[int(np.clip((1 - topk) * n, 0, n - 1))]
        signs = np.sign(gradient) * (np.abs(gradient) >= threshold)
        x = project(x + size * signs / (np.abs(signs).sum() + 1e-10), image, eps)
        points.append(x)
        loss, gradient = evaluate(x)
        if loss > best_loss:
            best, best_loss, best_gradient = x, loss, gradient
        if (i + 1) % every == 0 and i + 1 < steps:
            now = np.sum(best != image)
            fewer = now / before < 0.95
            topk, before = now / n / 1.5, now
            size = np.clip(eps if fewer else size / 1.5, eps / 10, eps)
            if fewer:
                x, gradient = best, best_gradient
    return points, best


@pytest.mark.parametrize(('steps', 'largereps'), [(100, True), (100, False), (23, True)])
def test_every_iterate_equals_the_plain_loop(steps, largereps):
    where, threat = problem(), Threat('l1', EPS)
    parts = balls(steps, largereps)
    value = value_function(objectives.adversarial_ce, logits, network, where.labels, None, where.keys)
    how = rule(threat, where.images, steps, largereps=largereps)

    @jax.jit
    def trajectory(start):
        def body(under_way, i):
            x = under_way.seen.last
            evaluated = value(i, x)
            return step(i, under_way, value=lambda i, x: evaluated, rule=how, project=None), (x, *evaluated)

        return jax.lax.scan(body, begin(start, how), jnp.arange(steps + len(parts)))[1]

    wide = Threat('l1', parts[0].radius * EPS)
    start = jax.jit(lambda keys, images: random_start(wide, keys, images))(where.keys, where.images)
    points, losses, gradients, _ = jax.tree.map(np.asarray, trajectory(start))
    for b, image in enumerate(np.asarray(where.images).reshape(BATCH, -1)):
        # The loop gets the losses and gradients that the rule had: which entries are the largest would tell
        # the rounding of one implementation from that of the other.
        given = iter(zip(losses[:, b], gradients[:, b].reshape(len(gradients), -1), strict=True))
        expected, x = [], points[0, b].ravel()
        for part in parts:
            x = project(x, image, part.radius * EPS)
            some, x = one_run(
                image, x, part.steps, part.radius * EPS, lambda x, given=given: next(given), largereps
            )
            expected += some
        assert next(given, None) is None
        np.testing.assert_allclose(points[:, b].reshape(len(points), -1), expected, rtol=0, atol=1e-10)


run = functools.partial(run_search, classifier=network)


@pytest.mark.parametrize('objective', [objectives.adversarial_ce, objectives.targeted_dlr])
def test_only_points_of_the_ball_count(objective):
    where, threat = problem(), Threat('l1', 0.35)
    search = apgd_l1(objective, steps=20)
    assert (search.iterations, search.idle) == (23, 3)
    # After 14 iterations, in three times and twice the radius, nothing counts.
    state = init(search, network, where, threat)
    state = advance(search, network, where, threat, state, 0, 14)
    assert not state.fooled.any() and (state.queries == 14).all()
    wide = np.argmax(network(state.inner[1].best, None).logits, axis=1) != where.labels
    state = advance(search, network, where, threat, state, 14, 9)
    fooled = np.asarray(state.fooled)
    assert wide.any() and 0 < fooled.sum() < BATCH
    assert (np.argmax(network(state.found, None).logits, axis=1) != where.labels)[fooled].all()
    threat.audit(np.asarray(state.found), np.asarray(where.images), source='apgd')
    np.testing.assert_array_equal(state.found[~fooled], where.images[~fooled])
    assert (np.asarray(state.queries)[~fooled] == 23).all()

    parts = run(search, where, threat, [5, 5, 5, 5, 3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), state, parts)


def test_the_schedule_of_the_protocol():
    assert balls(100, True) == ((3.0, 30), (2.0, 30), (1.0, 40))
    assert balls(100, False) == ((1.0, 100),)
    search = apgd_l1(objectives.adversarial_ce)
    assert search.iterations == 103 and not search.targeted
    for steps, largereps in ((1, True), (0, False)):
        with pytest.raises(InputError, match=f'steps={steps}'):
            apgd_l1(objectives.adversarial_ce, steps=steps, largereps=largereps)


def test_nan_outside_the_ball_is_no_fault_and_inside_it_is_seen():
    where, threat = problem(), Threat('l1', 0.35)

    search = apgd_l1(objectives.adversarial_ce, steps=20)

    @jax.jit
    def found(least):
        def classifier(x, keys):
            far = jnp.abs(x - where.images).sum(axis=(1, 2, 3)) > least
            return Outputs(jnp.where(far[:, None], jnp.nan, network(x, keys).logits))

        state = search.advance(classifier, where, threat, search.init(classifier, where, threat), 0, 23)
        return state, classifier(state.found, None).logits

    state, scores = found(0.36)
    assert np.isfinite(scores).all()
    threat.audit(np.asarray(state.found), np.asarray(where.images), source='apgd')
    state, scores = found(0.1)
    assert state.fooled.all()
    assert np.isnan(scores).all()
