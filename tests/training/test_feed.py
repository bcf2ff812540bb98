"""What a step is handed: extra images, streamed data, the same on any devices and after any interruption."""

import contextlib
import json
import shutil
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.cost import planning
from si_jax.data import SOURCES
from si_jax.data.stream import Joined
from si_jax.errors import InputError
from si_jax.runtime import devices
from si_jax.training import recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.feed import AHEAD, Batches, Streamed, with_data
from si_jax.training.loop import run
from si_jax.training.setup import feed_of, may_repeat, plan, rows_of_step, setup

STEPS = 4  # of an epoch with extra images: 28 images, of which 8 are held out, in batches of 8


def images(count, seed, mark, name='digits'):
    """Random images of every class; the first pixel is the mark."""
    source = SOURCES[name]
    pixels = np.random.default_rng(seed).integers(0, source.scale + 1, (count, *source.shape), dtype=np.uint8)
    pixels[:, 0, 0] = mark
    return pixels, (np.arange(count) % 10).astype(np.int64)


def save_extra(path, seed=1, name='digits'):
    """40 extra images, whose mark is not that of the real ones."""
    pixels, labels = images(40, seed, 16, name)
    np.savez(path, image=pixels, label=labels)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """28 images to train on, and 40 extra ones in a file of their own, of two sets."""
    folder = tmp_path_factory.mktemp('images')
    for name in ('digits', 'cifar10'):
        pixels, labels = images(28, 0, 0, name)
        np.savez(folder / f'{name}_train.npz', images=pixels, labels=labels)
        save_extra(folder / f'{name}_extra.npz', name=name)
    return folder


def config(folder, defense='standard', name='digits', **changes):
    made = recipes.paper(defense, dataset=name, arch='small_cnn')
    small = {
        'data.dir': str(folder), 'data.validation': 8, 'batch_size': 8, 'model.width': 2, 'attack.steps': 1,
        'evaluation.steps': 1, 'logging.tensorboard': False, 'epochs': 2, 'checkpoint.every_steps': 3,
        'checkpoint.keep_last': 20, 'schedule.peak': 0.1,
    }  # fmt: skip
    made.update_from_flattened_dict(small | changes)
    return made


def with_extra(folder, name='digits', **changes):
    file = {'data.extra': str(folder / f'{name}_extra.npz'), 'data.extra_share': 0.5}
    return config(folder, name=name, **file | changes)


# Held-out images are left out, whose program takes long to compile.
STREAMED = {'data.stream': 'always', 'data.validation': 0}
EVERYTHING = {
    'data.cutmix': 2, 'average.kind': 'ema', 'average.batch_stats': 'recompute', 'data.extra_draws': 'passes'
}  # fmt: skip


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope='module')
def resident(folder, tmp_path_factory):
    """A run with extra images and everything else that sees other images, its data on the devices."""
    place = tmp_path_factory.mktemp('resident')
    made = with_extra(folder, **EVERYTHING, **STREAMED | {'data.stream': 'never'})
    return place, jax.device_get(run(made, str(place)))


def test_a_streamed_run_is_a_resident_one_bit_for_bit_also_after_a_kill(folder, resident, tmp_path):
    """Streamed from step 3 on, in the middle of an epoch, then killed after step 6 and resumed."""
    place, state = resident
    assert int(state.step) == 2 * STEPS
    again = tmp_path / 'again'
    shutil.copytree(place, again)
    made = with_extra(folder, **EVERYTHING, **STREAMED)
    for last in (3, 6):
        checkpoints = Checkpoints(again / 'checkpoints')
        checkpoints.remove(last + 1)
        assert checkpoints.latest_step == last
        same(jax.device_get(run(made, str(again))), state)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('feed')]
    other, before = (Checkpoints(each / 'checkpoints') for each in (again, place))
    for step in (4, 6, 8):
        same(other.restore(step).state, before.restore(step).state)


def test_a_streamed_freeat_run_is_a_resident_one(folder, tmp_path):
    """Its replays see one batch several times, and the last one of a pass is partly padding."""
    changes = {'defense.replays': 2, 'epochs': 3, 'data.limit': 20}
    states = []
    for stream in ('always', 'never'):
        made = config(folder, 'freeat', **STREAMED | changes | {'data.stream': stream, 'data.validation': 0})
        with pytest.warns(UserWarning, match='is no multiple of the 2 replays'):
            states.append(jax.device_get(run(made, str(tmp_path / stream))))
    same(*states)
    assert int(states[0].step) == 9


