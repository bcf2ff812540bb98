"""A config is refused before anything is computed, with the value, the limit and the remedy."""

import numpy as np
import pytest

from configs import quickstart
from si_jax import data
from si_jax.defenses import DEFENSES
from si_jax.errors import InputError
from si_jax.training import recipes
from si_jax.training.setup import batch_of_step, order_of, plan, setup
from si_jax.training.step import step_of


@pytest.mark.parametrize(
    ('field', 'value', 'words'),
    [
        ('threat.eps', 8.0, ['eps=8', '8/255']),
        ('threat.eps', -0.1, ['eps=-0.1', '(0, 1]']),
        ('threat.norm', 'l3', ['l3', 'linf']),
        ('batch_size', 12, ['batch_size=12', '8 devices', '8 or 16']),
        ('epochs', 0, ['epochs=0']),
        ('data.name', 'cifar11', ['cifar11', 'cifar10']),
        ('data.validation', 5000, ['5000', '1400']),
        ('data.limit', -1, ['limit=-1']),
        ('defense.name', 'trade', ['trade', 'trades']),
        ('defense.weights.kl', -1.0, ['kl=-1']),
        ('defense.passes', 'adv', ['nat', 'natural_ce']),
        ('model.arch', 'resnet19', ['resnet19', 'resnet18']),
        ('attack.steps', 0, ['attack.steps=0']),
        ('schedule.peak', 0.0, ['peak=0']),
        ('schedule.boundaries', (74.0, 89.0), ['74', 'fractions']),
        ('optimiser.momentum', 1.5, ['momentum=1.5']),
        ('logging.every_steps', 0, ['every_steps=0']),
    ],
)
def test_a_wrong_value_is_named(field, value, words):
    config = quickstart.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as error:
        setup(config)
    assert all(word in str(error.value) for word in words), error.value


def test_limit_takes_the_first_images_that_the_validation_split_leaves():
    whole, config = setup(quickstart.get_config()), quickstart.get_config()
    config.data.limit = 100
    ready = setup(config)
    assert len(ready.train.labels) == 100 and len(ready.validation.labels) == 200
    assert (ready.train.images == whole.train.images[:100]).all()
    assert (ready.validation.images == whole.validation.images).all()
    assert ready.steps_per_epoch == -(-100 // config.batch_size)


def test_a_step_that_is_not_registered_or_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"unknown training step 'fre': did you mean free"):
        step_of(DEFENSES['freeat']._replace(step='fre'))
    with pytest.raises(InputError, match='give persistent=True'):
        step_of(DEFENSES['at']._replace(step='free'))


def freeat(epochs):
    config = recipes.single_step('freeat', si=False, arch='small_cnn')
    config.update_from_flattened_dict(
        {'data.name': 'digits', 'data.validation': 200, 'batch_size': 32, 'epochs': epochs}
    )
    return config


@pytest.mark.parametrize(
    ('epochs', 'words'),
    [
        # 38 batches of an epoch: 4 of 8 replays see half of them, and 12 one and a half times.
        (4, '592 of 1200 training images are never seen. Give --config.epochs=8'),
        (12, '592 of 1200 training images are seen 1 times, the others 2. Give --config.epochs=8 or'),
        (9, '1040 of 1200 training images are seen 1 times, the others 2. Give'),
    ],
)
def test_replays_that_leave_images_out_are_counted(epochs, words):
    assert freeat(epochs).defense.replays == 8
    with pytest.warns(UserWarning, match='is no multiple of the 8 replays') as caught:
        ready = setup(freeat(epochs))
    assert words in str(caught[0].message)
    seen = [batch_of_step(ready, step) for step in range(epochs * ready.steps_per_epoch)]
    last = {batch for number, batch in seen if number == seen[-1][0]}
    indices, mask = order_of(ready)(seen[-1][0])
    assert int(words.split()[0]) == 1200 - len(set(indices[sorted(last)][mask[sorted(last)]]))


@pytest.mark.parametrize('epochs', [8, 16])
def test_whole_passes_of_replays_are_not_warned_of(epochs):
    setup(freeat(epochs))  # a warning is an error in this suite


def test_the_plan_names_the_files(tmp_path):
    digits = data.load('digits', 'train')
    for part in (1, 2):
        np.savez(tmp_path / f'digits_train_{part}.npz', images=digits.images[:5], labels=digits.labels[:5])
    config = quickstart.get_config()
    config.data.dir, config.data.validation = str(tmp_path), 0
    files = ', '.join(str(tmp_path / f'digits_train_{part}.npz') for part in (1, 2))
    assert plan(setup(config)).startswith(f'data: {files}\nprocesses: ')
