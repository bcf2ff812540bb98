"""APGD step by step in float64 against a loop of its own, written from the description of the algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import objectives
from si_jax.attacks.apgd import apgd, random_start, rule, windows
from si_jax.attacks.ascent import begin, step
from si_jax.attacks.pgd import value_function
from si_jax.attacks.search import Problem
from si_jax.errors import InputError
from si_jax.outputs import Outputs, logits
from si_jax.threat import Threat
from tests.helpers.searches import advance, init, run_search

SHAPE, CLASSES, BATCH = (4, 4, 3), 6, 8
OBJECTIVES = {
    'ce': objectives.adversarial_ce,
    'dlr': objectives.dlr,
    'targeted_dlr': objectives.targeted_dlr,
}
THREATS = {'linf': Threat('linf', 0.03), 'l2': Threat('l2', 0.15)}


class Network:
    """Two layers with tanh; in JAX, and in numpy with its gradient."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.first = rng.standard_normal((48, 20)) / 2
        self.second = rng.standard_normal((20, CLASSES))

    def __call__(self, images, keys):
        del keys
        return Outputs(jnp.tanh((images.reshape(len(images), -1) - 0.5) @ self.first) @ self.second)

    def plain_logits(self, flat):
        """Logits [..., K] of flat images."""
        return np.tanh((flat - 0.5) @ self.first) @ self.second

    def plain(self, image):
        """Logits [K] and their gradients [48, K] of one flat image."""
        hidden = np.tanh((image - 0.5) @ self.first)
        return hidden @ self.second, (self.first * (1 - hidden**2)) @ self.second


NETWORK = Network(1)


def plain_loss(name, g, dg, label, target):
    """A loss and its gradient from the logits and theirs."""
    order = np.argsort(-g)
    if name == 'ce':
        p = np.exp(g - g.max())
        p /= p.sum()
        return -np.log(p[label]), dg @ p - dg[:, label]
    if name == 'dlr':
        other = order[1] if order[0] == label else order[0]
        top, d_top = g[other] - g[label], dg[:, other] - dg[:, label]
        bottom, d_bottom = g[order[0]] - g[order[2]], dg[:, order[0]] - dg[:, order[2]]
    else:
        top, d_top = g[target] - g[label], dg[:, target] - dg[:, label]
        bottom = g[order[0]] - (g[order[2]] + g[order[3]]) / 2
        d_bottom = dg[:, order[0]] - (dg[:, order[2]] + dg[:, order[3]]) / 2
    bottom += 1e-12
    return top / bottom, d_top / bottom - top * d_bottom / bottom**2


def plain_apgd(image, evaluate, start, threat, steps):
    """APGD on one flat image: points, latest misclassified one, if there is one, best loss, last step."""

    def project(x):
        delta = x - image
        if threat.norm == 'linf':
            delta = np.clip(delta, -threat.eps, threat.eps)
        else:
            delta = delta * min(1, threat.eps / max(np.linalg.norm(delta), 1e-12))
        return np.clip(image + delta, 0, 1)

    lengths, k = {}, max(int(0.22 * steps), 1)
    while sum(lengths.values()) + k <= steps:
        lengths[sum(lengths.values()) + k] = k
        k = max(k - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))

    points, after = [start], []
    x, before = start, start
    loss, gradient, fooled = evaluate(x)
    best, best_loss, best_gradient = x, loss, gradient
    returned, ever = (x, True) if fooled else (image, False)
    eta, halved, at_last_checkpoint = 2 * threat.eps, True, best_loss
    for i in range(steps):
        direction = np.sign(gradient) if threat.norm == 'linf' else gradient / np.linalg.norm(gradient)
        v = project(x + eta * direction)
        a = 1 if i == 0 else 0.75
        x, before = project(x + a * (v - x) + (1 - a) * (x - before)), x
        points.append(x)
        loss, gradient, fooled = evaluate(x)
        after.append(loss)
        if fooled:
            returned, ever = x, True
        if loss > best_loss:
            best, best_loss, best_gradient = x, loss, gradient
        if i + 1 in lengths:
            k = lengths[i + 1]
            compared = [0.0, *after]  # the first loss after a step is compared with 0, not with the start's
            rises = sum(compared[j] > compared[j - 1] for j in range(i + 2 - k, i + 2))
            halve = rises <= 0.75 * k or (not halved and best_loss == at_last_checkpoint)
            if halve:
                eta /= 2
                x, gradient = best, best_gradient
            halved, at_last_checkpoint = halve, best_loss
    return np.array(points), returned, ever, best_loss, eta


