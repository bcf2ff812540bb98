"""Settings of the caller's that an attack does not take are refused, or recorded as none of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import ATTACKS, InputError, Outputs, Randomised, evaluate
from si_jax.attacks.facts import taken_by
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.searches import SEARCHES
from si_jax.evaluation.table import settings_of
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(12, NET)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def run(attacks, classifier=NET, **settings):
    settings = {'eps': 0.04, 'devices': jax.local_devices()[:1], **settings}
    return evaluate(classifier, IMAGES, LABELS, attacks=attacks, **settings)


def untouched(images):
    raise AssertionError('the network was run')


@pytest.mark.parametrize(
    ('attacks', 'given'),
    [
        ('apgd-ce', {'steps': 5}),
        ('apgd-ce,square', {'restarts': 3}),
        ('autoattack', {'eot_samples': 20}),
        ('square,rays', {'eot_samples': 20}),
        ('fab-t', {'eot_samples': 2}),
        ('fgsm,gama', {'steps': 5}),
        ('gama', {'restarts': 2}),
        ('pgd-hybrid', {'step_size': 0.01}),
        ('pgd,apgd-ce', {'individual': True}),
        # The default, given, is given too.
        ('autoattack', {'steps': 20}),
        ([lambda classifier, images, labels, threat, key: images], {'steps': 5}),
        ([ATTACKS['gama']], {'steps': 5}),
    ],
)
def test_a_setting_that_no_attack_takes_is_refused_before_any_compute(attacks, given):
    ((name, value),) = given.items()
    with pytest.raises(InputError, match=f'{name}={value} is given, and .*not take it: leave {name} out'):
        run(attacks, untouched, **given)


def test_the_remedies_work():
    assert run('square').attacks['square'].takes == set()
    found = run('square,pgd', steps=2, restarts=2).to_json()['attacks']
    assert found['pgd']['steps'] == 2 and found['pgd']['restarts'] == 2


def test_what_an_attack_ignores_is_null_in_its_json():
    result = run('fgsm,pgd,apgd-ce,square', steps=2, restarts=2, step_size=0.02, eot_samples=2)
    found = result.to_json()['attacks']
    keys = 'restarts', 'steps', 'step_size', 'eot_samples'
    assert [[found[name][key] for key in keys] for name in found] == [
        [None, None, None, 2],
        [2, 2, 0.02, 2],
        [None, None, None, 2],
        [None] * 4,
    ]
    # What they do of their own is there for who compares, as in results of before.
    assert found['fgsm']['fixed'] == {'restarts': 1, 'steps': 1, 'step_size': 0.04}
    assert settings_of(found['square']) == {'restarts': 1, 'steps': 120, 'step_size': None, 'eot_samples': 1}
    before = {'restarts': 1, 'steps': 120, 'step_size': None, 'eot_samples': 1}
    assert settings_of(before) == settings_of(found['square'])
    assert 'fixed' not in found['pgd'] and result.attacks['fgsm'].steps == 1


def test_eot_samples_that_an_attack_does_not_take_change_nothing_of_it():
    alone, beside = run('square'), run('square,pgd', steps=2, eot_samples=3)
    assert np.array_equal(alone.correct['square'], beside.correct['square'])
    assert alone.attacks['square'].stages == beside.attacks['square'].stages


def test_what_attacks_take_follows_from_their_rows():
    every = {'steps', 'step_size', 'restarts', 'eot_samples'}
    assert taken_by('pgd') == every and taken_by('pgd-md') == every - {'step_size'}
    assert all(taken_by(name) <= {'eot_samples'} for name in SEARCHES)
    assert all(taken_by(name) == {'individual'} for name in PRESETS)
    assert {name for name, row in SEARCHES.items() if row.averages} == {
        name for name, row in SEARCHES.items() if 'apgd' in name or name == 'pgd-hybrid-20'
    }


class TestRandom:
    """Right with probability 0.8 whatever the image: no attack can do anything to it."""

    @staticmethod
    def coin(images, keys):
        right = jax.vmap(lambda key: jax.random.bernoulli(key, 0.8))(keys)
        return Outputs(jnp.where(right[:, None], 1.0, -1.0) * NET(images).logits)

    def test_averaged_attacks_are_not_warned_of(self):
        result = run('pgd', Randomised(self.coin), steps=2, eot_samples=20, restarts=1)
        assert result.warnings == [] and result.accuracy['pgd'] >= 0.4

    def test_one_attack_without_averages_is_warned_of_beside_others(self):
        shift = lambda c, x, labels, threat, key: threat.project(x + threat.eps, x)  # noqa: E731
        (warning,) = run(['pgd', ('shift', shift)], Randomised(self.coin), steps=2).warnings
        assert 'pgd follows single draws' in warning and 'set eot_samples (20 is usual)' in warning
