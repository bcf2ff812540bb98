"""Several threat models at once: the images that withstand all of them."""

import json

import numpy as np
import pytest

import si_jax
from benchmarks.selfcheck import problem
from si_jax import InputError
from si_jax.threat import Threat, parse_threats
from tests.reports.test_page import made

GIVEN = ('linf:8/255', 'l2:0.15', 'l1:0.15')


@pytest.fixture(scope='module')
def found():
    p = problem(3, 'l1')
    return p, si_jax.evaluate_union(p.logits, p.images, p.labels, threats=GIVEN, attacks='pgd', steps=10)


def test_an_image_must_withstand_all(found):
    p, union = found
    assert list(union.results) == list(GIVEN)
    assert [result.threat.norm for result in union.results.values()] == ['linf', 'l2', 'l1']
    expected = np.ones(len(p.labels), bool)
    for text, result in union.results.items():
        norm, eps = text.split(':')
        alone = si_jax.evaluate(
            p.logits,
            p.images,
            p.labels,
            attacks='pgd',
            steps=10,
            norm=norm,
            eps=8 / 255 if '/' in eps else float(eps),
        )
        np.testing.assert_array_equal(result.correct['pgd'], alone.correct['pgd'])
        expected &= alone.correct['pgd']
    np.testing.assert_array_equal(union.results['l1:0.15'].correct['pgd'], p.withstands)
    np.testing.assert_array_equal(union.correct, expected)
    assert union.accuracy == expected.mean() and union.ci95[0] < union.accuracy < union.ci95[1]
    lines = ' '.join(union.table().split())
    assert f'union: {100 * union.accuracy:.0f} %' in lines and 'withstand all of linf:8/255, l2:0.15' in lines


def test_files(found, tmp_path):
    _, union = found
    union.save(tmp_path / 'both.json')
    about = json.loads((tmp_path / 'both.json').read_text())['union']
    assert about == union.to_json() and about['accuracy'] == union.accuracy
    flags = np.load(tmp_path / 'both.npz')
    np.testing.assert_array_equal(flags['worst_case'], union.correct)
    for text, path in union.paths(tmp_path / 'both.json').items():
        read = si_jax.Result.load(path)
        assert read.about['union'] == about
        assert read.about['worst_case']['accuracy'] == about['worst_case'][text]
        np.testing.assert_array_equal(read.correct['pgd'], union.results[text].correct['pgd'])
    assert len(list(tmp_path.glob('*.json'))) == 4


def test_parse():
    assert parse_threats('linf:8/255, l1:12') == {
        'linf:8/255': Threat('linf', 8 / 255),
        'l1:12': Threat('l1', 12),
    }
    for wrong, message in (
        ('linf', "'linf' is no threat model: write NORM:EPS, such as linf:8/255"),
        ('linf:', 'no threat model'),
        ('l1:x', 'no threat model'),
        ('l1:-1', 'no threat model'),
        ('l1:1/0', 'no threat model'),
        ('l3:1', "unknown norm 'l3'"),
        ('l1:12,l1:12.0', 'l1:12.0 is given twice'),
        ('linf:8/255,linf:0.0313725', 'linf:0.0313725 is given twice'),  # of one file name
    ):
        with pytest.raises(InputError, match=message):
            parse_threats(wrong)
    with pytest.raises(InputError, match='no threat model is given'):
        parse_threats([])


def test_wrong_arguments(found):
    p, _ = found
    with pytest.raises(InputError, match='eps is given, and the threats have theirs'):
        si_jax.evaluate_union(p.logits, p.images, p.labels, eps=0.1)
    with pytest.raises(InputError, match=r'eps=40 is not in \(0, 36\] for l1'):
        si_jax.evaluate_union(p.logits, p.images, p.labels, threats='linf:0.1,l1:40')


def test_the_page_and_comparisons_have_them(found, tmp_path):
    _, union = found
    union.save(tmp_path / 'both.json')
    reader, text, problems = made(tmp_path / 'page', tmp_path)
    assert not problems
    tables = [rows for caption, rows in reader.tables.items() if caption.startswith('Accuracy in % with')]
    of = 'union of the threat models linf:8/255, l2:0.15, l1:0.15'
    for rows in tables:
        assert rows[-1][0][0] == of  # behind the attacks
        assert rows[-1][1][1] == [union.accuracy, *union.ci95]
    assert len(tables) == 3 and 'L1, eps = 0.15' in text and 'in the sum over all pixels' in text
    assert text.count(f'<small>{of}; natural') == 3  # as nothing is below it

    a, b = (union.paths(tmp_path / 'both.json')[one] for one in ('l1:0.15', 'l2:0.15'))
    assert 'l1, eps = 0.15,' in si_jax.compare(a, a).table()
    with pytest.raises(InputError, match='l1'):
        si_jax.compare(a, b)

    about = json.loads(a.read_text())
    del about['union']['ci95']
    a.write_text(json.dumps(about))
    _, _, problems = made(tmp_path / 'page', tmp_path)
    assert len(problems) == 1 and "'union' holds no accuracy" in problems[0]