def problem(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(BATCH, *SHAPE))
    scores = np.array([NETWORK.plain(image.ravel())[0] for image in images])
    order = np.argsort(-scores, axis=1)
    labels = order[:, 0]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(BATCH))
    targets = jnp.asarray(order[:, 2], jnp.int32)
    return Problem(jnp.asarray(images), jnp.asarray(labels, jnp.int32), keys, targets)


@functools.partial(jax.jit, static_argnames='name')
def value(name, where, i, x):
    objective = OBJECTIVES[name]
    objective = objective(where.targets) if name == 'targeted_dlr' else objective
    return value_function(objective, logits, NETWORK, where.labels, None, where.keys)(i, x)


@functools.partial(jax.jit, static_argnames=('norm', 'steps'))
def moved(norm, steps, where, under_way, i, evaluated):
    """A step of the engine, with what its value function is to answer."""
    threat = THREATS[norm]
    return step(
        i,
        under_way,
        value=lambda i, x: evaluated,
        rule=rule(threat, steps),
        project=lambda x: threat.project(x, where.images),
    )


@functools.cache
def search_of(name, steps):
    return apgd(OBJECTIVES[name], steps=steps)


run = functools.partial(run_search, classifier=NETWORK)
starts = jax.jit(lambda norm, keys, images: random_start(THREATS[norm], keys, images), static_argnums=0)


def test_checkpoints():
    ends = windows(100)
    np.testing.assert_array_equal(np.flatnonzero(ends), [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(ends[ends > 0], [22, 19, 16, 13, 10, 7, 6, 6])
    np.testing.assert_array_equal(np.flatnonzero(windows(20)), [4, 7, 9, *range(10, 21)])
    np.testing.assert_array_equal(windows(1), [0, 1])


@pytest.mark.parametrize('norm', THREATS)
@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('steps', [20, 100])
def test_every_iterate_equals_the_plain_loop(norm, name, steps):
    where, threat = problem(), THREATS[norm]
    start = starts(norm, where.keys, where.images)
    under_way, on_the_way = begin(start, rule(threat, steps)), []
    for i in range(steps + 1):
        x = under_way.seen.last
        evaluated = value(name, where, i, x)
        under_way = moved(norm, steps, where, under_way, i, evaluated)
        on_the_way.append((x, *evaluated))
    points, losses, gradients, fooled_at = (np.stack(of_step) for of_step in zip(*on_the_way, strict=True))
    points, gradients = (array.reshape(steps + 1, BATCH, -1) for array in (points, gradients))
    seen = jax.device_get(under_way.seen)
    flat = np.asarray(where.images).reshape(BATCH, -1)
    how_often_fooled, step_sizes = 0, []
    for b in range(BATCH):
        label, target = int(where.labels[b]), int(where.targets[b])
        # The loop gets the losses and gradients that the rule had, once they are found right: sign() of a
        # gradient near 0 would tell the rounding of one implementation from that of the other.
        scores, slopes = zip(*(NETWORK.plain(x) for x in points[:, b]), strict=True)
        expected = [plain_loss(name, g, dg, label, target) for g, dg in zip(scores, slopes, strict=True)]
        np.testing.assert_allclose(losses[:, b], [loss for loss, _ in expected], rtol=0, atol=1e-8)
        np.testing.assert_allclose(gradients[:, b], [slope for _, slope in expected], rtol=0, atol=1e-7)
        np.testing.assert_array_equal(fooled_at[:, b], np.argmax(scores, axis=1) != label)
        given = iter(zip(losses[:, b], gradients[:, b], fooled_at[:, b], strict=True))
        plain, returned, fooled, best_loss, step_size = plain_apgd(
            flat[b], lambda x, given=given: next(given), points[0, b], threat, steps
        )
        np.testing.assert_allclose(points[:, b], plain, rtol=0, atol=1e-10)
        assert bool(seen.fooled[b]) == fooled
        # Where nothing was misclassified the engine has its start, and a search the original.
        last = returned if fooled else points[0, b]
        np.testing.assert_allclose(seen.fooled_image[b].ravel(), last, rtol=0, atol=1e-10)
        assert float(seen.best_loss[b]) == best_loss
        how_often_fooled += fooled
        step_sizes.append(step_size)
    # The comparison means little unless there are both outcomes, and halvings at different checkpoints.
    assert 0 < how_often_fooled < BATCH
    assert min(step_sizes) < 2 * threat.eps
    assert steps == 100 or len(set(step_sizes)) > 1


@pytest.mark.parametrize(('norm', 'name'), [('linf', 'ce'), ('l2', 'dlr'), ('linf', 'targeted_dlr')])
def test_search_finds_what_the_engine_finds(norm, name):
    steps, where, threat = 20, problem(), THREATS[norm]
    where = where._replace(labels=where.labels.at[0].set(where.targets[0]))  # misclassified from the start
    state = run(search_of(name, steps), where, threat, [steps + 1])
    start = starts(norm, jax.vmap(jax.random.split)(where.keys)[:, 0], where.images)

    first = np.full(BATCH, steps + 1)
    found = np.array(where.images)
    under_way = begin(start, rule(threat, steps))
    for i in range(steps + 1):
        x = np.asarray(under_way.seen.last)
        misclassified = NETWORK.plain_logits(x.reshape(BATCH, -1)).argmax(axis=1) != where.labels
        new = misclassified & (first > steps)
        first[new], found[new] = i, x[new]
        under_way = moved(norm, steps, where, under_way, i, value(name, where, i, x))
    np.testing.assert_array_equal(state.fooled, first <= steps)
    np.testing.assert_allclose(state.found, found, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(state.queries, np.minimum(first, steps) + 1)
    assert 0 < state.fooled.sum() < BATCH
    scores = NETWORK.plain_logits(np.asarray(state.found).reshape(BATCH, -1))
    wrong = scores.argmax(axis=1) != where.labels
    np.testing.assert_array_equal(wrong[np.asarray(state.fooled)], True)
    threat.audit(state.found, where.images, source='apgd')


@pytest.mark.parametrize(('norm', 'name'), [('linf', 'ce'), ('l2', 'dlr')])
def test_parts_equal_the_whole(norm, name):
    steps, where, threat = 20, problem(), THREATS[norm]
    whole = run(search_of(name, steps), where, threat, [steps + 1])
    parts = run(search_of(name, steps), where, threat, [7, 7, 7])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), whole, parts)


def test_no_image_depends_on_its_batch():
    """The rows of a search that is under way can be dropped and reordered."""
    where, threat, search = problem(), THREATS['l2'], search_of('dlr', 20)
    whole = run(search, where, threat, [21])
    rows = np.asarray([6, 1, 3])
    state = advance(search, NETWORK, where, threat, init(search, NETWORK, where, threat), 0, 10)
    where, state = jax.jit(lambda both: jax.tree.map(lambda leaf: leaf[rows], both))((where, state))
    state = advance(search, NETWORK, where, threat, state, 10, 11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[rows], b, rtol=0, atol=1e-12), whole, state)


