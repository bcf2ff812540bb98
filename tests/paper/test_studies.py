"""The committed studies are what report.py makes of the results beside them."""

import json
import pathlib
import re

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
    """Each sentence of the answer holds of the committed numbers."""
    page = ' '.join((ROOT / 'docs' / 'study.md').read_text().split())
    study = ROOT / 'results' / 'study'
    made = json.loads((study / 'table.json').read_text())
    found = {(*pair['rows'], pair['column']): pair for pair in made['pairs']}
    plain, si, regulariser = 'TRADES', 'TRADES-SI', 'TRADES + SI regulariser'

    def points(a, b, column):
        """The difference, its two intervals, and both in the words of the page; all in points."""
        pair = found[a, b, column]
        mean, images, seeds = pair['difference']['mean'], pair['difference']['ci95'], pair['seeds_ci95']
        assert len(pair['seeds']) == 5
        images, seeds = ([100 * bound for bound in interval] for interval in (images, seeds))
        words = '[{:.2f}, {:.2f}] by images, [{:.2f}, {:.2f}] by seeds'.format(*images, *seeds)
        return 100 * mean, images, seeds, words

    gained, images, seeds, words = points(plain, si, 'fast')
    assert min(*images, *seeds) > 0  # the rule of the plan, under either attack
    assert f'TRADES-SI keeps {gained:.2f} points more than TRADES under `fast` ({words})' in page
    gained, images, seeds, words = points(plain, si, 'AA')
    assert min(*images, *seeds) > 0 and f'and {gained:.2f} under AutoAttack ({words})' in page
    assert all(found[plain, si, column]['difference']['mean'] > 0 for column in ('PGD', 'PGDCW', 'SI-PGD'))
    cost, _, seeds, words = points(plain, si, 'Natural')
    assert (
        f'It pays {-cost:.2f} points of clean accuracy ({words}), which the seeds alone cannot tell' in page
    )
    assert seeds[0] < 0 < seeds[1]
    raised, images, seeds, words = points(plain, regulariser, 'Natural')
    assert min(*images, *seeds) > 0 and f'it raises clean accuracy by {raised:.2f} points ({words})' in page
    behind, _, seeds, words = points(plain, regulariser, 'fast')
    assert seeds[0] < 0 < seeds[1] and f'it is {-behind:.2f} points behind TRADES ({words})' in page
    ahead, images, seeds, words = points(regulariser, si, 'fast')
    assert min(*images, *seeds) > 0 and f'TRADES-SI is {ahead:.2f} points ahead of it ({words})' in page

    broken = re.search(
        r'AA broke (\d+) of the (\d+) that fast left, ([\d.]+) % as a mean over (\d+) networks'
        r'.* N-FGSM (\d+) of',
        (study / 'table.md').read_text(),
    )
    assert (
        f'AutoAttack broke {broken[1]} of the {broken[2]} images that `fast` left, {broken[3]} % as a mean '
        f'over {broken[4]} networks, {broken[5]} of them of N-FGSM'
    ) in page
    assert ('AutoAttack takes the place of `fast`' in page.partition('## On the digits')[0]) or float(
        broken[3]
    ) <= 1
    kept = {
        arm: [
            f'{100 * json.loads(path.read_text())["attacks"]["fast"]["accuracy"]:.1f}'
            for path in sorted(study.glob(f'evidence-{arm}/seed*/evaluation/last-pgd-*.json'))
        ]
        for arm in ('nfgsm', 'nfgsmsi')
    }
    one, other = (', '.join(shares) for shares in kept.values())
    assert f'N-FGSM keeps {one} % under `fast`, and N-FGSM-SI {other} %' in page
    runs = len(list(study.glob('evidence-*/seed*')))
    final = '## Does SI help? The answer', 'All 21 runs of the plan are there'
    so_far = f'{runs} of 21 runs are there', 'no answer is final until all are there'
    assert all(words in page for words in (final if runs == 21 else so_far))
    readme = ' '.join((ROOT / 'README.md').read_text().split())
    assert (
        f'TRADES-SI keeps {points(plain, si, "fast")[0]:.1f} points more than TRADES under attack' in readme
    )
