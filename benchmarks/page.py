"""The tables of docs/performance.md, from results/: `python -m benchmarks.page` puts them into the page."""

import json
from pathlib import Path
from typing import Any

from benchmarks.marks import filled
from benchmarks.planned import line
from si_jax.storage.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'results'
PAGE = ROOT / 'docs' / 'performance.md'
NAMES = {
    'pgd': 'PGD beside others',
    'steps': 'Training steps beside PyTorch',
    'autoattack': 'AutoAttack',
    'data': 'Data pipeline',
    'compile': 'Compilation',
    'first_result': 'From a command to its result',
    'waiting': 'Waiting for data',
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
SMALL = ('PGD-10, small_cnn, batch 64', 'PGD-10, small_cnn, 8 batches of 64')
NARROW = ('PGD-10, resnet18 of width 8, batch 64', 'PGD-10, resnet18 of width 8, 8 batches of 64')
WHOLE = ('PGD-10, resnet18, batch 32', 'PGD-10, resnet18, 4 batches of 32')
SINGLE = tuple(f'step of {method}, resnet18 of width 8, batch 32' for method in ('freeat', 'rfgsm'))
# Work, goal, peer, rows.
GOALS = (
    ('PGD-10 against torchattacks, ResNet-18', '0.9, better 1', 'torchattacks', WHOLE),
    ('the same, ResNet-18 of width 8', '1.2, better 1.5', 'torchattacks', NARROW),
    ('the same, small CNN', '1.2, better 1.5', 'torchattacks', SMALL),
    ('PGD-10 against Foolbox with JAX, ResNet-18', '1.2, better 1.5', 'Foolbox with JAX', WHOLE),
    ('the same, ResNet-18 of width 8', '2.4, better 4', 'Foolbox with JAX', NARROW),
    ('the same, small CNN', '2.4, better 4', 'Foolbox with JAX', SMALL),
    ('a training step against PyTorch, FreeAT and R-FGSM', '1', 'PyTorch', SINGLE),
)
WANTED = {'resnet4b': '2'}  # of AutoAttack; on the others '2, better 4'


def goals() -> str:
    """How many times as fast as the peers on the CPU, beside what is wanted."""
    lines = ['| work, on the CPU | wanted | measured |', '|---|---|---|']
    for network in _autoattack():
        ratio = _ratio(network['seconds']['autoattack']['times_faster'])
        name = network['network']
        work = f'standard AutoAttack against fra31/auto-attack, {name}'
        lines.append(f'| {work} | {WANTED.get(name, "2, better 4")} | {ratio} |')
    measured = json.loads((RESULTS / 'speed_cpu.json').read_text())['rows']
    rows = [row for part in ('pgd', 'steps') for row in measured[part]['rows']]
    speeds = {row['what']: row['times_faster_than'] for row in rows if 'speed' in row}
    for work, wanted, peer, names in GOALS:
        parts = []
        for name in names:
            short = name.partition(', ')[0] if name in SINGLE else f'in {name.rpartition(", ")[2]}'
            parts.append(f'{_ratio(speeds[name][peer])} {short}')
        lines.append(f'| {work} | {wanted} | {"; ".join(parts)} |')
    return '\n'.join(lines)


def stages() -> str:
    """How fast the stages of AutoAttack are, beside the public code and beside a product of matrices."""
    head = '| network, images | stage | seconds | public code, seconds | times as fast | needed GFLOP/s |'
    lines = [head, '|---' * 6 + '|']
    for network in _autoattack():
        best = network['matrix_flops_a_second']
        for stage, one in network['seconds'].items():
            rate = ''
            if 'flops_a_second' in one:
                flops = one['flops_a_second']['median']
                rate = f'{flops / 1e9:.0f}, {flops / best:.0%} of a matrix product'
            lines.append(
                f'| {network["network"]}, {network["images"]} | {stage} | {one["si_jax"]["median"]:.1f} '
                f'| {one["reference"]["median"]:.1f} | {_ratio(one["times_faster"])} | {rate} |'
            )
    return '\n'.join(lines)


def suite() -> str:
    """What a run of the whole test suite paid for."""
    run = json.loads((RESULTS / 'suite.json').read_text())
    spent = run['spent']
    compiling = {name: spent[name] for name in ('tracing', 'lowering', 'compiling')}
    parts = {f'{name} of programs': seconds for name, seconds in compiling.items()}
    parts['all else in the processes of the tests'] = spent['processor'] - sum(compiling.values())
    parts['commands that tests start, compiling included'] = spent['children']
    whole = spent['processor'] + spent['children']
    lines = ['| what | seconds of processors | share |', '|---|---|---|']
    lines += [f'| {name} | {seconds:,.0f} | {seconds / whole:.0%} |' for name, seconds in parts.items()]
    lines.append(f'| all of {run["count"]:,} tests | {whole:,.0f} | |')
    words = f'They took {run["wall"] / 60:.1f} minutes on {run["cores"]} cores, which were busy for '
    return '\n'.join([*lines, '', f'{words}{whole / run["cores"] / run["wall"]:.0%} of it.'])


def _autoattack() -> list[dict[str, Any]]:
    return json.loads((RESULTS / 'autoattack_speed.json').read_text())['rows']


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


TABLES = {'planned': planned, 'speed': speed, 'goals': goals, 'stages': stages, 'suite': suite}


if __name__ == '__main__':
    tables = {name: table() for name, table in TABLES.items()}
    write_atomic(PAGE, filled(PAGE.read_text(), tables).encode())
