"""What makes a result doubtful is said in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, evaluate
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def warnings(classifier, attacks='pgd', eps=0.04, **settings):
    settings = {'steps': 2, 'devices': jax.local_devices()[:1], **settings}
    return evaluate(classifier, IMAGES, LABELS, attacks=attacks, eps=eps, **settings).warnings


def test_an_honest_classifier_raises_none():
    assert warnings(NET, 'fgsm,pgd,cw,dlr,sipgd,autoattack') == []


def test_probabilities():
    (found,) = warnings(lambda x: jax.nn.softmax(NET(x).logits))
    assert 'look like probabilities' in found and 'before the softmax' in found
    # Rows that do not sum to one, or leave [0, 1], are something else.
    assert warnings(lambda x: jax.nn.sigmoid(NET(x).logits)) == []
    assert warnings(lambda x: jax.nn.softmax(NET(x).logits) - 0.01) == []


def test_gradients_that_are_exactly_zero():
    (found,) = warnings(lambda x: 1e5 * NET(x).logits, 'pgd,apgd-ce,cw')
    assert 'exactly zero on ' in found and 'where pgd, apgd-ce cannot see' in found
    assert 'sipgd, dlr or apgd-t' in found
    # Attacks that do not climb the cross-entropy have no part in it.
    assert warnings(lambda x: 1e5 * NET(x).logits, 'cw,dlr') == []


def test_gradients_that_are_masked():
    def staircase(x):
        return NET(jnp.round(x * 40) / 40).logits

    found = warnings(staircase, 'pgd,square', eps=0.06)
    assert any('exactly zero on 100.0 %' in warning for warning in found)
    masked = [warning for warning in found if 'gradients are masked' in warning]
    assert len(masked) == 1 and masked[0].startswith('square broke ')
    # The same inside a cascade, whose Square comes after three attacks with gradients.
    found = warnings(staircase, 'autoattack', eps=0.06)
    assert any(warning.startswith('square broke ') for warning in found)
    # Without an attack with gradients there is nothing to compare with.
    assert warnings(staircase, 'square', eps=0.06) == []
    assert not any('masked' in warning for warning in warnings(NET, 'autoattack,square'))


def test_nan_on_the_way_is_an_error_that_names_the_image():
    def fragile(x):
        # NaN as soon as the third image moves.
        moved = jnp.abs(x - IMAGES[2]).max(axis=(1, 2, 3))
        close = (moved < 0.05) & (moved > 0)
        return NET(x).logits / jnp.where(close, 0.0, 1.0)[:, None]

    labels = np.argmax(NET(jnp.asarray(IMAGES)).logits, axis=1)
    for attack in ('apgd-ce', 'square'):
        with pytest.raises(InputError, match=f'NaN or infinite logits for what {attack} made of image 2:'):
            evaluate(fragile, IMAGES, labels, attacks=attack, eps=0.04, devices=jax.local_devices()[:1])