class Position(NamedTuple):
    """As much of a state as the augmentation reads."""

    step: Any


def batches_of(ready, count):
    """The batches that so many devices are given in two steps, [repetition, row of the batch]."""
    used, mixtures = jax.devices()[:count], ready.config.data.cutmix

    def step(state, carry, batch):
        return (
            state,
            carry,
            jax.lax.all_gather(batch._replace(keys=jax.random.key_data(batch.keys)), devices.AXIS),
        )

    def ordered(leaf):  # [device, row of it in each repetition]
        leaf = np.asarray(leaf).reshape(count, mixtures, -1, *leaf.shape[2:])
        return np.swapaxes(leaf, 0, 1).reshape(mixtures, -1, *leaf.shape[3:])

    how = {'streamed': ready.streamed, 'repeats': may_repeat(ready)}
    compiled = devices.compile_step(with_data(step, ready.train, 1, mixtures, **how), used)
    found = []
    with contextlib.closing(feed_of(ready)) as feed:
        for number in (1, STEPS):
            resident, rows, key = feed(number)
            given = devices.replicate((Position(jnp.int32(number)), jax.device_get(resident), key), used)
            rows = devices.place_rows(devices.join_rows(rows), used)
            _, _, batch = compiled(given[0], (), given[1], rows, given[2])
            found.append(jax.tree.map(ordered, batch))
    return found


def test_batches_are_the_same_on_one_and_on_eight_devices_streamed_or_not(folder):
    made = with_extra(folder, 'cifar10', **{'data.cutmix': 2})
    found = batches_of(setup(made), 1)
    made.data.stream = 'always'
    same(batches_of(setup(made), 8), found)
    assert found[0].images.shape == (2, 8, 32, 32, 3) and found[0].mask.all()


def test_an_image_that_is_drawn_twice_for_a_batch_has_other_random_numbers_the_second_time(tmp_path):
    """Half of each batch is of a class with one image. On one device and on eight they are the same."""
    pixels, labels = images(28, 0, 0)
    few = np.array([0, 1, 11, 21])  # one image of class 0 and three of class 1
    np.savez(tmp_path / 'train.npz', images=pixels[few], labels=labels[few])
    made = config(tmp_path, name=f'npz:{tmp_path}', **{'data.validation': 0, 'data.balanced': True})
    made.data.update(dir=None, cutmix=1)
    made.batch_size, made.model.width = 8, 2
    ready = setup(made)
    one, eight = batches_of(ready, 1), batches_of(ready, 8)
    same(one, eight)
    keys = one[0].keys[0][one[0].mask[0]]
    assert len(keys) == 4 and len(np.unique(keys, axis=0)) == 4


def test_extra_images_have_their_share_and_none_is_held_out(folder):
    ready = setup(with_extra(folder))
    assert ready.steps_per_epoch == STEPS == 28 // 8 + 1
    assert len(ready.train.labels) == 20 and len(ready.validation.labels) == 8
    assert not ready.validation.images[:, 0, 0].any() and not ready.train.images[:, 0, 0].any()
    assert ready.extra.images[np.arange(40)][:, 0, 0].all()
    feed = feed_of(ready)
    (pixels, labels), _, _ = feed(0)
    for step in range(2 * STEPS):
        indices, mask = (np.asarray(rows).reshape(8, -1)[:, step % STEPS] for rows in feed(step)[1])
        assert mask.all() and rows_of_step(ready, step) == 8
        assert (np.asarray(pixels)[indices, 0, 0, 0] == 16).sum() == 4
        extra = indices[indices >= 20]
        np.testing.assert_array_equal(np.asarray(labels)[extra], (extra - 20) % 10)
    said = plan(ready)
    assert (
        f'extra images: 40 from {folder / "digits_extra.npz"} (digest {ready.extra.digest}), 4 of the 8'
        in said
    )
    assert 'steps an epoch: 4, ' in said and 'images: 20, held out: 8' in said


