"""What a search claims is judged by the classifier itself: a claim on its boundary may be refused there.

A linear classifier breaks under perturbations of a tenth of the radius here, so nothing may be left.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import Randomised, evaluate, smallest, sweep
from si_jax.errors import InputError
from si_jax.evaluation.network import Network

RNG = np.random.default_rng(0)
KERNEL = (0.3 * RNG.normal(size=(8 * 8 * 3, 10))).astype(np.float32)
IMAGES = np.float32(RNG.integers(0, 256, (24, 8, 8, 3)) / 255)
LABELS = np.argmax(IMAGES.reshape(24, -1) @ KERNEL, axis=1)
ONE = {'devices': jax.local_devices()[:1]}


def net(images):
    return images.reshape(len(images), -1) @ KERNEL


@pytest.mark.parametrize('attack', ['fmn(steps=60)', 'rays(queries=400)'])
@pytest.mark.parametrize('coarse', [{'search_precision': 'bfloat16'}, {'eight_bit': True}], ids=str)
def test_points_beyond_a_refused_nearest_one_are_offered(attack, coarse):
    result = evaluate(net, IMAGES, LABELS, eps=0.3, attacks=attack, return_images=True, **coarse, **ONE)
    assert result.accuracy[attack] == 0 and result.warnings == []
    judged = np.argmax(net(result.images[attack]), axis=1)
    assert (judged != LABELS).all() and np.abs(result.images[attack] - IMAGES).max() <= 0.3 + 1e-6
    assert (result.attacks[attack].distances <= 0.3).all()


def test_an_image_that_is_wrong_in_the_search_alone_is_no_fault():
    """Its nearest misclassified point is the image itself, from which no direction leads away."""

    pixel = np.zeros((192, 1), np.float32)
    pixel[0] = 1

    def rounded_by_a_product(images):
        above = images.reshape(len(images), -1) @ pixel - 0.5005  # in bfloat16 0.501 is 0.5
        return jnp.concatenate([above, -above], axis=1)

    images, labels = np.full((4, 8, 8, 3), 0.501, np.float32), np.zeros(4, int)
    result = evaluate(
        rounded_by_a_product, images, labels, eps=1e-6, attacks='fmn(steps=5)',
        search_precision='bfloat16', **ONE,
    )  # fmt: skip
    assert result.accuracy['clean'] == result.accuracy['fmn(steps=5)'] == 1
    assert result.attacks['fmn(steps=5)'].distances.max() == 0
    assert ['does not confirm, nor points beyond it' in words for words in result.warnings] == [True]


def test_the_smallest_perturbations_of_a_coarse_search_are_found_and_little_longer():
    exact, coarse = (
        smallest(net, IMAGES, LABELS, attacks='fmn(steps=60)', search_precision=precision, **ONE)
        for precision in (None, 'bfloat16')
    )
    (name,) = exact.distances
    assert name == 'fmn(steps=60)' and np.isfinite(exact.distances[name]).all()
    assert np.isfinite(coarse.distances[name]).all() and coarse.about['warnings'] == []
    assert (coarse.distances[name] <= 1.2 * exact.distances[name] + 1e-3).all()


def test_a_distance_that_is_not_confirmed_is_told(monkeypatch):
    monkeypatch.setattr(Network, 'logits', lambda self, images, keys: 10 * np.eye(10)[LABELS[:4]])
    found = smallest(net, IMAGES[:4], LABELS[:4], attacks='fmn(steps=20)', **ONE)
    assert np.isinf(found.distances['fmn(steps=20)']).all()
    assert ['does not confirm' in words for words in found.about['warnings']] == [True]


def test_success_is_that_of_the_rounded_image():
    targets = (LABELS + 1) % 10
    for attack in ('pgd', 'apgd-ce'):
        settings = {'steps': 3} if attack == 'pgd' else {}
        result = evaluate(
            net, IMAGES, LABELS, eps=0.02, attacks=attack, targets=targets, eight_bit=True,
            return_images=True, **settings, **ONE,
        )  # fmt: skip
        reached = np.argmax(net(result.images[attack]), axis=1) == targets
        success = result.attacks[attack].success
        assert 0 < success.mean() < 1 and (reached == success).all(), attack


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: smallest(Randomised(lambda x, keys: net(x)), IMAGES, LABELS), 'many decisions at a point'),
        (
            lambda: sweep(net, IMAGES, LABELS, eps=(0.1, 0.2), attacks='pgd', targets=(LABELS + 1) % 10),
            'leave targets out',
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
