"""Packs of few sizes, which images leave and for which they are made anew."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import Outputs, Threat
from si_jax.evaluation import packing
from si_jax.runtime.devices import at_once, compile_rows, map_rows, replicate
from tests.helpers.searches import told

THREAT = Threat('linf', 0.001)


def test_sizes_are_powers_of_two_below_the_chunk():
    assert packing.sizes(64, 1) == (64, 32)
    assert packing.sizes(512, 1) == (512, 256, 128, 64)
    assert packing.sizes(1000, 1) == (1000, 512, 256, 128)
    assert packing.sizes(20, 1) == (20,)
    assert packing.sizes(512, 8) == (512, 256)
    assert packing.sizes(600, 3) == (600, 384, 192, 96)


@pytest.mark.parametrize('sizes', [(64, 32), (20,), (1000, 512, 256, 128)])
@pytest.mark.parametrize('count', [0, 1, 32, 33, 65, 999, 2049])
def test_packs_hold_all_rows_with_little_to_spare(count, sizes):
    packs = packing.split(count, sizes)
    assert sum(packs) >= count and set(packs) <= set(sizes)
    assert sum(packs[:-1]) <= count and all(size == sizes[0] for size in packs[:-1])
    if packs:  # no smaller size would hold what is left for the last
        last = count - sum(packs[:-1])
        assert packs[-1] == min(size for size in sizes if size >= last)


@pytest.mark.parametrize('lanes', [1, 2, 16])
@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('count', [1, 2, 20, 33, 66, 100, 512])
def test_packs_that_run_side_by_side_are_alike(count, devices, lanes):
    chunk = 16 * devices
    size = packing.even(count, chunk, devices, lanes)
    packs = packing.split(count, (size,))
    assert size % devices == 0 and 0 < size <= chunk
    assert len(packs) <= -(-count // chunk) + lanes - 1  # no more than one more round needs
    if len(packs) > lanes:  # of many packs no core waits for another's: the last round is nearly full
        assert -(-len(packs) // lanes) == -(-count // (chunk * lanes))
    assert sum(packs) - count < size


def test_few_rows_fill_their_packs():
    counts = (1, 7, 20, 22, 66, 100, 512)
    assert [packing.even(count, 16, 1, 2) for count in counts] == [4, 4, 10, 11, 11, 13, 16]
    assert [packing.even(count, 128, 8, 1) for count in (1, 20, 128, 130)] == [32, 32, 128, 72]
    assert packing.even(3, 3, 1, 2) == 3  # no more than there are images
    devices = jax.local_devices()[:1]
    assert packing.sizes_for(0, 64, devices) == packing.sizes(64, 1)
    (size,) = packing.sizes_for(20, 64, devices)
    assert size == max(-(-20 // at_once(devices)), packing.LEAST_EVEN)


def images_for(iterations):
    """Images that say in which iteration `told` breaks them, and who they are."""
    iterations = np.asarray(iterations)
    images = np.zeros((len(iterations), 2, 2, 1), np.float32)
    images[:, 0, 0, 0] = iterations / 100
    images[:, 1, 1, 0] = np.arange(len(iterations)) / 1000
    return images


def search(iterations, *, devices=1, part=4, confirm=None, sizes=None, **settings):
    images = images_for(iterations)
    count = len(images)
    local = jax.local_devices()[:devices]
    keys = np.zeros((count, 2), np.uint32)
    problem = images, np.zeros(count, np.int32), keys, np.zeros(count, np.int32)
    compiled = packing.compile_search(
        told(),
        part,
        lambda weights, x, keys: Outputs(x.reshape(len(x), -1)),
        THREAT,
        jax.random.key_impl(jax.random.key(0)),
        local,
        sizes or tuple(devices * size for size in (16, 8, 4)),
    )
    confirm = confirm or (lambda rows, found: np.ones(len(rows), bool))
    weights = replicate([], local)
    return packing.run_search(compiled, weights, problem, confirm, **settings), images


RNG = np.random.default_rng(0)
WHEN = RNG.integers(0, 24, 53)  # half of them are not broken in 12 iterations


@pytest.mark.parametrize(('devices', 'part'), [(1, 1), (1, 5), (8, 4), (1, 50)])
def test_every_row_gets_what_it_would_get_alone(devices, part):
    outcome, images = search(WHEN, devices=devices, part=part)
    assert_array_equal(outcome.broken, WHEN < 12)
    assert_array_equal(outcome.queries, np.minimum(WHEN + 1, 12))
    assert_array_equal(outcome.images, np.clip(images[WHEN < 12] + np.float32(0.001), 0, 1))
    assert outcome.refused == 0 and outcome.final is None


def test_survivors_are_packed_again_and_only_when_that_saves_room(monkeypatch):
    made = []
    init = packing._Pack.__init__

    def recorded(self, rows, size, *rest):
        made.append((len(rows), size))
        init(self, rows, size, *rest)

    monkeypatch.setattr(packing._Pack, '__init__', recorded)
    # 20 rows; 10 leave in the first part, 1 in the second, 6 in the third and last.
    search([0] * 10 + [5] + [9] * 6 + [99] * 3)
    assert made == [(16, 16), (4, 4), (10, 16)]
    made.clear()
    search([0] * 17 + [99] * 3)
    assert made == [(16, 16), (4, 4), (3, 4)]
    made.clear()
    search([0] * 20)  # none is left
    assert made == [(16, 16), (4, 4)]


def test_programs_are_compiled_once_for_each_size(caplog):
    with jax.log_compiles():
        search([0] * 10 + [5] * 6 + [9] * 30 + [99] * 30, part=3)
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith('Compiling')]
    on_images = [message for message in compiled if ',2,2,1]' in message]
    # init and advance for packs of 16; advance alone for the smaller ones, which are made later.
    assert len(on_images) <= 4 and len(on_images) == len({m.split(' with ')[1] for m in on_images})


def test_a_claim_that_is_refused_does_not_count_and_the_search_goes_on():
    asked = []

    def confirm(rows, found):
        asked.append(rows.copy())
        return np.array([len(asked) > 1 or row % 2 == 0 for row in rows])

    outcome, _ = search([0] * 6, confirm=confirm, part=4)
    assert outcome.broken.all() and outcome.refused == 3
    assert [sorted(rows) for rows in asked] == [[0, 1, 2, 3, 4, 5], [1, 3, 5]]
    assert_array_equal(outcome.queries, [1, 2, 1, 2, 1, 2])
    never, _ = search([0] * 6, confirm=lambda rows, found: np.zeros(len(rows), bool), part=4)
    assert not never.broken.any() and never.refused == 18 and len(never.images) == 0


def test_final_states_are_those_of_the_rows_that_lasted():
    outcome, images = search([0, 99, 99, 3, 99], final=True, part=4)
    lasted = ~outcome.broken
    assert_array_equal(outcome.final[lasted], images[lasted])
    assert not outcome.final[~lasted].any()


def test_the_share_of_the_iterations_is_shown(monkeypatch):
    shares = []
    monkeypatch.setattr(packing.progress, 'done', shares.append)
    search([99] * 3, part=5)
    assert shares == [5 / 12, 10 / 12, 1.0]


def test_map_rows_takes_the_smallest_size_for_the_last_chunk():
    seen = []

    def function(shared, x):
        seen.append(x.shape[0])
        return x + shared

    local = jax.local_devices()[:1]
    compiled = compile_rows(function, local)
    rows = (np.arange(37, dtype=np.float32),)
    assert_array_equal(map_rows(compiled, np.float32(1), rows, (16, 8, 4), local), rows[0] + 1)
    assert seen == [16, 8]