@pytest.mark.parametrize('norm', THREATS)
def test_start_lies_on_the_surface(norm):
    threat = THREATS[norm]
    images = jnp.full((3, *SHAPE), 0.5)  # nothing is clipped
    keys = jax.random.split(jax.random.key(3), 3)
    start = np.asarray(starts(norm, keys, images))
    length = np.linalg.norm((start - 0.5).reshape(3, -1), {'linf': np.inf, 'l2': 2}[norm], axis=1)
    np.testing.assert_allclose(length, threat.eps, rtol=1e-9)
    np.testing.assert_array_equal(start[1:2], starts(norm, keys[1:2], images[1:2]))
    assert not np.allclose(start[0], start[1])
    at_the_edge = np.asarray(starts(norm, keys, jnp.zeros((3, *SHAPE))))
    assert at_the_edge.min() == 0


def free_update(threat, steps):
    """The rule's update where nothing bounds a point, compiled."""
    return jax.jit(lambda *given: rule(threat, steps).update(*given, lambda x: x))


def test_first_comparison_is_with_zero():
    """A loss that stays below 0 has one rise less in the first window than one that stays above."""
    steps, threat = 8, Threat('linf', 0.1)  # windows of 1: the first ends after one step
    how, update = rule(threat, steps), free_update(threat, steps)
    x = jnp.full((2, 1, 1, 1), 0.5)
    state = how.init(x)
    gradient = jnp.ones_like(x)
    for i, loss in enumerate([[-2.0, 2.0], [-1.0, 1.0]]):  # one rises but stays negative, one falls
        x, state = update(i, x, jnp.asarray(loss), gradient, state)
    np.testing.assert_array_equal(state.halved, [True, False])
    np.testing.assert_allclose(state.step_size, [threat.eps, 2 * threat.eps])


