"""A config that says what it does not mean is refused, or told of; no recipe is one."""

import numpy as np
import pytest

from si_jax import defenses
from si_jax.errors import InputError
from si_jax.training import doubts, recipes
from si_jax.training.setup import setup

FAR = {'defense.start': 'uniform', 'defense.start_radius': 3.0}


def small(name, **changes):
    config = recipes.recipe(name, 'small_cnn')
    fields = {
        'data.name': 'digits',
        'data.limit': 32,
        'data.validation': 8,
        'batch_size': 8,
        'model.width': 2,
    }
    config.update_from_flattened_dict(fields | changes)
    return config


def test_no_recipe_asks_for_anything_in_vain():
    for name in recipes.RECIPES:
        config = recipes.recipe(name)
        doubts.check(config)
        assert doubts.unread(config, defenses.from_config(config.defense)) == [], name


@pytest.mark.parametrize(
    ('recipe', 'changes', 'words'),
    [
        ('rfgsm_cifar10', {'defense.name': 'nfgsm'}, 'start_radius.* are those of rfgsm'),
        ('at_cifar10', {'defense.name': 'nfgsm'}, 'are those of at: .*Give the config of nfgsm'),
        ('at_cifar10', {'defense.name': 'eat'}, 'others.* are those of at'),
        ('elle_cifar10', {'defense.name': 'ellea'}, 'weights of the section defense are those of elle'),
        ('at_cifar10', {'threat.norm': 'l2'}, 'threat.norm=l2 has threat.eps=0.0313725.*such as 0.5'),
        ('at_cifar10', {'threat.norm': 'l1'}, 'such as 12'),
        ('at_cifar10', {'seed': -1}, 'seed=-1 is negative'),
        ('at_cifar10', {'checkpoint.every_steps': -5}, 'checkpoint.every_steps=-5 is negative'),
        ('at_cifar10', {'evaluation.batch_size': -3}, 'evaluation.batch_size=-3 is negative'),
        ('at_cifar10', {'optimiser.nesterov': True, 'optimiser.momentum': 0.0}, 'nesterov=True needs'),
        ('at_cifar10', {'defense.passes': 'adv,helped'}, "no term of at reads the pass 'helped'"),
        ('trades_cifar10', {'defense.inner': 'si', 'defense.scale': -15.0}, 'scale=-15 must be positive'),
        ('trades_cifar10', {'schedule.warmup': 0.5}, "warmup=0.5 is for cosine and cosine_dkl"),
        ('eat_cifar10', {'init_from': '', **FAR}, 'start_radius=3: APGD may keep'),
    ],
)  # fmt: skip
def test_two_recipes_in_one_and_values_out_of_range_are_refused(recipe, changes, words):
    with pytest.raises(InputError, match=words):
        setup(small(recipe, **changes))


def test_a_row_with_fields_of_ones_own_is_no_other_row():
    for recipe, changes in (
        ('nfgsm_cifar10', {'defense.start_radius': 1.0}),
        ('elle_cifar10', {'defense.name': 'ellea', 'defense.weights.nonlinearity': 4000.0}),
        ('at_cifar10', {'threat.norm': 'l2', 'threat.eps': 0.5}),
    ):
        doubts.check(small(recipe, **changes))


@pytest.mark.parametrize(
    ('recipe', 'changes', 'words'),
    [
        ('at_cifar10', {'average.decay': 0.999}, "decay=0.999 has no effect: it belongs to average.kind"),
        ('at_cifar10', {'average.kind': 'ema', 'average.tau': 0.5}, 'average.tau=0.5 has no effect'),
        ('at_cifar10', {'defense.margin': 0.3}, 'defense.margin=0.3 has no effect'),
        ('at_cifar10', {'defense.smoothing_over': 'others'}, 'smoothing_over=others has no effect'),
        ('at_cifar10', {'model.bn_momentum': 0.5}, 'bn_momentum=0.5 has no effect: small_cnn'),
        ('at_cifar10', {'schedule.peak_at': 0.3}, 'peak_at=0.3 has no effect'),
        ('freeat_cifar10', {'attack.steps': 7}, 'attack.steps=7 has no effect: freeat makes'),
        ('freeat_cifar10', {'defense.bounds': 'pixels'}, 'defense.bounds=pixels has no effect'),
    ],
)  # fmt: skip
def test_a_field_that_nothing_reads_is_named(recipe, changes, words):
    with pytest.warns(UserWarning, match=words):
        setup(small(recipe, **changes))


def test_the_first_images_of_a_set_that_is_sorted_by_class_are_refused(tmp_path):
    labels = np.repeat(np.arange(5), 40)
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    np.savez(tmp_path / 'train.npz', images=images, labels=labels)
    sorted_by_class = {'data.name': f'npz:{tmp_path}', 'data.limit': 30}
    with pytest.warns(UserWarning, match=r'data.limit=30 .* are of 1 of 5 classes here'):
        setup(small('at_cifar10', **sorted_by_class))
    assert len(setup(small('at_cifar10', **sorted_by_class | {'data.limit': 0})).train.labels) == 192
