"""What makes a result doubtful is said in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, evaluate
from si_jax.attacks.facts import taken_by
from si_jax.evaluation import gates, packing
from si_jax.evaluation.kinds import kind_of
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import AttackRecord
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def warnings(classifier, attacks='pgd', eps=0.04, **settings):
    steps = {'steps': 2} if any('steps' in taken_by(name) for name in attacks.split(',')) else {}
    settings = {**steps, 'devices': jax.local_devices()[:1], **settings}
    return evaluate(classifier, IMAGES, LABELS, attacks=attacks, eps=eps, **settings).warnings


def test_an_honest_classifier_raises_none():
    one = net(seed=1)  # one whose cosines decide as its logits do
    images, labels = images_and_labels(40, one)
    settings = {'steps': 2, 'devices': jax.local_devices()[:1]}
    names = 'fgsm,pgd,cw,dlr,sipgd,autoattack'
    assert evaluate(one, images, labels, attacks=names, eps=0.04, **settings).warnings == []


def test_probabilities():
    (found,) = warnings(lambda x: jax.nn.softmax(NET(x).logits))
    assert 'look like probabilities' in found and 'before the softmax' in found


def test_gradients_that_are_exactly_zero(monkeypatch):
    # Of how many images is decided by exponentials that underflow, and so by the number of images in a pack.
    monkeypatch.setattr(packing, 'sizes_for', lambda *_: (16,))
    (found,) = warnings(lambda x: 1e5 * NET(x).logits, 'pgd,apgd-ce,cw')
    assert 'exactly zero where attacks start' in found and 'pgd on 31 of 37, apgd-ce on 31 of 37' in found
    # The advice names attacks whose gradient is there.
    assert 'the gradient of dlr, cw is there: trust these' in found
    assert warnings(lambda x: 1e5 * NET(x).logits, 'cw,dlr') == []


def test_a_gradient_that_is_nan_everywhere_is_not_advised():
    def undefined(x):
        away = jnp.log(jnp.maximum(x - 2, 0)).clip(-1, 1).sum((1, 2, 3))
        return NET(x).logits + 0 * away[:, None]

    found = ' '.join(warnings(undefined, 'pgd'))
    assert 'not finite' in found and 'no attack has one there' in found and 'trust these' not in found


def test_logits_too_large_for_the_cross_entropy_are_named_as_the_cause():
    found = ' '.join(warnings(lambda x: 1e30 * NET(x).logits, 'pgd'))
    assert 'the logits reach' in found and '`where`' not in found
    assert warnings(lambda x: 1e30 * NET(x).logits, 'cw') == []


def test_logits_too_small_or_too_large_for_the_steps_of_spsa():
    for factor in (1e-9, 1e20):
        (found,) = warnings(lambda x, factor=factor: factor * NET(x).logits, 'spsa')
        assert 'spsa needs 1e-05 to 1e+15' in found and 'times a factor' in found
    assert warnings(NET, 'spsa') == warnings(lambda x: 1e-9 * NET(x).logits, 'square,rays') == []


def test_every_attack_with_gradients_is_asked():
    """What rounds its inputs has a gradient nowhere, whatever an attack maximises and however it starts."""
    names = 'cw,dlr,pgd-gap,sipgd,gama,pgd-hybrid,apgd-t,apgd-cal,fab-t,autoattack'
    result = evaluate(
        lambda x: NET(jnp.round(x * 40) / 40),
        IMAGES[:12],
        LABELS[:12],
        attacks=names,
        eps=0.01,
        steps=2,
        devices=jax.local_devices()[:1],
    )
    (found,) = [words for words in result.warnings if 'exactly zero' in words]
    for part in (
        'cw',
        'dlr',
        'pgd-gap',
        'sipgd',
        'gama',
        'pgd-hybrid',
        'apgd-t',
        'apgd-cal',
        'fab-t',
        'apgd-ce',
    ):
        assert f' {part} on ' in found
    assert 'no attack has one there' in found and 'gradient_of' in found and 'square and rays' in found
    for name in names.split(','):
        assert result.to_json()['attacks'][name]['gradients'] == {'zero': 1.0, 'not_finite': 0.0}
    # The advice, followed: the same network without the step that has no gradient.
    assert warnings(lambda x: NET(jnp.round(x * 40) / 40), 'cw,apgd-t', gradient_of=NET) == []


def test_gradients_that_are_masked():
    def staircase(x):
        return NET(jnp.round(x * 40) / 40).logits

    found = warnings(staircase, 'pgd,square', eps=0.06)
    assert any('pgd on 37 of 37' in warning for warning in found)
    masked = [warning for warning in found if 'gradients may be masked' in warning]
    assert len(masked) == 1 and masked[0].startswith('square broke ') and ' of 40 images (' in masked[0]
    # The same inside a cascade, whose Square comes after three attacks with gradients.
    found = warnings(staircase, 'autoattack', eps=0.06)
    assert any(warning.startswith('square broke ') for warning in found)
    # Without an attack with gradients there is nothing to compare with.
    assert warnings(staircase, 'square', eps=0.06) == []
    assert not any('masked' in warning for warning in warnings(NET, 'autoattack,square'))


def test_one_image_of_many_is_no_masked_gradient():
    clean = np.ones(397, bool)
    runs = {'pgd': clean, 'square': np.arange(397) > 0}
    records = {name: AttackRecord(flags[None], None, None, 1, 0.0) for name, flags in runs.items()}
    kinds = [kind_of(name, Request.of(IMAGES, LABELS, attacks=name)) for name in runs]
    assert gates.masking(clean, kinds, records) == []
    records['square'] = AttackRecord((np.arange(397) > 3)[None], None, None, 1, 0.0)
    (found,) = gates.masking(clean, kinds, records)
    assert found.startswith('square broke 4 of 397 images (0.39 to 2.56 % of others like them)')


@pytest.mark.parametrize(('norm', 'power'), [('linf', 0.5), ('l2', 1 / 2.2), ('linf', 0.25)])
def test_a_gradient_that_is_not_finite_does_not_end_an_attack(norm, power):
    """A black pixel, and a term whose derivative at black is infinite, or NaN by the chain rule."""
    images = IMAGES[:12].copy()
    images[:, 0, 0] = 0

    def trapped(x):
        length = jnp.sum(x * x, axis=-1, keepdims=True) ** power
        return NET(x + 1e-4 * jnp.where(length > 0, x / jnp.where(length > 0, length, 1.0), 0.0))

    labels = np.argmax(NET(jnp.asarray(images)).logits, axis=1)
    settings = {'attacks': 'pgd,apgd-ce,fab-t', 'steps': 5, 'devices': jax.local_devices()[:1]}
    settings |= {'eps': 0.04 if norm == 'linf' else 0.25, 'norm': norm}
    sound = evaluate(NET, images, labels, **settings)
    found = evaluate(trapped, images, labels, **settings)
    (warning,) = found.warnings
    assert 'not finite (NaN or infinite)' in warning and '`where`' in warning
    assert (
        'fab-t on 12 of 12' in warning
        and found.to_json()['attacks']['fab-t']['gradients']['not_finite'] == 1.0
    )
    for name in ('pgd', 'apgd-ce', 'fab-t'):
        assert np.sum(found.correct[name] != sound.correct[name]) <= 2


def test_nan_at_a_point_on_the_way_of_pgd_is_seen():
    """PGD counts its last point; NaN at one before it must not be forgotten."""

    def fragile(x):
        # NaN at the second image's random start, which lies inside the ball, not at the corners that follow.
        away = jnp.abs(x - IMAGES[1]).max(axis=(1, 2, 3))
        return NET(x).logits + jnp.where((away > 0.02) & (away < 0.0399), jnp.nan, 0.0)[:, None]

    labels = np.argmax(NET(jnp.asarray(IMAGES)).logits, axis=1)
    for attack in ('pgd', 'cw', 'pgd-hybrid'):
        with pytest.raises(
            InputError, match=f'NaN or infinite logits for what {attack} made of image 1:'
        ) as raised:
            evaluate(
                fragile, IMAGES, labels, attacks=attack, eps=0.04, steps=8, devices=jax.local_devices()[:1]
            )
        point = raised.value.image
        assert point.shape == IMAGES[1].shape and not np.isfinite(fragile(jnp.asarray(point)[None])).all()


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
