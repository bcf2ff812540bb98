"""docs/performance.md has the numbers that the benchmarks wrote."""

import json
import pathlib

from benchmarks import page

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'performance.md').read_text()


def test_the_tables_are_the_results():
    for line in '\n'.join(table() for table in page.TABLES.values()).splitlines():
        assert line in PAGE, line


def test_memory_of_an_attack_does_not_grow_with_its_steps():
    rows = json.loads((ROOT / 'results' / 'speed_cpu.json').read_text())['rows']['memory']['rows']
    taken = [row['bytes'] for row in rows if 'PGD' in row['what']]
    assert len(taken) == 3 and max(taken) < 1.01 * min(taken)
    for row in rows[3:]:
        assert 0.75 <= row['bytes']['predicted'] / row['bytes']['measured'] <= 1.25


def test_predictions_are_within_a_quarter():
    rows = json.loads((ROOT / 'results' / 'plan_cpu.json').read_text())['rows']
    assert len(rows) >= 3
    for row in rows:
        assert 0.75 <= row['seconds_a_step']['ratio']['median'] <= 1.25, row['run']
        assert 0.75 <= row['bytes']['ratio'] <= 1.25, row['run']
