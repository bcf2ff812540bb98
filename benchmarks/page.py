"""Prints the tables of docs/performance.md from results/: `python -m benchmarks.page`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.planned import line

RESULTS = Path(__file__).resolve().parent.parent / 'results'
NAMES = {
    'pgd': 'PGD beside others',
    'steps': 'Training steps beside PyTorch',
    'autoattack': 'AutoAttack',
    'data': 'Data pipeline',
    'compile': 'Compilation',
    'memory': 'Memory',
    'growth': 'Growth',
    'techniques': 'Single techniques',
    'hotspots': 'Where the time goes',
}


def planned() -> str:
    """What was predicted and measured of small runs."""
    rows = json.loads((RESULTS / 'plan_cpu.json').read_text())['rows']
    head = (
        '| run | passes | step, predicted (ms) | measured (ms) | ratio '
        '| memory, predicted (MB) | reserved (MB) | ratio |'
    )
    return '\n'.join([head, '|---' * 8 + '|', *map(line, rows)])


def speed() -> str:
    """Everything that `python -m benchmarks` measured."""
    parts = []
    measured: dict[str, Any] = {}
    for file in sorted(RESULTS.glob('speed_*.json')):
        measured |= json.loads(file.read_text())['rows']
    for name, part in measured.items():
        made_with = part['environment']
        form = 'quick form' if made_with['quick'] else 'full form'
        clock = 'seconds of the CPU' if made_with['clock'] == 'cpu' else 'time that passed'
        parts.append(f'**{NAMES[name]}** ({form}, {clock}, threads of PyTorch: {made_with["threads"]})')
        parts.append('\n'.join(['| what | measured |', '|---|---|', *map(_row, part['rows'])]))
    return '\n\n'.join(parts)


def _row(row: dict[str, Any]) -> str:
    if 'speed' not in row:
        cell = ', '.join(f'{name} {value}' for name, value in row['figures'].items())
    else:
        ours = next(iter(row['speed'].values()))
        cell = f'{ours["median"]:,.0f} {row["unit"]} ({ours["min"]:,.0f} to {ours["max"]:,.0f})'
        for peer, ratio in row['times_faster_than'].items():
            cell += f'; {ratio["median"]:.2f} times {peer} ({ratio["min"]:.2f} to {ratio["max"]:.2f})'
    return f'| {row["what"]} | {cell} |'


if __name__ == '__main__':
    print(planned(), speed(), sep='\n\n')
