"""What the report page calls runs, what it says in plain words, and the audits at its top."""

import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from si_jax.auditing.headings import HEADINGS, POINTS, headings
from si_jax.auditing.verdicts import OF_A_FUNCTION
from si_jax.cli import report
from si_jax.errors import InputError
from si_jax.reports import write
from si_jax.reports.classes import names_of
from si_jax.reports.collect import collect
from si_jax.reports.labels import labels_of, shortest
from si_jax.training.recipes import recipe
from tests.helpers.folders import write_result, write_run

AUDIT = pathlib.Path(__file__).resolve().parents[2] / 'results' / 'audits' / 'loud.json'


def configs(*changes):
    made = {}
    for number, change in enumerate(changes):
        config = ConfigDict(recipe('quickstart').to_dict())
        config.update_from_flattened_dict(change)
        made[str(number)] = config
    return list(labels_of(made).values())


def test_a_label_has_the_fewest_fields_that_tell_runs_apart():
    assert configs({}) == ['TRADES-SI']
    # Five fields differ, and the seed alone tells them apart.
    many = {'batch_size': 64, 'model.width': 4, 'threat.eps': 0.1, 'defense.margin': 0.1}
    assert configs({'seed': 0}, {'seed': 1} | many) == ['TRADES-SI (seed=0)', 'TRADES-SI (seed=1)']
    two = [{'seed': seed, 'threat.eps': eps} for seed in (0, 1) for eps in (0.1, 0.2)]
    assert configs(*two)[1] == 'TRADES-SI (seed=0, eps=0.2)' and len(set(configs(*two))) == 4
    # Where last parts are the same, the whole names stand there.
    both = [{'attack.steps': a, 'evaluation.steps': b} for a in (1, 2) for b in (1, 2)]
    assert configs(*both)[0] == 'TRADES-SI (attack.steps=1, evaluation.steps=1)'
    # An empty field is not shown.
    assert configs({}, {'defense.inner': 'kl'}) == ['TRADES-SI', 'TRADES-SI (inner=kl)']
    # What differs by nothing that counts has one label; the page adds the end of the folder's name.
    assert configs({}, {'data.dir': 'x'}) == ['TRADES-SI', 'TRADES-SI']
    paths = [pathlib.Path('runs/a/1f'), pathlib.Path('runs/b/1f')]
    assert [shortest(path, paths) for path in paths] == ['a/1f', 'b/1f']


def test_classes_have_names_only_where_labels_are_those_of_the_data_set():
    assert names_of({'name': 'cifar10'})[3] == 'cat'
    assert names_of({'name': 'cifar10', 'class_map': {'file': 'map.json'}}) == ()


def test_names_of_ones_own(tmp_path, capsys):
    places = [str(write_run(tmp_path / name)) for name in 'ab']
    assert [one.label for one in collect(places).networks] == ['TRADES (a)', 'TRADES (b)']
    assert [one.label for one in collect(places, ['first', 'second']).networks] == ['first', 'second']
    with pytest.raises(InputError, match=r'must be 2, each once.*TRADES \(a\) \('):
        collect(places, ['first'])
    out = tmp_path / 'out'
    flags = [f'--workdirs={",".join(places)}', f'--out={out}', '--gallery=0']
    assert report.main([*flags, '--names=x,x']) == 2 and '--names=x,x' in capsys.readouterr().err
    assert report.main([*flags, '--names=x,y']) == 0
    assert '<title>Robustness report: x, y</title>' in (out / 'index.html').read_text()


def test_the_page_begins_with_what_was_found_in_plain_words(tmp_path):
    run = write_run(tmp_path / 'run')
    write_result(run / 'evaluation' / 'a.json', {'clean': 380, 'pgd': 270})
    path, _ = write([str(run)], str(tmp_path / 'out'), gallery=0)
    text = ' '.join(path.read_text().split())
    before = text.partition('<main')[0]
    for words in (
        'The network TRADES',
        'at most 20 % of the range from black to white',
        f'right on {100 * 380 / 397:.1f} % of the unchanged images, and on {100 * 270 / 397:.1f} % of the',
        'AutoAttack, the standard set of attacks, was not run',
        'No audit was made',
        'noise, blur or weather',
    ):
        assert words in before
    # An audit beside the result is about this network, and its verdict comes first.
    shutil.copy(AUDIT, run / 'evaluation' / 'audit.json')
    path, _ = write([str(run)], str(tmp_path / 'out'), gallery=0)
    text = ' '.join(path.read_text().split())
    assert text.index(': FAIL.') < text.index('What was attacked')
    assert 'An audit found that the attack does not work on the network' in text
    assert 'NIST AI RMF: MEASURE 2.7, MEASURE 2.13; EU AI Act: Article 15(5)' in text
    assert '://' not in text.partition('<footer>')[0].replace('http-equiv', '')


def test_an_audit_alone_is_not_called_nothing(tmp_path):
    run, other = write_run(tmp_path / 'run'), tmp_path / 'audits'
    other.mkdir()
    shutil.copy(AUDIT, other)
    _, problems = write([str(run), str(other)], str(tmp_path / 'out'), gallery=0)
    assert not problems
    about = json.loads(AUDIT.read_text())
    del about['checks']
    (other / 'damaged.json').write_text(json.dumps(about))
    _, problems = write([str(run), str(other)], str(tmp_path / 'out'), gallery=0)
    assert len(problems) == 1 and 'damaged.json is left out' in problems[0]


def test_every_check_of_an_audit_has_its_points():
    assert set(HEADINGS) == {'randomness', 'batch', 'clean', *OF_A_FUNCTION}
    named = {point for row in HEADINGS.values() for points in row.values() for point in points}
    assert named == set(POINTS)
    assert headings('batch')['EU AI Act'] == ['Article 15(1)', 'Article 15(4)'] and headings('other') == {}
