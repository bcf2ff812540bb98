"""A config is refused before anything is computed, with the value, the limit and the remedy."""

import pytest

from configs import quickstart
from si_jax.defenses import DEFENSES
from si_jax.errors import InputError
from si_jax.training.setup import setup
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
