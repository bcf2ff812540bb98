"""The committed studies are what report.py makes of the results beside them."""

import json
import pathlib

import pytest

from si_jax.paper import configs, report
from si_jax.paper.studies import STUDIES

ROOT = pathlib.Path(report.__file__).resolve().parents[2]
COMMITTED = {  # folder, seeds, data, checkpoint
    'digits': ('study-digits', '0,1,2', None, 'best'),
    'narrow': ('study-cifar10', '0', '../shared/data', 'best'),
    'ingredients': ('study-ingredients', '0,1,2,3,4', None, 'best'),
    'evidence': ('study', '0,1,2,3,4', '../shared/data', 'last'),
}


def test_every_study_is_committed():
    assert {*STUDIES} == {*COMMITTED}


def test_a_pair_names_rows_of_its_table():
    for table in STUDIES.values():
        rows = {', '.join(row.labels) for row in table.rows}
        assert rows >= {name for pair in table.pairs for name in pair}


@pytest.mark.parametrize('table', ['ingredients', 'evidence'])
def test_what_a_row_adds_is_what_its_config_has(table):
    rows = {row.labels[0]: configs.config_of(row.source, row.source.overrides) for row in STUDIES[table].rows}
    for label, config in rows.items():
        assert (config.average.kind == 'ema') == (table == 'evidence' or label.endswith(' + average'))
        assert (config.awp.gamma > 0) == label.endswith(' + AWP')
        assert config.defense.si == ('-SI' in label or 'SI regulariser' in label)
        method, _, added = label.partition(' + ')
        inner = {'SI attack': 'si', 'calibrated attack': 'calibrated_ce', 'SI regulariser': 'kl'}.get(
            added, ''
        )
        assert config.defense.inner == inner
        assert config.defense.name == method.removesuffix('-SI').replace('N-FGSM', 'nfgsm').lower()


@pytest.mark.parametrize('table', COMMITTED)
def test_the_rendered_table_is_that_of_the_results(table, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, seeds, data_dir, checkpoint = COMMITTED[table]
    folder = ROOT / 'results' / name
    flags = {
        'table': table,
        'seeds': seeds,
        'runs': f'results/{name}',
        'data_dir': data_dir,
        'checkpoint': checkpoint,
    }
    assert (folder / 'table.md').read_text() == report.run(**flags, markdown=True) + '\n'
    made = json.loads((folder / 'table.json').read_text())
    assert made == json.loads(report.run(**flags, json=True))
    commands = report.run(**flags | {'runs': f'runs/{name}'}, commands='all')
    assert (folder / 'commands.txt').read_text() == commands + '\n'
    # Each result was made by the commands that are listed.
    for row in made['rows']:
        for cell in row['cells']:
            for path in (cell['ours'] or {'files': {}})['files'].values():
                command = json.loads(pathlib.Path(path[0]).read_text())['environment']['command']
                assert ' '.join(command) in commands


def test_what_the_page_says_of_the_study_in_words():
    """Each sentence on what the intervals say so far holds of the committed numbers."""
    page = ' '.join((ROOT / 'docs' / 'study.md').read_text().split())
    made = json.loads((ROOT / 'results/study/table.json').read_text())
    found = {(*pair['rows'], pair['column']): pair for pair in made['pairs']}

    def points(a, b, column):
        """The difference and both intervals, in points."""
        pair = found[a, b, column]
        seeds = pair.get('seeds_ci95') or [float('nan')] * 2
        return [100 * x for x in (pair['difference']['mean'], *pair['difference']['ci95'], *seeds)]

    runs = sorted((ROOT / 'results/study').glob('evidence-*/seed*'))
    words = 'ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty'.split()
    assert f'{words[len(runs) - 10]} of 21 runs are there' in page
    si, *intervals = points('TRADES', 'TRADES-SI', 'fast')
    autoattack, *others = points('TRADES', 'TRADES-SI', 'AA')
    clean, *costs = points('TRADES', 'TRADES-SI', 'Natural')
    assert (
        f'keeps {si:.2f} points more than TRADES under `fast` and {autoattack:.1f} under AutoAttack' in page
    )
    assert f'and pays {-clean:.1f} points of clean accuracy' in page
    assert min(intervals) > 0 and min(others) > 0 and max(costs) < 0
    assert f'leaves from {intervals[2]:.1f} to {intervals[3]:.1f} points to other seeds' in page
    regulariser = [points('TRADES', 'TRADES + SI regulariser', column) for column in ('Natural', 'fast')]
    (gain, *above), (cost, *below) = regulariser
    assert f'raises clean accuracy by {gain:.1f} points and costs {-cost:.1f} points under `fast`' in page
    assert min(above) > 0 and max(below) < 0
    assert f'keeps {points("N-FGSM", "N-FGSM-SI", "fast")[0]:.0f} points more than N-FGSM' in page
    alone = {cell['column']: cell['ours']['mean'] for cell in made['rows'][3]['cells'] if cell['ours']}
    assert made['rows'][3]['labels'] == ['N-FGSM'] and 2 * alone['AA'] < alone['PGD']
    _, *intervals = points('TRADES', 'TRADES + SI regulariser', 'AA')
    assert intervals[0] <= 0 <= intervals[1]
