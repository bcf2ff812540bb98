"""Adversarial images in one line, of every kind of array, and what stands for attacks that nobody names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import BlackBox, InputError, Randomised, attack, evaluate
from si_jax.evaluation.attack import _as_given
from si_jax.evaluation.request import default_attacks
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(12, NET)
SETTINGS = {'eps': 0.06, 'steps': 2, 'seed': 3}


@pytest.fixture(scope='module')
def found():
    return evaluate(NET, IMAGES, LABELS, attacks='pgd', return_images=True, **SETTINGS)


def test_the_images_are_those_of_evaluate(found):
    adversarial = attack(NET, IMAGES, LABELS, 'pgd', **SETTINGS)
    assert type(adversarial) is np.ndarray and adversarial.dtype == np.float32
    assert_array_equal(adversarial, found.images['pgd'])
    wrong = np.argmax(NET(jnp.asarray(adversarial)).logits, axis=1) != LABELS
    assert_array_equal(wrong, ~found.correct['pgd'])
    assert 0 < np.abs(adversarial - IMAGES).max() <= 0.06 + 1e-6


def test_the_kind_of_array_that_was_given(found):
    torch = pytest.importorskip('torch')
    of_jax = attack(NET, jnp.asarray(IMAGES), LABELS, 'pgd', **SETTINGS)
    assert isinstance(of_jax, jax.Array)
    assert_array_equal(of_jax, found.images['pgd'])
    first = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    labels, channels_first = torch.from_numpy(LABELS), lambda x: NET(jnp.moveaxis(x, 1, 3))
    of_torch = attack(channels_first, first, labels, 'pgd', layout='nchw', **SETTINGS)
    assert of_torch.dtype == torch.float32
    assert_array_equal(of_torch.permute(0, 2, 3, 1).numpy(), found.images['pgd'])
    assert _as_given(found.images['pgd'], first.double()).dtype == torch.float64
    assert _as_given(found.images['pgd'], first.half()).dtype == torch.float32  # half would leave the ball


def test_settings_in_a_name_in_a_norm_with_other_defaults():
    found = attack(NET, IMAGES, LABELS, 'apgd-ce(restarts=1, steps=4)', norm='l1', eps=0.5)
    assert np.abs(found - IMAGES).sum(axis=(1, 2, 3)).max() <= 0.5 * (1 + 1e-4)


def test_targets_and_bytes_are_those_of_evaluate():
    how = SETTINGS | {'targets': 'least-likely', 'eight_bit': True}
    originals = np.round(IMAGES * 255) / np.float32(255)
    labels = np.argmax(NET(jnp.asarray(originals)).logits, axis=1)
    whole = evaluate(NET, originals, labels, attacks='cw', return_images=True, **how)
    assert_array_equal(attack(NET, originals, labels, 'cw', **how), whole.images['cw'])
    assert np.abs(whole.images['cw'] * 255 - np.round(whole.images['cw'] * 255)).max() < 1e-4


def test_one_attack_at_a_time_and_what_must_be_known_is_said():
    with pytest.raises(InputError, match='pgd, cw are 2 attacks: give one'):
        attack(NET, IMAGES, LABELS, 'pgd,cw', eps=0.06)

    def flat(images):
        return jnp.round(NET(images).logits)

    with pytest.warns(UserWarning, match='gradient'):
        attack(flat, IMAGES, LABELS, 'pgd', **SETTINGS)


def test_attacks_that_are_usual():
    assert default_attacks(NET) == 'autoattack'
    assert default_attacks(Randomised(lambda images, keys: images)) == 'autoattack-rand'
    assert default_attacks(BlackBox(lambda images: images, 4)) == 'square'
    # All images are wrong before any attack, so that the whole of AutoAttack takes no time.
    wrong = (np.argmax(NET(jnp.asarray(IMAGES)).logits, axis=1) + 1) % 4
    assert list(evaluate(NET, IMAGES, wrong).attacks) == ['autoattack']
