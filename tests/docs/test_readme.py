"""The README, and the pages that go on from it, say what the code has and what the programs measured."""

import json
import pathlib
import re

import pytest

from si_jax.attacks.family import ATTACKS
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.searches import SEARCHES
from si_jax.evaluation import table

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()
EVALUATION = (ROOT / 'docs' / 'evaluation.md').read_text()
CONFIGS = (ROOT / 'docs' / 'configs.md').read_text()
TITLES = {'clean': 'natural', 'pgd': 'PGD-20', 'cw': 'PGD-CW-20', 'dlr': 'PGD-DLR-20', 'sipgd': 'SI-PGD-20',
          'worst_case': 'worst case'}  # fmt: skip


@pytest.mark.parametrize('name', TITLES)
def test_the_quickstart_table_is_the_committed_result(name):
    cells = []
    for run in ('standard', 'tradessi'):
        result = json.loads((ROOT / 'results' / 'quickstart' / f'{run}.json').read_text())
        entry = result['attacks'].get(name) or result[name]
        low, high = entry['ci95']
        cells.append(f'{100 * entry["accuracy"]:.1f} [{100 * low:.1f}, {100 * high:.1f}]')
    assert f'| {TITLES[name]} | {" | ".join(cells)} |' in README


def test_every_attack_is_in_the_table_and_nothing_else():
    table = EVALUATION.split('| `--attacks` |')[1].split('\n\n')[0]
    rows = [line.split('|')[1] for line in table.splitlines()[2:]]
    assert set(re.findall('`(.+?)`', ' '.join(rows))) == {*ATTACKS, *SEARCHES, *PRESETS}


def test_every_config_is_named():
    methods = {method for line in CONFIGS.splitlines() if line.startswith('|') and '`cifar10`' in line
               for method in re.findall('`(.+?)`', line)} - {'cifar10', 'cifar100', 'svhn'}  # fmt: skip
    files = {path.stem.rpartition('_')[0] for path in (ROOT / 'configs').glob('[a-z]*_*.py')}
    assert methods == files


def test_the_page_on_results_shows_the_table_of_a_committed_result():
    page = (ROOT / 'docs' / 'reading.md').read_text()
    result = json.loads((ROOT / 'results' / 'quickstart' / 'tradessi.json').read_text())
    assert f'```text\n{table.text(result)}\n```' in page
    named = {'accuracy': 'A row for each attack'}
    assert all(f'**{named.get(column, column)}**' in page for column in table.WIDTHS)


PAGES = [*sorted((ROOT / 'docs').glob('*.md')), *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md'))]


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_no_word_of_a_sentence_is_lost(path):
    """Two spaces in a row stood where a unit or a word had been taken out."""
    text = re.sub(r'(?ms)^```.*?^```$', '', path.read_text())
    prose = (line for line in text.splitlines() if not line.startswith(('    ', '|')))
    assert not [line for line in prose if re.search(r'\S {2,}\S', line)]
