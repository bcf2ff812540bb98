"""The figures of docs/reliability.md, from results/: `python -m tests.chaos.page` puts them into the page."""

import json
from pathlib import Path
from typing import Any

from benchmarks.marks import filled

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'reliability.md'


def tables() -> dict[str, str]:
    """By name of the file in results/, what the page shows of it; '' where it is missing."""
    shown = {'chaos': _chaos, 'malformed': _malformed}
    found = {}
    for name, text in shown.items():
        file = ROOT / 'results' / f'{name}.json'
        found[name] = text(json.loads(file.read_text())) if file.exists() else ''
    return found


def _chaos(content: dict[str, Any]) -> str:
    lines = [
        '| what runs | kills | survived | lost | runs | by SIGTERM | of one process of two | '
        'by replacing the folder | then a file damaged | then a checkpoint renamed | then the data changed |',
        '|---|' + '---:|' * 10,
    ]
    rows = content['scenarios']
    for name, row in rows.items():
        kinds = row['by kind']
        term = sum(count for kind, count in kinds.items() if kind.startswith('SIGTERM'))
        one = sum(count for kind, count in kinds.items() if kind.endswith('to one'))
        counts = [
            row['faults'],
            row['survived'],
            row['lost'],
            row['runs'],
            term,
            one,
            kinds.get('REPLACED to all', 0),
            kinds['then a file damaged'],
            kinds.get('then a checkpoint renamed', 0),
            kinds.get('then other data refused', 0),
        ]
        lines.append(f'| {name} | ' + ' | '.join(map(str, counts)) + ' |')
    together = content['together']
    lines.append(f'| together | {together["faults"]} | {together["survived"]} | {together["lost"]} | '
                 f'{together["runs"]} | | | | | | |')  # fmt: skip
    commands = ' and\n'.join(f'`{command}`' for command in sorted({row['command'] for row in rows.values()}))
    seeds = ' or '.join(sorted({str(row['seed']) for row in rows.values()}))
    first = next(iter(rows.values()))
    known, failed = first['environment'], [row['starts that failed by themselves'] for row in rows.values()]
    lines += [
        '',
        f'Made by {commands},\nwith seed {seeds}, Python {known["python"]}, JAX {known["jax"]} and',
        f'Orbax {known["orbax-checkpoint"]}. `results/chaos.json` has every kill with its point.',
    ]
    if count := sum(map(len, failed)):
        lines += [f'Starts that failed by themselves and were repeated, as a scheduler does it: {count}.']
    return '\n'.join(lines)


def _malformed(content: dict[str, Any]) -> str:
    lines = ['| input | refused | read, as valid as the original |', '|---|---:|---:|']
    for name, row in content['targets'].items():
        lines.append(f'| {name} | {row.get("refused", 0)} | {row.get("harmless", 0)} |')
    lines.append(f'| together | {content["refused"]} | {content["inputs"] - content["refused"]} |')
    lines += [
        '',
        f'Made by `{content["command"]}`. Of these inputs {content["executed"]} ran a command, '
        f'{content["hung"]} took too long and {content["written"]} changed a file.',
    ]
    return '\n'.join(lines)


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text(), tables()))
