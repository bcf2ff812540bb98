"""Settings in the names of attacks: how they are read, refused and written again."""

import re

import pytest

from si_jax import InputError
from si_jax.attacks import settings
from si_jax.attacks.facts import facts, taken_by
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack
from si_jax.attacks.presets import PRESETS, Stage
from si_jax.attacks.registry import named, parse, row_of, settings_of, stages
from si_jax.attacks.searches import SEARCHES, Setup


@pytest.mark.parametrize(
    ('given', 'canonical'),
    [
        ('apgd-ce(steps=50, restarts=5)', 'apgd-ce(steps=50, restarts=5)'),
        (' apgd-ce ( restarts = 5 ,steps=50 ) ', 'apgd-ce(steps=50, restarts=5)'),
        ('apgd-ce(steps=100, restarts=1)', 'apgd-ce'),
        ('apgd-ce()', 'apgd-ce'),
        ('apgd-t(n_targets=3)', 'apgd-t(n_targets=3)'),
        ('apgd-t(n_targets=9)', 'apgd-t'),
        ('square(queries=2e4)', 'square(queries=20000)'),
        ('square(queries=10/2)', 'square(queries=5)'),
        ('pgd(step_size=1/255, steps=200)', 'pgd(steps=200, step_size=1/255)'),
        ('pgd(step_size=2/510)', 'pgd(step_size=1/255)'),
        (f'pgd(step_size={1 / 255!r})', 'pgd(step_size=1/255)'),
        ('pgd(step_size=3/255)', 'pgd(step_size=3/255)'),
        ('pgd(step_size=.010)', 'pgd(step_size=0.01)'),
        ('pgd(step_size=1/3)', 'pgd(step_size=1/3)'),
        ('pgd(step_size=0.123456789)', 'pgd(step_size=0.123456789)'),
        # What holds without it is the caller's, whatever that may be.
        ('pgd(steps=20)', 'pgd(steps=20)'),
        ('spsa(evaluations=128, steps=5, radius=0.01)', 'spsa(steps=5, evaluations=128, radius=0.01)'),
        ('rays(queries=40000)', 'rays(queries=40000)'),
        ('fab-t(steps=20)', 'fab-t(steps=20)'),
    ],
)
def test_one_attack_has_one_name(given, canonical):
    assert parse(given) == parse([given]) == (canonical,)
    assert parse(canonical) == (canonical,)


def test_commas_inside_parentheses_do_not_separate():
    names = parse('pgd(steps=200, step_size=1/255),cw, apgd-ce(restarts=5,steps=50) ,pgd')
    assert names == ('pgd(steps=200, step_size=1/255)', 'cw', 'apgd-ce(steps=50, restarts=5)', 'pgd')
    assert settings.split('a,,b(c,d),') == ['a', '', 'b(c,d)', '']


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (
            'apgd-ce(stepz=3)',
            "unknown setting of apgd-ce 'stepz': did you mean steps.*known: restarts, steps$",
        ),
        ('apgd-t(targets=3)', 'did you mean n_targets.*known: choice, n_targets, restarts, steps'),
        ('apgd-ce(queries=3)', "unknown setting of apgd-ce 'queries'.*known: restarts, steps"),
        ('apgd-t(choice=mult)', "unknown choice of apgd-t 'mult': did you mean malt.*known: logits, malt"),
        ('apgd-ce(steps=0)', 'steps=0 of apgd-ce must be an integer of at least 1'),
        ('apgd-ce(steps=-5)', 'steps=-5 of apgd-ce must be an integer of at least 1'),
        ('apgd-ce(steps=2.5)', 'steps=2.5 of apgd-ce must be an integer of at least 1'),
        ('apgd-ce(steps=True)', 'steps=True of apgd-ce must be an integer of at least 1'),
        ('square(queries=1e30)', 'queries=1e30 of square must be an integer .* at most 10000000'),
        ('square(queries=1e999999999)', 'queries=1e999999999 of square must be an integer'),
        ('square(p_init=1.5)', 'p_init=1.5 of square must be a number above 0, and at most 1'),
        ('spsa(evaluations=7)', 'evaluations=7 of spsa must be an even integer of at least 2'),
        ('pgd(step_size=0)', 'step_size=0 of pgd must be a number above 0'),
        ('pgd(step_size=1e999)', 'step_size=1e999 of pgd must be a number above 0, and at most 10000000'),
        ('pgd(step_size=1e-999)', 'step_size=1e-999 of pgd must be a number above 0'),
        ('pgd(step_size=1/0)', 'step_size=1/0 of pgd must be a number above 0'),
        ('pgd(step_size=nan)', 'step_size=nan of pgd must be a number above 0'),
        ('pgd(steps=3, steps=4)', 'steps is given 2 times in'),
        ('pgd(20)', "'20' in 'pgd.20.' is no setting: write its name and its value"),
        ('pgd(steps=)', "'steps=' in .* is no setting"),
        ('pgd(steps=3', 'parentheses of .* do not match'),
        ('pgd(steps=3))', 'parentheses of .* do not match'),
        ('pgd(steps=3)x', 'no name of an attack: settings stand behind it'),
        ('fgsm(steps=3)', 'fgsm takes no settings, and steps=3 is given: write fgsm alone'),
        ('gama(steps=3)', "unknown setting of gama 'steps'.*known: restarts"),
        ('pgdd(steps=3)', "unknown attack 'pgdd': did you mean pgd"),
        ('autoattack(steps=3)', r'fixed protocol; or give settings to its searches \(apgd-ce, apgd-t, fab-t'),
        ('apgd-ce,apgd-ce(steps=100)', r"'apgd-ce' is given 2 times, as apgd-ce and apgd-ce\(steps=100\)"),
        ('pgd(steps=3),pgd( steps=3 )', r"'pgd\(steps=3\)' is given 2 times"),
    ],
)
def test_what_is_wrong_is_refused_with_a_remedy(given, words):
    with pytest.raises(InputError, match=words):
        parse(given)