def test_second_condition_needs_a_step_that_was_not_halved():
    """With windows of 4, 3, 2, 1, ...: the loss rises in the first, then stays where it is."""
    threat = Threat('linf', 0.1)
    how, update = rule(threat, 20), free_update(threat, 20)
    x = jnp.full((1, 1, 1, 1), 0.5)
    ones = jnp.ones_like(x)
    state, sizes = how.init(x), {}
    for i in range(11):
        x, state = update(i, x, np.array([1.0 + min(i, 4)]), ones, state)
        sizes[i] = float(state.step_size[0])
    assert sizes[4] == pytest.approx(0.2)  # four rises of four, and an unchanged loss does not count yet
    assert sizes[7] == pytest.approx(0.1)  # no rise
    assert sizes[9] == pytest.approx(0.05)

    # Always rising, but never above the best loss: only the second condition can halve, not twice running.
    state, halved = how.init(x), []
    for i, loss in enumerate([100.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]):
        x, state = update(i, x, np.array([float(loss)]), ones, state)
        if windows(20)[i]:
            halved.append(bool(state.halved[0]))
    assert halved == [False, True, False, True, False, True]


def test_restart_is_from_the_best_point_and_keeps_the_point_before():
    threat = Threat('linf', 0.1)
    how = rule(threat, 4)  # every step is a checkpoint
    points = jnp.asarray([0.5, 0.2]).reshape(2, 1, 1, 1, 1)
    state = how.init(points[0])
    _, state = how.update(
        jnp.asarray(0), points[0], jnp.asarray([3.0]), -jnp.ones((1, 1, 1, 1)), state, lambda x: x
    )
    moved, state = how.update(
        jnp.asarray(1), points[1], jnp.asarray([-1.0]), jnp.ones((1, 1, 1, 1)), state, lambda x: x
    )
    # Back at 0.5 with its gradient -1 and half the step, 0.1; the point before is still 0.5.
    assert float(moved[0, 0, 0, 0]) == pytest.approx(0.5 - 0.75 * 0.1)


def test_eot_averages_gradients_and_counts_queries():
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.standard_normal((48, CLASSES)))

    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (48,), images.dtype))(keys)
        return Outputs((images.reshape(len(images), -1) + 0.1 * noise) @ weights)

    where, threat = problem(), Threat('linf', 1e-6)  # too small to fool a correctly classified image by much
    labels = jnp.argmax(where.images.reshape(BATCH, -1) @ weights, axis=1).astype(jnp.int32)
    where = where._replace(labels=labels)
    search = apgd(objectives.adversarial_ce, steps=3, eot_samples=3)
    state = run(search, where, threat, [2, 2], classifier=noisy)
    robust = ~np.asarray(state.fooled)
    assert robust.any()
    np.testing.assert_array_equal(np.asarray(state.queries)[robust], 12)
    again = run(search, where, threat, [4], classifier=noisy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), state, again)


def test_the_state_has_a_leading_batch_axis_and_keeps_the_dtype():
    where = problem()._replace(images=problem().images.astype(jnp.float32))
    search = apgd(objectives.adversarial_ce, steps=5)

    def network(x, keys):
        return Outputs(NETWORK(x, keys).logits.astype(x.dtype))

    state = jax.eval_shape(lambda p: search.init(network, p, THREATS['linf']), where)
    after = jax.eval_shape(
        lambda p, s: search.advance(network, p, THREATS['linf'], s, jnp.int32(0), 6), where, state
    )
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), state, after)
    assert all(leaf.shape[0] == BATCH for leaf in jax.tree.leaves(state))
    assert not any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(state))
    assert (search.iterations, search.targeted) == (6, False)
    assert apgd(objectives.targeted_dlr).targeted and apgd(objectives.targeted_dlr).iterations == 101


def three_classes(images, keys):
    return Outputs(NETWORK(images, keys).logits[:, :3])


def test_bad_settings_are_named():
    with pytest.raises(InputError, match='steps=0'):
        rule(THREATS['linf'], 0)
    with pytest.raises(InputError, match='apgd_l1'):
        rule(Threat('l1', 1.0), 10)
    with pytest.raises(InputError, match='4 classes'):
        run(search_of('targeted_dlr', 2), problem(), THREATS['linf'], [3], classifier=three_classes)
