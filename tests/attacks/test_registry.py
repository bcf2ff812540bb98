"""The names of the attacks and the published settings behind them."""

import pytest

from si_jax import InputError
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.presets import PRESETS, SCREENS, Stage
from si_jax.attacks.registry import parse, stages
from si_jax.attacks.searches import SEARCHES, TARGETS


def test_parse():
    assert parse('pgd, autoattack') == parse(['pgd', 'autoattack']) == ('pgd', 'autoattack')
    assert parse(','.join((*ATTACKS, *SEARCHES, *PRESETS)))[-1] == 'fast'
    with pytest.raises(InputError, match="unknown attack 'auto-attack': did you mean autoattack"):
        parse('auto-attack')
    with pytest.raises(InputError, match="'square' is given 2 times"):
        parse('square,fab,square')
    with pytest.raises(InputError, match='no attack given: name one or more of fgsm, pgd'):
        parse([])


def test_no_name_means_two_things():
    names = (*ATTACKS, *SEARCHES, *PRESETS)
    assert len(set(names)) == len(names)
    # A cascade says so in its name, or in its result.
    assert all(name.startswith('autoattack') != (name in SCREENS) for name in PRESETS)
    assert not any(name.startswith('autoattack') for name in (*ATTACKS, *SEARCHES))


def test_the_published_protocols():
    made = {name: Stage(name).search(10) for name in SEARCHES}
    assert {name: search.iterations for name, search in made.items()} == {
        # 100 steps and the evaluation of the last point.
        'apgd-ce': 101,
        'apgd-dlr': 101,
        'apgd-t': 101,
        'pgd-hybrid-20': 21,
        'apgd-cal': 101,
        'apgd-si': 101,
        'apgd-si-t': 101,
        'fab': 100,
        'fab-t': 100,
        'fmn': 1000,
        'square': 5000,
        'spsa': 100,
        'spsa-128': 100,
        'spsa-512': 100,
        'rays': 10_000,
        'rays-40000': 40_000,
    }
    assert {name for name, search in made.items() if search.targeted} == {'apgd-t', 'apgd-si-t', 'fab-t'}
    assert TARGETS == 9
    assert [stage.attack for stage in PRESETS['autoattack']] == ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    assert {stage.restarts for stage in PRESETS['autoattack']} == {1}
    assert stages('apgd-ce', 20) == (Stage('apgd-ce', eot_samples=20),)
    assert stages('square', 20) == (Stage('square'),)  # it averages nothing


def test_the_protocol_in_l1():
    cascade = stages('autoattack', 1, 'l1')
    assert [(one.attack, one.restarts, one.targets) for one in cascade] == [
        ('apgd-ce', 5, 9),
        ('apgd-t', 1, 5),
        ('fab-t', 1, 9),
        ('square', 1, 9),
    ]
    # Alone a search does what it does in the cascade.
    assert stages('apgd-ce', 1, 'l1') == cascade[:1] and stages('apgd-t', 1, 'l1') == cascade[1:2]
    assert [one.search(10, 'l1').iterations for one in cascade] == [103, 103, 100, 5000]
    # The reference code begins in larger balls in its standard version alone.
    for name in ('autoattack-plus', 'autoattack-rand'):
        there, here = stages(name, 1), stages(name, 1, 'l1')
        assert [one._replace(largereps=True) for one in here] == list(there)
        assert [one.search(10, 'l1').iterations for one in here if 'apgd' in one.attack] == [101] * sum(
            'apgd' in one.attack for one in here
        )
    assert stages('fast', 1, 'l1') == stages('fast', 1)


def test_what_a_query_costs():
    gradients = {name: attack.gradients(10) for name, attack in SEARCHES.items()}
    assert gradients['apgd-t'] == 1 and gradients['fab-t'] == 0.5 and gradients['fab'] == 4.5
    black = {name for name, attack in SEARCHES.items() if attack.black_box}
    assert black == {'square', 'spsa', 'spsa-128', 'spsa-512', 'rays', 'rays-40000'}
    assert all(gradients[name] == 0 for name in black)
    measuring = {name for name, attack in SEARCHES.items() if attack.measures_distance}
    assert measuring == {'rays', 'rays-40000', 'fmn'}


def test_parts_fit_the_searches():
    for name, attack in SEARCHES.items():
        search = Stage(name).search(10)
        assert 1 <= attack.part < search.iterations
        # Square needs parts of one length.
        assert name != 'square' or search.iterations % attack.part == 0