def test_the_example_in_a_refusal_is_one_that_works():
    for base in (*ATTACKS, *SEARCHES):
        for one in (one for one in settings_of(base) if not one.choices):
            with pytest.raises(InputError) as refused:
                parse(f'{base}({one.name}=-1)')
            assert parse(re.search('for example, (.*)', str(refused.value))[1])[0].startswith(base)


def test_defaults_are_those_of_the_protocol_in_the_norm():
    assert parse('apgd-t(n_targets=9),apgd-ce(restarts=5)', 'l1') == ('apgd-t(n_targets=9)', 'apgd-ce')
    assert parse('apgd-t(n_targets=5),apgd-ce(restarts=1)', 'l1') == ('apgd-t', 'apgd-ce(restarts=1)')
    (one,) = stages('apgd-t(n_targets=9)', 1, 'l1')
    assert one.targets == 9 and stages('apgd-t', 1, 'l1')[0].targets == 5
    with pytest.raises(InputError, match='APGD in L1 needs at least 2 steps, not steps=1'):
        parse('apgd-ce(steps=1)', 'l1')


def test_a_name_finds_its_row():
    pgd = row_of('pgd(steps=200)')
    assert pgd is ATTACKS['pgd'] and isinstance(pgd, Attack)
    assert row_of('square') is SEARCHES['square'] and row_of('apgd-ce(restarts=5)') is SEARCHES['apgd-ce']
    assert row_of('autoattack') is None and row_of('mine') is None and row_of('mine(') is None
    # The same row, whoever asks: what was compiled for it is found again.
    assert row_of('spsa(evaluations=8)') is row_of('spsa(evaluations=8)')
    assert row_of('spsa(evaluations=8)').queries == 9 and row_of('spsa-128').queries == 129
    assert named('pgd(steps=200)').settings == {'steps': 200}
    (one,) = stages('apgd-ce(steps=50, restarts=5)', 3)
    assert one == Stage('apgd-ce', restarts=5, eot_samples=3, settings=(('steps', 50),))
    assert one.search(10).iterations == 51 and stages('apgd-ce', 1)[0].search(10).iterations == 101


def test_what_a_row_is_known_to_be_stays_so_with_settings():
    for base, row in SEARCHES.items():
        short = row.with_settings((('queries' if 'square' in base or 'rays' in base else 'steps', 30),))
        assert short._replace(make=row.make, part=row.part, gradients=row.gradients) == row._replace(
            settings=short.settings, remade=short.remade
        )
        assert short.gradients(10) == row.gradients(10)
        assert facts(short).reads_features == facts(row).reads_features
        search = short.make(Setup(10))
        assert search.iterations - search.idle == 30, base
        assert search.whole_parts == (base == 'square') and 1 <= short.part


def test_a_setting_in_the_name_is_not_the_callers():
    assert taken_by('pgd') - taken_by('pgd(steps=3)') == {'steps'}
    assert taken_by('pgd(steps=3, step_size=0.01, restarts=2)') == {'eot_samples'}
    assert taken_by('apgd-ce(steps=3)') == taken_by('apgd-ce')


def test_presets_take_none():
    assert all(settings_of(name) == () for name in PRESETS)


def test_names_of_files():
    names = parse(
        'pgd(steps=200, step_size=1/255),pgd(steps=200),apgd-ce(steps=50, restarts=5),pgd(step_size=0.01)'
    )
    files = [settings.file_name(name) for name in names]
    assert files[0] == 'pgd_steps=200_step_size=1-255' and len(set(files)) == len(files)
    assert all(re.fullmatch(r'[\w.=-]+', file) for file in files)
    assert [settings.file_name(name) for name in PRESETS] == list(PRESETS)
