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


# Rows of `speed_cpu.json`.
SMALL = ('small_cnn, batch 64', 'small_cnn, 8 batches of 64')
NARROW = ('resnet18 of width 8, batch 64', 'resnet18 of width 8, 8 batches of 64')
WHOLE = ('resnet18, batch 32', 'resnet18, 4 batches of 32')
# Work, goal, peer, rows.
GOALS = (
    ('PGD-10 against torchattacks, ResNet-18', '0.9, better 1', 'torchattacks', WHOLE),
    ('the same, ResNet-18 of width 8', '1.2, better 1.5', 'torchattacks', NARROW),
    ('the same, small CNN', '1.2, better 1.5', 'torchattacks', SMALL),
    ('PGD-10 against Foolbox with JAX, ResNet-18', '1.2, better 1.5', 'Foolbox with JAX', WHOLE),
    ('the same, ResNet-18 of width 8', '2.4, better 4', 'Foolbox with JAX', NARROW),
    ('the same, small CNN', '2.4, better 4', 'Foolbox with JAX', SMALL),
)
AUTOATTACK = {'cnn_a_adv4': 'autoattack_speed.json', 'kw_base': 'autoattack_speed_kw_base.json'}


def goals() -> str:
    """How many times as fast as the peers on the CPU, beside what is wanted."""
    lines = ['| work, on the CPU | wanted | measured |', '|---|---|---|']
    for name, file in AUTOATTACK.items():
        (network,) = json.loads((RESULTS / file).read_text())['rows']
        parts = [f'{part} {_ratio(one["times_faster"])}' for part, one in network['seconds'].items()]
        lines.append(
            f'| standard AutoAttack against fra31/auto-attack, {name} | 2, better 4 | {"; ".join(parts)} |'
        )
    rows = json.loads((RESULTS / 'speed_cpu.json').read_text())['rows']['pgd']['rows']
    speeds = {row['what'].removeprefix('PGD-10, '): row['times_faster_than'] for row in rows}
    for work, wanted, peer, names in GOALS:
        parts = [f'{_ratio(speeds[name][peer])} in {name.rpartition(", ")[2]}' for name in names]
        lines.append(f'| {work} | {wanted} | {"; ".join(parts)} |')
    return '\n'.join(lines)


def _ratio(ratio: dict[str, float]) -> str:
    return f'{ratio["median"]:.2f} ({ratio["min"]:.2f} to {ratio["max"]:.2f})'


def _row(row: dict[str, Any]) -> str:
    if 'speed' not in row:
        cell = ', '.join(f'{name} {value}' for name, value in row['figures'].items())
    else:
        ours = next(iter(row['speed'].values()))
        digits = 0 if ours['median'] >= 100 else 1
        median, least, most = (f'{ours[key]:,.{digits}f}' for key in ('median', 'min', 'max'))
        cell = f'{median} {row["unit"]} ({least} to {most})'
        for peer, ratio in row['times_faster_than'].items():
            cell += f'; {_ratio(ratio)} times {peer}'
    return f'| {row["what"]} | {cell} |'


if __name__ == '__main__':
    print(planned(), speed(), goals(), sep='\n\n')
