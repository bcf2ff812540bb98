"""Square: schedule, windows, acceptance and independence of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks.search import Problem
from si_jax.attacks.square import MOVES, pattern, sides, square
from si_jax.errors import InputError
from si_jax.outputs import Outputs
from si_jax.threat import Threat

SHAPE = (8, 8, 3)
THREATS = {'linf': Threat('linf', 0.05), 'l2': Threat('l2', 0.5), 'l1': Threat('l1', 2.5)}
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((192, 10)), RNG.standard_normal((10, 5))


def network(images, keys):
    del keys
    first, second = WEIGHTS
    return Outputs(jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first / 4) @ second)


def problem(count=12):
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(count, *SHAPE)))
    labels = network(images, None).logits.argmax(axis=1).astype(jnp.int32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))
    return Problem(images, labels, keys, labels)


def margins(images, labels):
    first, second = WEIGHTS
    scores = np.tanh((np.asarray(images).reshape(len(images), -1) - 0.5) @ first / 4) @ second
    of_label = scores[np.arange(len(labels)), labels].copy()
    scores[np.arange(len(labels)), labels] = -np.inf
    return of_label - scores.max(axis=1)


def run(search, where, threat, chunks, classifier=network):
    """All states, from the start on."""
    states = [jax.jit(lambda p: search.init(classifier, p, threat))(where)]
    advance = jax.jit(
        lambda p, s, first, count: search.advance(classifier, p, threat, s, first, count), static_argnums=3
    )
    done = 0
    for count in chunks:
        states.append(advance(where, states[-1], jnp.int32(done), count))
        done += count
    return states


def test_schedule_of_linf():
    table = sides('linf', 5000, 32, 32)
    changes = np.flatnonzero(np.diff(table)) + 1
    np.testing.assert_array_equal(changes, [11, 51, 201, 501, 1001, 2001, 4001])
    np.testing.assert_array_equal(table[[0, *changes]], [29, 20, 14, 10, 7, 5, 4, 3])
    assert len(table) == 5000
    # The schedule goes by the number of the iteration, whatever the budget.
    np.testing.assert_array_equal(sides('linf', 300, 32, 32), table[:300])
    np.testing.assert_array_equal(sides('linf', 10000, 8, 8)[[0, 9999]], [7, 1])
    assert sides('linf', 1, 4, 100, p_init=1.0)[0] == 4


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_schedule_of_l2_and_l1_is_odd_and_at_least_three(norm):
    table = sides(norm, 10000, 32, 32)
    changes = np.flatnonzero(np.diff(table)) + 1
    np.testing.assert_array_equal(table[[0, *changes]], [29, 21, 15, 11, 7, 5, 3])
    np.testing.assert_array_equal(changes, [11, 51, 201, 501, 1001, 4001])
    assert sides(norm, 1, 8, 8, p_init=1.0)[0] == 8  # never larger than the image


def test_pattern_is_a_hill_above_a_valley():
    np.testing.assert_allclose(pattern(1), [[-1.0]])
    # 3: one row above, centre of three; two rows below, centre of 2 x 3 at its second row.
    edge, centre = 0.25, 1.25
    above = np.array([edge, centre, edge])
    below = -np.array([[edge, edge, edge], [edge, centre, edge]])
    expected = np.vstack([above / np.linalg.norm(above), below / np.linalg.norm(below)]) / np.sqrt(2)
    np.testing.assert_allclose(pattern(3), expected, rtol=1e-12)
    for side in (2, 5, 7, 14, 29):
        form = pattern(side)
        assert np.linalg.norm(form) == pytest.approx(1)
        assert (form[: side // 2] > 0).all() and (form[side // 2 :] < 0).all()
        assert np.linalg.norm(form[: side // 2]) == pytest.approx(np.sqrt(0.5))


def test_pattern_of_l1_is_steeper():
    edge, centre = 1 / 16, 17 / 16
    above = np.array([edge, centre, edge])
    below = -np.array([[edge, edge, edge], [edge, centre, edge]])
    expected = np.vstack([above / above.sum(), -below / below.sum()]) / 2
    np.testing.assert_allclose(pattern(3, 'l1'), expected, rtol=1e-12)
    for side in (1, 2, 5, 7, 14, 29):
        assert np.abs(pattern(side, 'l1')).sum() == pytest.approx(1)


def test_start_of_linf_is_stripes():
    images = jnp.full((2, *SHAPE), 0.5)
    keys = jax.random.split(jax.random.key(1), 2)
    start = jax.jit(MOVES['linf'](0.05, SHAPE, sides('linf', 10, 8, 8)).start)(keys, images)
    delta = np.asarray(start - images)
    np.testing.assert_allclose(np.abs(delta), 0.05, rtol=1e-12)
    assert (delta == delta[:, :1]).all()
    assert len(np.unique(np.sign(delta[:, 0]), axis=1).T) > 1 and not (delta[0] == delta[1]).all()


def test_start_of_l2_is_tiles_on_the_sphere():
    images = jnp.full((2, 32, 32, 3), 0.5)
    keys = jax.random.split(jax.random.key(1), 2)
    start = jax.jit(MOVES['l2'](0.5, (32, 32, 3), sides('l2', 10, 32, 32)).start)(keys, images)
    delta = np.asarray(start - images)
    np.testing.assert_allclose(np.linalg.norm(delta.reshape(2, -1), axis=1), 0.5, rtol=1e-9)
    assert (delta[:, [0, 31]] == 0).all() and (
        delta[:, :, [0, 31]] == 0
    ).all()  # five tiles of 6, and an edge of 1
    tile = delta[0, 1:7, 1:7, 0]
    tile = tile / np.linalg.norm(tile)
    assert (
        min(np.abs(tile - sign * form).max() for sign in (1, -1) for form in (pattern(6), pattern(6).T))
        < 1e-9
    )


@functools.cache
def moves(norm, eps, shape):
    """The moves of 5,000 iterations, with a compiled proposal."""
    how = MOVES[norm](eps, shape, sides(norm, 5000, *shape[:2]))
    return how._replace(propose=jax.jit(how.propose))


def words_of(how, count, seed=0):
    return jax.random.bits(jax.random.key(seed), (count, how.words), jnp.uint32)


def two_windows(words, side):
    """The windows that mass moves into and out of, as slices of 16 x 16 pixels, and the mask of both."""
    corners = [int((int(word) >> 16) * (16 - side) >> 16) for word in words[:4]]
    into = np.s_[corners[0] : corners[0] + side, corners[1] : corners[1] + side]
    out_of = np.s_[corners[2] : corners[2] + side, corners[3] : corners[3] + side]
    both = np.zeros((16, 16), bool)
    both[into] = both[out_of] = True
    return into, out_of, both


@pytest.mark.parametrize('iteration', [0, 20, 100, 2500])
def test_moves_of_linf_are_windows_of_two_eps(iteration):
    """The proposal is the best point plus 2 eps signs in a window, into the ball, then into [0, 1]."""
    eps, count, shape = 0.05, 300, (32, 32, 3)
    how = moves('linf', eps, shape)
    side = sides('linf', 5000, 32, 32)[iteration]
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(count, *shape))
    images[..., 0] = rng.uniform(
        0.1, 0.9, size=images.shape[:3]
    )  # one channel where nothing is clipped to [0, 1]
    best = np.clip(images + rng.uniform(-eps, eps, images.shape), 0, 1)
    x = np.asarray(
        how.propose(words_of(how, count), jnp.int32(iteration), jnp.asarray(images), jnp.asarray(best))
    )
    corners, signs_seen = [], []
    for b in range(count):
        changed = (x[b] != best[b]).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed.sum() == side**2 == len(rows) * len(columns)  # one whole window
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1
        corners.append((rows[0], columns[0]))
        window = np.s_[rows[0] : rows[0] + side, columns[0] : columns[0] + side]
        signs = np.sign((x[b] - best[b])[window].sum(axis=(0, 1)))
        signs_seen.append(signs)
        expected = best[b].copy()
        expected[window] += 2 * eps * signs
        expected = np.clip(np.clip(expected, images[b] - eps, images[b] + eps), 0, 1)
        np.testing.assert_allclose(x[b], expected, rtol=0, atol=1e-12)
    # Corners are floor(U (H - side)): all of 0 .. H - side - 1, evenly.
    corners, places = np.array(corners), 32 - side
    assert corners.min() == 0 and corners.max() < places
    assert np.abs(corners.mean(axis=0) - (places - 1) / 2).max() < 4 * places / np.sqrt(12 * count)
    assert np.abs(np.mean(signs_seen, axis=0)).max() < 4 / np.sqrt(count)


@pytest.mark.parametrize('iteration', [0, 100, 2500])
def test_moves_of_l2_follow_their_definition(iteration):
    """Against the update written out for one image and one channel at a time."""
    eps, count, shape = 0.5, 40, (16, 16, 3)
    how, side = moves('l2', eps, shape), int(sides('l2', 5000, 16, 16)[iteration])
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, size=(count, *shape))
    delta = rng.standard_normal(images.shape)
    delta *= (
        rng.uniform(0.3, 1, (count, 1, 1, 1)) * eps / np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
    )
    words = np.asarray(words_of(how, count))
    x = np.asarray(
        how.propose(
            jnp.asarray(words), jnp.int32(iteration), jnp.asarray(images), jnp.asarray(images + delta)
        )
    )
    for b in range(count):
        into, out_of, both = two_windows(words[b], side)
        form = pattern(side).T if words[b, 4] & 1 else pattern(side)
        unused = max(eps**2 - (delta[b] ** 2).sum(), 0)
        moved = delta[b].copy()
        for c in range(3):
            old = delta[b, ..., c]
            new = form * (1 - 2 * int(words[b, 5 + c] & 1)) + old[into] / np.linalg.norm(old[into])
            new *= np.sqrt(unused / 3 + (old[both] ** 2).sum()) / np.linalg.norm(new)
            moved[..., c][out_of] = 0
            moved[..., c][into] = new
        moved *= eps / np.linalg.norm(moved)
        np.testing.assert_allclose(x[b], np.clip(images[b] + moved, 0, 1), rtol=0, atol=1e-10)


def projected(delta, image, eps):
    """The point of the L1 ball in [0, 1] that is nearest, by bisection."""
    room = np.minimum(np.abs(delta), np.where(delta > 0, 1 - image, image))
    low, high = 0.0, np.abs(delta).max()
    if room.sum() <= eps:
        return image + np.sign(delta) * room
    for _ in range(70):
        middle = (low + high) / 2
        inside = np.clip(np.abs(delta) - middle, 0, room).sum() <= eps
        low, high = (low, middle) if inside else (middle, high)
    return image + np.sign(delta) * np.clip(np.abs(delta) - high, 0, room)


@pytest.mark.parametrize('iteration', [0, 2500])
def test_moves_of_l1_follow_their_definition(iteration):
    """Against the update written out for one image and one channel at a time."""
    eps, count, shape = 3.0, 40, (16, 16, 3)
    how, side = moves('l1', eps, shape), int(sides('l1', 5000, 16, 16)[iteration])
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(count, *shape))
    delta = rng.standard_normal(images.shape) * (rng.uniform(size=images.shape) < 0.2)
    start = [projected(d, x, rng.uniform(0.3, 1) * eps) for d, x in zip(delta, images, strict=True)]
    delta = np.array(start) - images
    words = np.asarray(words_of(how, count))
    x = np.asarray(
        how.propose(
            jnp.asarray(words), jnp.int32(iteration), jnp.asarray(images), jnp.asarray(images + delta)
        )
    )
    for b in range(count):
        into, out_of, both = two_windows(words[b], side)
        form = pattern(side, 'l1').T if words[b, 4] & 1 else pattern(side, 'l1')
        unused = max(eps - np.abs(delta[b]).sum(), 0)
        moved = delta[b].copy()
        for c in range(3):
            old = delta[b, ..., c]
            new = form * (1 - 2 * int(words[b, 5 + c] & 1)) + old[into] / (1e-12 + np.abs(old[into]).sum())
            new *= (unused / 3 + np.abs(old[both]).sum()) * 3 / np.abs(new).sum()
            moved[..., c][out_of] = 0
            moved[..., c][into] = new
        np.testing.assert_allclose(x[b], projected(moved, images[b], eps * (1 - 1e-6)), rtol=0, atol=1e-9)


def test_start_of_l1_is_tiles_in_the_ball():
    images = jnp.full((2, 32, 32, 3), 0.5)
    keys = jax.random.split(jax.random.key(1), 2)
    start = jax.jit(MOVES['l1'](12.0, (32, 32, 3), sides('l1', 10, 32, 32)).start)(keys, images)
    delta = np.asarray(start - images)
    np.testing.assert_allclose(np.abs(delta).sum(axis=(1, 2, 3)), 12, rtol=1e-5)
    # 25 tiles of a channel have 25 between them before the projection cuts off their edges.
    assert (delta[:, [0, 31]] == 0).all() and 50 < (delta[0] != 0).sum() < 600
    for row, column in ((4, 4), (10, 22)):  # the centres of lower halves have one sign, or they are turned
        assert np.abs(delta[:, row - 3 : row + 3, column - 3 : column + 3]).max(axis=(1, 2)).min() > 0


@functools.cache
def one_by_one(norm):
    """A problem whose first image is wrong from the start, and its states after 0 to 60 iterations."""
    where = problem()
    where = where._replace(labels=where.labels.at[0].set((where.labels[0] + 1) % 5))
    return where, jax.device_get(run(square(60), where, THREATS[norm], [1] * 60))


@pytest.mark.parametrize('norm', THREATS)
def test_search(norm):
    threat, (where, states) = THREATS[norm], one_by_one(norm)
    previous = states[0]
    labels, images = np.asarray(where.labels), np.asarray(where.images)
    for state in states[1:]:
        best, margin = state.inner
        # The margin is that of the best point, and never rises.
        np.testing.assert_allclose(margin, margins(best, labels), rtol=0, atol=1e-10)
        assert (np.asarray(margin) <= np.asarray(previous.inner[1])).all()
        np.testing.assert_array_equal(state.fooled, np.asarray(margin) < 0)
        # A query for each image that is not done, and none after that.
        np.testing.assert_array_equal(state.queries - previous.queries, ~np.asarray(previous.fooled))
        done = np.asarray(previous.fooled)
        np.testing.assert_array_equal(state.found[done], previous.found[done])
        threat.audit(best, images, source='square')
        previous = state
    fooled = np.asarray(previous.fooled)
    assert previous.queries[0] == 1 and fooled[0]
    assert 1 < fooled.sum() < len(fooled)
    assert (np.asarray(previous.queries)[~fooled] == 61).all()
    np.testing.assert_array_equal(previous.found[~fooled], images[~fooled])
    assert (margins(previous.found[fooled], labels[fooled]) < 0).all()
    assert len(np.unique(np.asarray(previous.queries)[fooled])) > 1


@pytest.mark.parametrize('norm', THREATS)
def test_neither_parts_nor_batch_change_anything(norm):
    where, states = one_by_one(norm)
    whole = states[-1]
    rows = np.asarray([7, 2, 3])
    some = run(square(60), jax.tree.map(lambda leaf: leaf[rows], where), THREATS[norm], [20, 20, 20])[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[rows], b, rtol=0, atol=1e-12), whole, some)
    assert all(leaf.shape[0] == len(whole.fooled) for leaf in jax.tree.leaves(whole))


def test_every_image_has_its_own_windows():
    """The same image twice, with two keys."""
    where = jax.tree.map(lambda leaf: jnp.stack([leaf[3], leaf[3]]), problem())
    where = where._replace(keys=jax.random.split(jax.random.key(0), 2))
    state = run(square(5), where, THREATS['linf'], [5])[-1]
    assert not np.allclose(state.inner[0][0], state.inner[0][1])


def test_a_model_without_margin_is_not_fooled():
    """Equal logits: the margin is 0, but the first class is predicted."""
    where = problem(3)._replace(labels=jnp.asarray([0, 0, 1], jnp.int32))
    state = run(square(4), where, THREATS['linf'], [4], lambda x, keys: Outputs(jnp.zeros((len(x), 5))))[-1]
    np.testing.assert_array_equal(state.fooled, [False, False, True])
    np.testing.assert_array_equal(state.queries, [5, 5, 1])


def test_a_randomised_model_gets_new_keys_in_every_query():
    seen = []

    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,), images.dtype))(keys)
        jax.debug.callback(lambda n: seen.append(np.asarray(n)), noise)
        return Outputs(network(images, None).logits + 1e-9 * noise)

    run(square(3), problem(2), Threat('linf', 1e-3), [3], noisy)
    jax.effects_barrier()
    assert len(np.unique(np.concatenate(seen)[:, 0])) == 8  # two images, a start and three queries


def test_float32_stays_float32():
    where = problem(4)
    where = where._replace(images=where.images.astype(jnp.float32))
    for threat in THREATS.values():
        states = run(
            square(8), where, threat, [8], lambda x, k: Outputs(network(x, k).logits.astype(x.dtype))
        )
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(states)}
        assert dtypes == {'float32', 'bool', 'int32'}
        threat.audit(states[-1].inner[0], where.images, source='square')


def test_bad_settings_are_named():
    with pytest.raises(InputError, match='queries=0'):
        square(0)
    with pytest.raises(InputError, match=r'p_init=1.5 is not in \(0, 1\]'):
        square(p_init=1.5)
    with pytest.raises(InputError, match="unknown norm 'l3'"):
        run(square(1), problem(1), Threat('l3', 1.0), [1])
    assert (square().iterations, square().targeted) == (5000, False)