def test_what_a_thread_prepares_is_what_is_asked_for_in_any_order():
    pixels = np.arange(24, dtype=np.uint8).reshape(24, 1, 1, 1)
    asked = []

    def of_pass(number):
        asked.append(number)
        return (np.arange(24, dtype=np.int32).reshape(3, 8) + number) % 24, np.ones((3, 8), bool)

    feed = Streamed(Joined([pixels]), np.arange(24, dtype=np.int32), Batches(of_pass, 3, 2), 0)
    for step in (0, 1, 2, 3, 7, 17, 4):
        _, (images, labels, indices, mask), _ = feed(step)
        pass_, position = divmod(step // 2, 3)
        expected = (np.arange(8) + 8 * position + pass_) % 24
        for one in (images, labels, indices):
            np.testing.assert_array_equal(np.asarray(one).ravel(), expected)
        assert np.asarray(mask).all() and len(feed.under_way) == 1 + AHEAD
    feed.close()


def test_an_error_of_the_thread_ends_the_run():
    def of_pass(number):
        raise OSError('the file is gone')

    feed = Streamed(Joined([np.zeros((8, 1, 1, 1), np.uint8)]), np.zeros(8), Batches(of_pass, 1, 1), 0)
    with pytest.raises(OSError, match='the file is gone'):
        feed(0)
    feed.close()


def test_a_resume_takes_the_extra_file_wherever_it_lies_but_no_other(folder, resident, tmp_path):
    place = tmp_path / 'run'
    shutil.copytree(resident[0], place)
    (tmp_path / 'moved').mkdir()
    moved = tmp_path / 'moved' / 'extra.npz'
    shutil.copy(folder / 'digits_extra.npz', moved)
    changes = EVERYTHING | {'data.validation': 0, 'epochs': 3}
    made = with_extra(folder, **changes)
    made.data.extra = str(moved)
    other = save_extra(tmp_path / 'other.npz', seed=2)
    wrong = with_extra(folder, **changes)
    wrong.data.extra = str(other)
    words = f'its extra data are 40 images from {folder}/digits_extra.npz with the digest .*, those of this'
    with pytest.raises(InputError, match=f'{words} command 40 .*--config.data.extra=FILE.npz'):
        run(wrong, str(place))
    wrong.data.extra = ''
    with pytest.raises(InputError, match='trained with extra data, 40 images .*, and this command has none'):
        run(wrong, str(place))
    assert int(run(made, str(place)).step) == 3 * STEPS
    recorded = json.loads((place / 'config.json').read_text())
    assert recorded['data']['extra'] == str(moved)


def test_a_run_without_extra_images_takes_none_later(folder, tmp_path):
    run(config(folder, **{'data.validation': 0, 'epochs': 1}), str(tmp_path))
    made = with_extra(folder, **{'data.validation': 0, 'data.extra_share': 0.7})
    with pytest.raises(InputError, match='trained without extra data, 40 images .*, which this command has'):
        run(made, str(tmp_path))


def test_copies_of_held_out_images_among_the_extra_ones_are_counted(folder, tmp_path):
    held_out = setup(config(folder)).validation
    pixels, labels = images(40, 1, 16)
    pixels[3], pixels[9] = held_out.images[:2]
    np.savez(tmp_path / 'extra.npz', image=pixels, label=labels)
    with pytest.warns(UserWarning, match=f'2 of 8 held-out images are also trained on.*{tmp_path}/extra.npz'):
        setup(with_extra(folder, **{'data.extra': str(tmp_path / 'extra.npz')}))


def test_the_recipe_with_generated_images_asks_for_them_before_it_reads_any(monkeypatch):
    monkeypatch.setattr('si_jax.data.load', None)
    with pytest.raises(InputError, match='trains with generated images.*give --config.data.extra=FILE.npz'):
        setup(recipes.recipe('wang2023_cifar10'))


def test_the_planner_counts_an_epoch_as_training_does(folder):
    changes = {'batch_size': 512, 'data.validation': 1024, 'data.extra_share': 0.7}
    one = planning.describe(with_extra(folder, 'cifar10', **changes))
    before = planning.describe(config(folder, name='cifar10'))
    assert one.images == 98 * 512 and before.images == 50_000 - 8
    assert one.data_bytes == (50_000 - 1024 + 40) * 3072
    machine = planning.accelerator('a100', 'float32')
    assert planning.memory(one, machine, 1).data == one.data_bytes
    streamed = planning.describe(with_extra(folder, 'cifar10', **changes | {'data.stream': 'always'}))
    assert planning.memory(streamed, machine, 1).data == 0
