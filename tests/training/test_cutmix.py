"""CutMix: boxes by hand, mixtures that do not depend on the devices, defenses that have no form for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from si_jax import data, defenses, objectives
from si_jax.data import box, random_box
from si_jax.defenses import DEFENSES, with_he, with_si
from si_jax.errors import InputError
from si_jax.runtime import devices
from si_jax.training import recipes
from si_jax.training.feed import with_data
from si_jax.training.setup import setup


@pytest.mark.parametrize(
    ('share', 'centre', 'rows', 'columns'),
    [
        # Sides int(32 sqrt .25) = 16, half of it 8.
        (0.75, (16, 16), (8, 24), (8, 24)),
        (0.75, (2, 30), (0, 10), (22, 32)),  # cut off at the edges
        (0.0, (16, 16), (0, 32), (0, 32)),
        (1.0, (5, 5), (5, 5), (5, 5)),  # nothing
        (0.998, (5, 5), (5, 5), (5, 5)),  # int(32 sqrt .002) = 1, half of it 0
    ],
)
def test_boxes_by_hand(share, centre, rows, columns):
    inside, left = box(jnp.float32(share), jnp.asarray(centre, jnp.int32), 32, 32)
    expected = np.zeros((32, 32), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(inside, expected)
    assert float(left) == pytest.approx(1 - expected.mean(), abs=1e-6)


def test_random_boxes_have_the_law_of_the_source():
    """lambda is uniform, and so is the centre: 1 - lambda is half of the image, less what is cut off."""
    keys = jax.random.split(jax.random.key(0), 4000)
    insides, left = jax.vmap(lambda key: random_box(key, 32, 32))(keys)
    rng = np.random.default_rng(0)
    half = (32 * np.sqrt(1 - rng.uniform(size=100_000))).astype(int) // 2
    i, j = rng.integers(0, 32, (2, 100_000))
    sides = [np.clip(c + half, 0, 32) - np.clip(c - half, 0, 32) for c in (i, j)]
    assert float(left.mean()) == pytest.approx(1 - np.mean(sides[0] * sides[1]) / 1024, abs=0.015)
    np.testing.assert_allclose(1 - insides.mean((1, 2)), left, atol=1e-6)


def mixtures(count, number=2):
    """What a step of 14 real images in a batch of 16 is given on so many devices, joined."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 6, 6, 1), endpoint=True, dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.int32)
    train = data.SOURCES['digits'].dataset('digits', images, labels)
    order, mask = data.epoch_batches(np.random.default_rng(1).permutation(20)[:14].astype(np.int32), 16)

    def step(state, carry, batch):
        return state, carry, batch._replace(keys=jax.random.key_data(batch.keys))

    call = with_data(step, train, 1, number)
    used = jax.devices()[:count]
    whole, rows = PartitionSpec(), PartitionSpec(devices.AXIS)

    def shard(resident, part, key):
        state = type('State', (), {'step': jnp.int32(0)})()
        return call(state, (), resident, part, key)[2]

    over = Mesh(np.array(used), (devices.AXIS,))
    specs = (whole, rows, whole)
    compiled = jax.jit(jax.shard_map(shard, mesh=over, in_specs=specs, out_specs=rows, check_vma=False))
    arrays = (images, labels), (order.T, mask.T), jax.random.key(0)
    batch = compiled(*jax.device_put(arrays, tuple(NamedSharding(over, spec) for spec in specs)))
    each = 16 // count

    def ordered(leaf):  # [device, repetition, row] -> [repetition, row of the batch]
        leaf = np.asarray(leaf).reshape(count, number, each, *leaf.shape[1:])
        return np.swapaxes(leaf, 0, 1).reshape(number, 16, *leaf.shape[3:])

    return jax.tree.map(ordered, batch), images[order[0]] / np.float32(16), labels[order[0]]


def test_mixtures_are_the_same_on_one_and_on_eight_devices():
    one, images, labels = mixtures(1)
    eight, _, _ = mixtures(8)
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    assert one.mask.sum() == 28 and not one.mask[:, 14:].any()
    for repetition in range(2):
        changed = (one.images[repetition] != images)[:14].any((0, 3))
        share = 1 - changed.mean()
        assert changed.any()
        for row in range(14):
            mixed, soft = one.images[repetition, row], one.soft[repetition, row]
            np.testing.assert_array_equal(mixed[~changed], images[row][~changed])
            # In the box it is an image of the batch, a real one, with its label.
            other = [k for k in range(14) if np.array_equal(mixed[changed], images[k][changed])]
            assert len(other) == 1
            expected = share * np.eye(10)[labels[row]] + (1 - share) * np.eye(10)[labels[other[0]]]
            np.testing.assert_allclose(soft, expected, atol=1e-6)
            assert one.labels[repetition, row] == labels[row if share >= 0.5 else other[0]]
    assert np.any(one.images[0] != one.images[1]) and np.any(one.keys[0] != one.keys[1])


@pytest.mark.parametrize(
    ('defense', 'message'),
    [
        (DEFENSES['mart'], 'no form for mixed labels was published of mart_bce, weighted_kl'),
        (DEFENSES['freeat'], 'the perturbation of FreeAT belongs to single images'),
        (with_he(DEFENSES['trades']), 'no form for mixed labels was published of natural_ce'),
    ],
)
def test_defenses_without_a_form_are_refused(defense, message):
    with pytest.raises(InputError, match=f'{message}.*--config.data.cutmix=0'):
        defenses.check_soft_labels(defense)


def test_the_attack_of_trades_climbs_the_divergence_from_the_mixed_label():
    """As in wzekai99/DM-Improves-AT: what the network says of the natural image does not matter."""
    rng = np.random.default_rng(0)
    adv, nat = rng.normal(size=(2, 3, 4))
    soft = rng.dirichlet(np.ones(4), 3)
    inner = defenses.DEFENSES['trades'].attack.objective
    mixed = objectives.with_soft_labels(inner, soft)
    slope = jax.grad(lambda scores: mixed(scores, nat, None).sum())(adv)
    np.testing.assert_allclose(slope, jax.nn.softmax(adv) - soft, atol=1e-12)
    other = jax.grad(lambda scores: inner(scores, nat, None).sum())(adv)
    np.testing.assert_allclose(other, jax.nn.softmax(adv) - jax.nn.softmax(nat), atol=1e-12)


def test_those_with_a_form_are_not():
    for name in ('standard', 'at', 'trades', 'alp', 'gat', 'rfgsm', 'gradalign'):
        defenses.check_soft_labels(DEFENSES[name])
        if name != 'standard':
            defenses.check_soft_labels(with_si(DEFENSES[name]))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data.cutmix': -1}, 'data.cutmix=-1 is negative'),
        ({'data.cutmix': 2, 'data.class_weights': (1.0,) * 10}, 'data.class_weights=\\(\\) or'),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    config = recipes.recipe('quickstart')
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        setup(config)
