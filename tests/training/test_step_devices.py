"""The step on one and on eight devices: the same numbers, equal copies of the state, one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from si_jax.defenses import DEFENSES, from_config
from si_jax.runtime import devices
from si_jax.threat import Threat
from si_jax.training.awp import Perturbation
from si_jax.training.helper import attached, term_of
from si_jax.training.schedules import sgd
from si_jax.training.setup import step_of
from si_jax.training.state import Batch, TrainState, create_state
from si_jax.training.update import Calendar, Ingredients, metric_names
from tests.helpers.tiny import TinyNet

SHAPE, CLASSES = (8, 8, 1), 10
THREAT = Threat('linf', 0.2)


def defense_of(name, si, **changes):
    weights = {term: row.weight for term, row in DEFENSES[name].outer.items()}
    base = {
        'name': name,
        'si': si,
        'weights': weights,
        'scale': 15.0,
        'margin': 0.2,
        'start': 'uniform',
        'attack_bn': 'eval',
        'passes': ','.join(DEFENSES[name].passes),
        'replays': DEFENSES[name].replays,
        'branches': DEFENSES[name].branches,
    }
    return from_config(base | changes)


def own(name):
    """The settings of a row."""
    return {'start': DEFENSES[name].start, 'attack_bn': DEFENSES[name].attack_bn}


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def make(defense, axis, *, sync_bn=True, dtype=jnp.float64, rate=0.05, class_weights=(), awp=None):
    bn_axis, branch = axis if sync_bn else None, 0 if defense.branches else None
    model = TinyNet(CLASSES, bn_axis, defense.hypersphere, bn_branch=branch)
    optimiser = sgd(lambda step: rate, momentum=0.9, nesterov=False, weight_decay=5e-4, clip_norm=0.0)
    helper = None
    if term_of(defense):
        helper = TinyNet(CLASSES)
        variables = helper.init(jax.random.key(9), jnp.zeros((1, *SHAPE)))
        defense = attached(defense, variables)
    memory = defense.first_memory(CLASSES)
    state = create_state(model, optimiser, metric_names(defense), seed=0, image_shape=SHAPE, memory=memory)
    if dtype == jnp.float64:
        state = TrainState(**widened(state._asdict()))
    parts = Ingredients(
        defense=defense,
        model=model,
        optimiser=optimiser,
        threat=THREAT,
        attack_steps=min(2, defense.steps),
        attack_step_size=0.15 if defense.persistent else 0.1,
        axis_name=axis,
        sync_bn=sync_bn,
        calendar=Calendar(2, 1),
        class_weights=class_weights,
        awp=awp,
        helper=helper,
    )
    return state, step_of(defense).make(parts)


def make_batch(seed, rows, real, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), rows)
    images = jnp.asarray(rng.uniform(size=(rows, *SHAPE)), dtype)
    labels = jnp.asarray(rng.integers(0, CLASSES, rows), jnp.int32)
    return Batch(images, labels, jnp.arange(rows) < real, keys)


def mapped(step):
    return jax.pmap(step, axis_name=devices.AXIS, in_axes=(None, 0, 0), out_axes=(None, 0, None))


def shard_mapped(step):
    mesh = Mesh(np.array(jax.devices()), (devices.AXIS,))
    rows, whole = PartitionSpec(devices.AXIS), PartitionSpec()
    body = jax.shard_map(
        step, mesh=mesh, in_specs=(whole, rows, rows), out_specs=(whole, rows, whole), check_vma=False
    )
    return jax.jit(body)


def distance(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    scale = lambda x: max(1e-3, float(np.max(np.abs(x))))  # noqa: E731
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) / scale(np.asarray(x)) for x, y in leaves)


@pytest.mark.parametrize(('name', 'si'), [('trades', True), ('mart', False)])
def test_one_device_pmap_and_shard_map_agree_with_an_empty_shard(name, si):
    # 40 rows in 8 shards of 5, of which 32 are real: the last shard is all padding, one is partly.
    defense, weights = defense_of(name, si), {'class_weights': tuple(range(1, 1 + CLASSES)) if si else ()}
    alone_state, alone = make(defense, None, **weights)
    pmap_state, spread = make(defense, devices.AXIS, **weights)
    shard_state = pmap_state
    alone, over_pmap, over_shards = jax.jit(alone), mapped(spread), shard_mapped(spread)
    for index in range(2):
        batch = make_batch(index, 40, 33)
        alone_state, _, metrics = alone(alone_state, (), batch)
        pmap_state, _, pmap_metrics = over_pmap(pmap_state, (), devices.shard_rows(batch))
        shard_state, _, shard_metrics = over_shards(shard_state, (), batch)
    assert distance(alone_state.params, pmap_state.params) < 1e-9
    assert distance(alone_state.batch_stats, pmap_state.batch_stats) < 1e-9
    assert distance(alone_state.params, shard_state.params) < 1e-9
    assert float(pmap_metrics['loss']) == pytest.approx(float(metrics['loss']), rel=1e-6)
    assert float(shard_metrics['loss']) == pytest.approx(float(metrics['loss']), rel=1e-6)
    assert float(metrics['loss']) > 0 and int(pmap_state.step) == 2


@pytest.mark.parametrize(
    'case',
    [
        'gat',
        'rfgsm',
        'gradalign',
        'freeat',
        'calibrated',
        'nfgsm',
        'nuat',
        'ellea',
        'dkl',
        'hat',
        'dajat',
        'eat',
    ],
)
def test_one_and_eight_devices_agree_on_the_other_methods(case):
    """Statistics of the batch inside the attack, gradients of gradients, the median over all devices.

    Of the whole batch are also NuAT's norm, what ELLE-A and IKL remember, AWP's gradient, from the second
    step on, and E-AT's choice and counts.
    """
    if case == 'calibrated':
        defense = defense_of('trades', False, inner='calibrated_ce')
    else:
        defense = defense_of(case, True, **own(case))
    free = case == 'freeat'
    awp = {'awp': Perturbation(0.1, 1)} if case == 'ellea' else {}
    alone_state, alone = make(defense, None, **awp)
    spread_state, spread = make(defense, devices.AXIS, **awp)
    if case == 'nuat':  # lambda is 0 in the first epoch
        alone_state, spread_state = (
            state._replace(step=jnp.int32(3)) for state in (alone_state, spread_state)
        )
    alone, spread = jax.jit(alone), mapped(spread)
    alone_carry = spread_carry = ()
    if free:
        alone_carry = jnp.zeros((40, *SHAPE))
        spread_carry = devices.shard_rows(alone_carry)
    for index in range(2):
        batch = make_batch(index, 40, 33)
        if case == 'dajat':
            batch = batch._replace(augmented=(batch.images**2, 1 - batch.images))
        alone_state, alone_carry, metrics = alone(alone_state, alone_carry, batch)
        spread_state, spread_carry, spread_metrics = spread(
            spread_state, spread_carry, devices.shard_rows(batch)
        )
    assert distance(alone_state.params, spread_state.params) < 1e-9
    assert distance(alone_state.batch_stats, spread_state.batch_stats) < 1e-9
    assert not alone_state.memory or distance(alone_state.memory, spread_state.memory) < 1e-9
    if case == 'ellea':
        assert int(spread_state.memory['nonlinearity'].total) == 2
    if case == 'eat':
        counts = np.asarray(spread_state.memory['withstood'])
        np.testing.assert_array_equal(counts, alone_state.memory['withstood'])
        assert counts[:, 1].sum() == 66 and (counts[:, 0] <= counts[:, 1]).all()
    for name, value in metrics.items():
        assert float(spread_metrics[name]) == pytest.approx(float(value), rel=1e-6), name
    if free:
        carry = devices.join_rows(spread_carry)
        np.testing.assert_allclose(carry, alone_carry, atol=1e-12)
        assert np.abs(carry[:33]).max() > 0.1 and not carry[33:].any()


def test_a_bad_step_keeps_the_perturbation():
    state, step = make(defense_of('freeat', False, start='original'), None, dtype=jnp.float32)
    step = jax.jit(step)
    state, carry, _ = step(state, jnp.zeros((8, *SHAPE)), make_batch(0, 8, 8, jnp.float32))
    bad = make_batch(1, 8, 8, jnp.float32)
    bad = bad._replace(images=bad.images.at[3, 0, 0, 0].set(jnp.nan))
    for batch in (bad, make_batch(2, 8, 8, jnp.float32)):
        state, kept, _ = step(state, carry, batch)
        assert int(state.bad_step) == 1
        np.testing.assert_array_equal(kept, carry)


@pytest.mark.parametrize(
    ('name', 'si', 'sync_bn'),
    [('at', False, True), ('alp', True, False), ('gradalign', True, False), ('gat', True, True)],
)
def test_all_copies_of_the_state_are_bit_equal(name, si, sync_bn):
    defense = defense_of(name, si, **own(name))
    state, step = make(defense, devices.AXIS, sync_bn=sync_bn, dtype=jnp.float32)
    compiled = jax.pmap(step, axis_name=devices.AXIS, in_axes=(None, 0, 0), out_axes=0)
    copies, _, metrics = compiled(state, (), devices.shard_rows(make_batch(0, 40, 36, jnp.float32)))
    for leaf in jax.tree.leaves((copies, metrics)):
        array = np.asarray(leaf)
        assert array.shape[0] == 8
        assert all(array[0].tobytes() == copy.tobytes() for copy in array[1:])
    moved = [
        np.any(np.asarray(a) != np.asarray(b)[0])
        for a, b in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(copies.batch_stats), strict=True)
    ]
    assert all(moved)


def test_one_compilation_for_many_steps_and_a_donated_state():
    state, step = make(defense_of('at', False), devices.AXIS, dtype=jnp.float32)
    compiles = 0

    def counted(state, carry, data, batch, key):
        nonlocal compiles
        compiles += 1
        return step(state, carry, batch)

    compiled = devices.compile_step(counted)
    state, carry = devices.replicate(state), ()
    nothing, key = devices.replicate(np.zeros(1)), devices.replicate(jax.random.key(0))
    for index in range(3):
        given = state
        batch = devices.shard_rows(make_batch(index, 16, 16, jnp.float32))
        state, carry, _ = compiled(state, carry, nothing, batch, key)
    assert compiles == 1
    assert given.params['linear']['kernel'].is_deleted()
    assert isinstance(state.params['linear']['kernel'].sharding, NamedSharding)


def test_a_loss_that_is_not_finite_freezes_the_state_and_names_the_step():
    state, step = make(defense_of('trades', True), devices.AXIS, dtype=jnp.float32)
    compiled = mapped(step)
    batches = [devices.shard_rows(make_batch(index, 16, 16, jnp.float32)) for index in range(3)]
    state, _, _ = compiled(state, (), batches[0])
    good = jax.device_get(state)
    poisoned = batches[1]._replace(images=batches[1].images.at[3, 0, 0, 0, 0].set(jnp.nan))
    state, _, metrics = compiled(state, (), poisoned)
    assert not np.isfinite(metrics['loss'])
    assert int(state.bad_step) == 1 and int(state.step) == 1
    assert not np.isfinite(state.bad_terms['natural_ce'])
    # Later, healthy batches change nothing either.
    state, _, metrics = compiled(state, (), batches[2])
    assert np.isfinite(metrics['loss']) and int(state.bad_step) == 1
    for kept, now in zip(jax.tree.leaves(good.params), jax.tree.leaves(state.params), strict=True):
        assert kept.tobytes() == np.asarray(now).tobytes()


def test_padded_rows_count_for_nothing_even_if_they_are_not_finite():
    defense = defense_of('mart', True)
    state, step = make(defense, None)
    step = jax.jit(step)
    batch = make_batch(0, 12, 12)
    expected, _, _ = step(state, (), batch)
    padding = make_batch(5, 4, 0)
    padding = padding._replace(images=padding.images.at[0].set(0.0).at[1].set(1.0))
    padded = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, padding)
    got, _, _ = step(state, (), padded)
    assert distance(expected.params, got.params) < 1e-9
    assert distance(expected.batch_stats, got.batch_stats) < 1e-9


def test_every_defense_runs_a_step_with_every_switch():
    for name in DEFENSES:
        for si in (False, True) if name != 'standard' else (False,):
            assert defense_of(name, si, **own(name)).outer
    switched = defense_of('trades', False, passes='nat,adv,nat', start='gaussian', attack_bn='train')
    # The factor of a calibrated attack is on the score of its first term alone.
    for defense in (switched, defense_of('gat', False, inner='calibrated_ce')):
        state, step = make(defense, None, dtype=jnp.float32)
        state, _, metrics = jax.jit(step)(state, (), make_batch(0, 8, 7, jnp.float32))
        assert np.isfinite(metrics['loss']) and int(state.step) == 1 and int(state.bad_step) == -1
        assert set(metrics) == set(metric_names(defense))
