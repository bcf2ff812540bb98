"""Attacks with settings in their names: what runs, and that the names survive files, reports and resumes."""

import json

import jax
import numpy as np
import pytest

from si_jax import InputError, Randomised, evaluate
from si_jax.evaluation.compare import compare
from si_jax.evaluation.result import Result
from si_jax.evaluation.table import settings_of
from si_jax.reports import accuracy
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(12, NET)
PGD = 'pgd(steps=3, step_size=1/255)'
NAMES = (
    PGD,
    'pgd(restarts=2)',
    'apgd-ce(steps=4, restarts=2)',
    'apgd-t(steps=4, n_targets=2)',
    'fab-t(steps=3)',
    'square(queries=30)',
    'square(queries=7)',
    'spsa(steps=2, evaluations=4)',
    'rays(queries=40)',
)


def run(attacks, classifier=NET, **settings):
    settings = {'eps': 0.04, 'devices': jax.local_devices()[:1], **settings}
    return evaluate(classifier, IMAGES, LABELS, attacks=attacks, **settings)


def untouched(images):
    raise AssertionError('the network was run')


@pytest.fixture(scope='module')
def result():
    return run(', '.join(NAMES), steps=2, return_images=True)


def test_what_stands_in_the_name_runs(result):
    assert tuple(result.attacks) == NAMES
    pgd, again, apgd, targeted, fab, square, _, spsa, rays = result.attacks.values()
    assert (pgd.steps, pgd.step_size, len(pgd.runs)) == (3, 1 / 255, 1)
    assert (again.steps, again.step_size, len(again.runs)) == (2, 0.01, 2)
    stages = [one.protocol['stages'][0] for one in (apgd, targeted, fab, square, spsa, rays)]
    assert [one['iterations'] for one in stages] == [4, 4, 3, 30, 2, 40]
    assert [one['restarts'] for one in stages] == [2, 1, 1, 1, 1, 1]
    assert [one['targets'] for one in stages] == [0, 2, 3, 0, 0, 0]
    assert max(square.queries) <= 31 and max(spsa.queries) <= 1 + 2 * 5 and max(rays.queries) <= 40
    assert square.queries[result.correct['square(queries=30)'] & result.clean].tolist() == [31] * int(
        (result.correct['square(queries=30)'] & result.clean).sum()
    )


def test_the_same_attack_with_more_is_no_weaker(result):
    # Its noise is that of its name without settings, so the shorter run is the beginning of the longer one.
    few, more = (result.correct[f'square(queries={queries})'] for queries in (7, 30))
    assert not (more & ~few).any()
    assert np.array_equal(run('pgd', steps=2).correct['pgd'], result.attacks['pgd(restarts=2)'].runs[0])


def test_a_name_with_the_settings_of_a_call_is_that_call():
    named = run(PGD).correct[PGD]
    assert np.array_equal(named, run('pgd', steps=3, step_size=1 / 255).correct['pgd'])


def test_square_in_parts_that_do_not_divide_its_queries(result):
    # 253 queries are two parts of 250, the second of which stops early.
    whole, odd = (run(f'square(queries={n})') for n in (500, 253))
    queries, found = odd.attacks['square(queries=253)'].queries, odd.correct['square(queries=253)']
    assert set(queries[found & odd.clean]) <= {254}
    longer = whole.attacks['square(queries=500)']
    early = (longer.queries <= 254) & ~whole.correct['square(queries=500)'] & whole.clean
    assert np.array_equal(~found & odd.clean, early)
    assert np.array_equal(queries[early], longer.queries[early])


def test_names_round_trip_through_files_and_compare(result, tmp_path):
    path = tmp_path / 'a.json'
    result.save(path)
    about = json.loads(path.read_text())
    assert tuple(about['attacks']) == NAMES
    saved = Result.load(path)
    assert saved.table() == result.table() and '<table>' in saved._repr_html_()
    for name in NAMES:
        assert np.array_equal(saved.correct[name], result.correct[name]), name
    with np.load(path.with_suffix('.npz')) as flags, np.load(tmp_path / 'a_images.npz') as images:
        assert set(NAMES) <= set(flags) and set(images) == set(NAMES)
        assert np.array_equal(images[PGD], result.images[PGD])
    assert about['attacks'][PGD]['steps'] is None  # the caller's was not taken
    assert settings_of(about['attacks'][PGD])['steps'] == 3
    assert PGD in result.table()
    compared = compare(path, path)
    assert set(NAMES) <= set(compared.differences) and PGD in compared.table()
    assert accuracy.settings(PGD, about['attacks'][PGD], about) == ''
    assert accuracy.settings('pgd(restarts=2)', about['attacks']['pgd(restarts=2)'], about) == '2 steps'


def test_names_round_trip_through_a_resume(tmp_path):
    state, names = tmp_path / 'state', (PGD, 'apgd-ce(steps=4, restarts=2)')
    first = run(names, state_path=state)
    kept = {path.name for path in state.glob('*.npz')}
    assert 'pgd_steps=3_step_size=1-255-0-0.npz' in kept
    assert 'apgd-ce_steps=4_restarts=2-0-1-0.npz' in kept
    before = {path: path.stat().st_mtime_ns for path in state.glob('*.npz')}
    again = run(names, state_path=state)
    assert before == {path: path.stat().st_mtime_ns for path in state.glob('*.npz')}
    assert first.to_json()['attacks'] == again.to_json()['attacks']
    with pytest.raises(InputError, match='attacks'):
        run((PGD, 'apgd-ce(steps=5, restarts=2)'), state_path=state)


@pytest.mark.parametrize(
    ('attacks', 'given', 'words'),
    [
        ('pgd(steps=3)', {'steps': 5}, 'steps=5 is given, and .* does not take it: leave steps out'),
        ('pgd(restarts=3)', {'restarts': 5}, 'restarts=5 is given'),
        ('apgd-ce', {'steps': 5}, r'give it to one attack by name, as in apgd-ce\(steps=5\)'),
        ('pgd(step_size=2)', {}, r'step_size=2 is not in \(0, 1\] for linf: did you mean 2/255'),
        (['cw', 'pgd(steps=0)'], {}, 'steps=0 of pgd must be an integer of at least 1'),
        (['apgd-ce', 'apgd-ce(steps=100)'], {}, "'apgd-ce' is given 2 times"),
        ([('pgd(steps=3)', lambda *given: given[1])], {}, 'cannot be a name'),
    ],
)
def test_refused_before_any_compute(attacks, given, words):
    with pytest.raises(InputError, match=words):
        run(attacks, untouched, **given)


def test_the_caller_s_settings_go_to_the_others():
    result = run('pgd(steps=3),pgd', steps=2)
    assert [one.steps for one in result.attacks.values()] == [3, 2]


def test_more_targets_than_other_classes_are_refused():
    with pytest.raises(InputError, match=r'has 5 targets, and the classifier has 4 classes.*n_targets=3'):
        run('apgd-t(n_targets=5)')


def test_restarts_in_a_name_of_a_random_classifier_are_judged_by_fresh_draws():
    random = Randomised(lambda images, keys: NET(images))
    found = run('pgd(steps=2, restarts=2)', random)
    (record,) = found.attacks.values()
    assert found.decisions == 64 and record.shares.shape == (2, len(found.labels))


def test_a_preset_alone_is_stamped(result):
    assert all(one.protocol['follows'] is None for one in result.attacks.values() if one.protocol)
    with pytest.raises(InputError, match='fixed protocol'):
        run('autoattack(steps=2)', untouched)
