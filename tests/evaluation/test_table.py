"""The table of a result, in all its forms."""

import csv
import io

import numpy as np
import pytest

from si_jax import InputError, Threat
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.table import decimals
from si_jax.threat import radius
from tests.evaluation.test_result import result

MODEL = {'workdir': 'runs/first', 'checkpoint': 'best', 'step': 1320}
DATA = {'name': 'digits', 'split': 'test', 'examples': 10}
TABLE = """\
model   runs/first, checkpoint best, step 1320
data    digits test, 10 images
threat  linf, eps = 8/255
seed    4

                                       breaks    one                     largest
in %           accuracy  95 % interval  alone    run restarts steps perturbation
"""


def test_the_whole_table():
    found = result(model=MODEL, dataset=DATA, threat=Threat('linf', 8 / 255)).table()
    head, below = found.split('clean', 1)
    assert [line.split() for line in head.splitlines()] == [line.split() for line in TABLE.splitlines()]
    assert max(map(len, found.splitlines())) <= 80
    rows = {line[:14].strip(): line[14:].split() for line in f'clean{below}'.splitlines()}
    # PGD breaks images 1, 3, 5, 6 and 7 of the 8 that are right, FGSM only 6 and 7. An image is 10 points.
    assert rows['clean'] == ['80', '49', '-', '94']
    assert rows['pgd'] == ['30', '11', '-', '60', '3', '60', '2', '20', '0.2']
    assert rows['fgsm'] == ['60', '31', '-', '83', '0', '60', '1', '1', '0.2']
    assert rows['worst case'] == ['30', '11', '-', '60']
    words = ' '.join(found.split())
    assert (
        'an image counts if it is classified correctly without an attack and under each of pgd, fgsm' in words
    )
    assert found.endswith('\nwarning: look out') and 'overestimation' not in found


def test_what_is_not_known_is_left_out():
    found = result(attacks={}).table()
    assert found.startswith('data    10 images\nthreat  linf, eps = 0.2\n')
    assert 'without an attack\n' in found


@pytest.mark.parametrize(
    ('images', 'wanted'), [(1, 0), (100, 0), (101, 1), (1000, 1), (10_000, 2), (10**6, 2)]
)
def test_decimals_that_the_images_support(images, wanted):
    assert decimals(images) == wanted


@pytest.mark.parametrize(
    ('eps', 'words'),
    [(8 / 255, '8/255'), (float(np.float32(8 / 255)), '8/255'), (0.2, '0.2'), (128 / 255, '128/255'),
     (12.0, '12'), (1 / 3, '85/255'), (0.123456789, '0.123457')],
)  # fmt: skip
def test_a_radius_as_it_is_known(eps, words):
    assert radius(eps) == words


def test_a_notebook_shows_what_a_terminal_does():
    found = result(model={'model': '<net>.py:build'}, dataset=DATA)._repr_html_()
    assert found.count('<tr>') == 5 and '<th scope="col">largest perturbation</th>' in found
    assert 'model: &lt;net&gt;.py:build' in found and '<net>' not in found
    assert '<th scope="row">pgd</th><td>30</td><td>11 - 60</td><td>3</td>' in found
    assert '<p>warning: look out</p>' in found


def test_values_for_a_spreadsheet(tmp_path):
    written = result().to_csv(tmp_path / 'table.csv')
    assert (tmp_path / 'table.csv').read_text() == written
    clean, pgd, _, worst = csv.DictReader(io.StringIO(written))
    assert (clean['attack'], clean['accuracy'], clean['one run']) == ('clean', '0.8', '')
    assert (pgd['breaks alone'], pgd['one run'], pgd['restarts']) == ('3', '0.6', '2')
    assert worst['attack'] == 'worst case' and float(worst['accuracy']) == 0.3


def test_latex():
    record = AttackRecord((np.arange(10) < 6)[None], None, None, 1, 0.2)
    lines = result(attacks={'my_own': record}).to_latex().splitlines()
    assert r'my\_own & 60 & 31--83 & 2 & 60 & 1 & - & 0.2 \\' in lines
    assert lines[-1] == r'\end{tabular}' and r'in \% & accuracy & 95 \% interval' in '\n'.join(lines)


def test_a_data_frame_or_how_to_get_one(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(__import__('sys').modules, 'pandas', None)
        with pytest.raises(InputError, match='pandas is not installed: pip install pandas'):
            result().to_pandas()
    pandas = pytest.importorskip('pandas')
    frame = result().to_pandas()
    assert isinstance(frame, pandas.DataFrame) and frame.loc['pgd', 'accuracy'] == 0.3
