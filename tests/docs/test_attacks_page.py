"""docs/attacks.md says what the tables of attacks hold and what the benchmarks measured."""

import json
import pathlib
import re

import pytest

from benchmarks.losses import page
from benchmarks.screens import FAST, LIMIT, SHARE
from benchmarks.targets import page as page_of_targets
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.presets import PRESETS, Stage
from si_jax.attacks.searches import SEARCHES, TARGETS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'attacks.md').read_text()
UNBROKEN = r'(?<!\\)\|'


def table(head: str) -> dict[str, list[str]]:
    """The rows under a header line, by their first cell."""
    lines = PAGE.split(f'{head}\n')[1].split('\n\n')[0].splitlines()[1:]
    cells = [[cell.strip() for cell in re.split(UNBROKEN, line)[1:-1]] for line in lines]
    return {row[0].strip('`'): row[1:] for row in cells}


def test_the_family():
    rows = table('| attack | climbs | steps | counts | source |')
    assert set(rows) == set(ATTACKS)
    for name, (_, steps, counts, _) in rows.items():
        assert int(steps) == (ATTACKS[name].steps or 20), name
        assert counts == ('any' if ATTACKS[name].any_iterate else 'final'), name
        assert ('one a for all' in rows[name][0]) == ATTACKS[name].calibrated


def test_the_searches():
    rows = table('| attack | climbs or asks | iterations | targets | source |')
    assert set(rows) == set(SEARCHES)
    for name, (climbs, iterations, classes, _) in rows.items():
        search = Stage(name).search(10)
        assert int(iterations) == search.iterations - search.idle, name
        assert classes == (str(TARGETS) if search.targeted else ''), name
        assert ('one a for all' in climbs) == SEARCHES[name].calibrated, name


def test_the_presets():
    rows = table('| preset | runs | follows |')
    assert set(rows) == set(PRESETS)
    for name, (stages, follows) in rows.items():
        assert re.findall('`(.+?)`', stages) == [stage.attack for stage in PRESETS[name]]
        assert ('screen' in follows) == (name == 'fast')


def test_what_the_screen_costs():
    made = [(stage.search(10), stage) for stage in PRESETS['fast']]
    passes = sum(search.iterations * (stage.targets if search.targeted else 1) for search, stage in made)
    assert f'{passes} forward and {passes} backward passes' in ' '.join(PAGE.split())
    # APGD-CE, APGD-T, FAB-T (two forward and one backward pass an iteration) and Square.
    assert 'takes 7,811 and 1,910' in PAGE
    assert (101 + 9 * 101 + 9 * 100 * 2 + 5001, 101 + 9 * 101 + 9 * 100) == (7811, 1910)


def test_the_measured_tables_are_the_committed_results():
    networks = json.loads((ROOT / 'results' / 'losses.json').read_text())['networks']
    assert page(networks) in PAGE


@pytest.mark.parametrize('name', ['cnn_a_adv4', 'kw_base', 'resnet4b'])
def test_the_screen_beside_autoattack(name):
    network = json.loads((ROOT / 'results' / 'screens.json').read_text())['networks'][name]
    played = network['sequences'][FAST]
    # What was computed from single attacks is what the preset did.
    assert [run['accuracy'] for run in network['fast']] == played['accuracy']
    assert [run['forward_passes'] for run in network['fast']] == played['forward_passes']
    row = f'| {name} | {network["autoattack"]["accuracy"]:.1f} | '
    row += ', '.join(f'{accuracy:.1f}' for accuracy in played['accuracy'])
    assert f'{row} | 1/{1 / played["share"]:.1f} |' in PAGE


def test_the_screen_is_the_cheapest_sequence_that_is_close_with_every_seed():
    networks = json.loads((ROOT / 'results' / 'screens.json').read_text())['networks'].values()

    def above(label):
        return max(
            accuracy - network['autoattack']['accuracy']
            for network in networks
            for accuracy in network['sequences'][label]['accuracy']
        )

    def cost(label):
        return max(network['sequences'][label]['share'] for network in networks)

    labels = next(iter(networks))['sequences']
    close = [label for label in labels if above(label) <= LIMIT + 1e-6]
    assert min(close, key=cost) == FAST and cost(FAST) <= 1 / SHARE
    assert len(close) < len(labels)


def test_linked_files_exist():
    for link in re.findall(r'\]\((?!http|#)(.+?)\)', PAGE):
        assert (ROOT / 'docs' / link).exists(), link


def test_the_table_of_targets_is_the_committed_result():
    networks = json.loads((ROOT / 'results' / 'targets.json').read_text())['networks']
    assert page_of_targets(networks) in PAGE
