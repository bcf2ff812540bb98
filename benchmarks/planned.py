"""What the planner says of small runs, and what they take: time of a step and memory, on this CPU.

    python -m benchmarks.planned --data_dir=FOLDER --output=results/plan_cpu.json

In each turn run the two steps that are timed for a plan, from which the prediction of that turn comes, and
then the step of the run, on its data. Seconds are those of the CPU, of all threads, so that other work on the
machine counts little (with one core they are the time that passes). The timing knows the run's network, batch
size and precision, not its defense nor its number of attack steps. Memory is what XLA reserves for the
compiled step. Rows that the output file holds and that are not named stay. Exit status: 1 if a median is more
than 25 % off.
"""

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.spread import spread
from si_jax.cost import planning
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json
from si_jax.training.setup import compile_train_step, setup
from si_jax.training.timing import FEW, MANY, arguments, machine_of, synthetic, timed

OFF = 0.25
DIGITS = {'data.limit': 768}
CIFAR = {'data.limit': 512}
# Name, config, what is behind its colon, fields.
ROWS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ('TRADES-SI, small CNN, digits', 'digits', 'tradessi', DIGITS),
    (
        'AT with 20 steps, small CNN, digits',
        'digits',
        'at',
        DIGITS | {'batch_size': 64, 'attack.steps': 20},
    ),
    (
        'MART, small CNN of width 32, digits',
        'digits',
        'mart',
        DIGITS | {'batch_size': 128, 'model.width': 32},
    ),
    (
        'TRADES, ResNet-18 of width 8, digits',
        'digits',
        'trades',
        DIGITS | {'model.arch': 'resnet18', 'model.width': 8},
    ),
    ('TRADES-SI with 5 steps, ResNet-18 of width 8, CIFAR-10', 'narrow', 'tradessi', CIFAR),
    (
        'ALP with 5 steps, WRN-10-1, CIFAR-10',
        'narrow',
        'alp',
        CIFAR | {'model.arch': 'wrn_10_1', 'model.width': 0},
    ),
)


def measure(
    name: str, config_name: str, row: str, fields: dict[str, Any], data_dir: str | None, turns: int
) -> dict[str, Any]:
    """One run, predicted and measured."""
    config = importlib.import_module(f'configs.{config_name}').get_config(row)
    config.update_from_flattened_dict(fields | ({'data.dir': data_dir} if config_name == 'narrow' else {}))
    ready = setup(config)
    described = planning.describe(config)
    reserved = compile_train_step(ready).lower(*arguments(ready)).compile().memory_analysis()
    taken = reserved.argument_size_in_bytes + reserved.output_size_in_bytes + reserved.temp_size_in_bytes
    clock = time.process_time
    steps = [timed(each, clock) for each in (synthetic(config, FEW), synthetic(config, MANY), ready)]
    predicted, measured, machines = [], [], []
    for _ in range(turns):
        few, many, seconds = (step() for step in steps)
        machines.append(machine_of(config, few, many))
        predicted.append(planning.step(described, machines[-1], 1).total)
        measured.append(seconds)
    ratio = spread([a / b for a, b in zip(predicted, measured, strict=True)])
    need = planning.memory(described, machines[0], 1).total
    held = taken - reserved.alias_size_in_bytes
    return {
        'run': name,
        'config': f'configs/{config_name}.py:{row}',
        'fields': fields,
        'passes': described.passes.total,
        'seconds_a_step': {'predicted': spread(predicted), 'measured': spread(measured), 'ratio': ratio},
        'bytes': {'predicted': need, 'measured': held, 'ratio': need / held},
        'rates': {
            'attack': spread([machine.attack for machine in machines]),
            'update': spread([machine.update for machine in machines]),
        },
        'turns': turns,
        'clock': 'CPU seconds of all threads',
    }


def line(row: dict[str, Any]) -> str:
    seconds, memory = row['seconds_a_step'], row['bytes']
    ratio = seconds['ratio']
    cells = (
        row['run'],
        f'{row["passes"]:g}',
        *(f'{1e3 * seconds[key]["median"]:.1f}' for key in ('predicted', 'measured')),
        f'{ratio["median"]:.2f} ({ratio["min"]:.2f} to {ratio["max"]:.2f})',
        *(f'{memory[key] / 1e6:.1f}' for key in ('predicted', 'measured')),
        f'{memory["ratio"]:.2f}',
    )
    return f'| {" | ".join(cells)} |'


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--data_dir', help='npz folder of CIFAR-10, or that of tensorflow-datasets')
    flags.add_argument('--rows', help='numbers with commas between, from 1 (default: all)')
    flags.add_argument('--output', help='JSON file')
    flags.add_argument('--turns', type=int, default=7, help='default: %(default)s')
    given = flags.parse_args()
    compilation_cache.enable()
    numbers = [int(one) for one in given.rows.split(',')] if given.rows else range(1, len(ROWS) + 1)
    rows: dict[str, Any] = {}
    if given.output and Path(given.output).exists():
        rows = {row['run']: row for row in json.loads(Path(given.output).read_text())['rows']}
    for number in numbers:
        row = measure(*ROWS[number - 1], given.data_dir, given.turns)
        rows[row['run']] = row
        print(line(row), flush=True)
        if given.output:
            made_with = {key: value for key, value in environment().items() if key != 'command'}
            order = [rows[name] for name, *_ in ROWS if name in rows]
            write_json(given.output, {'rows': order, 'environment': made_with})
    ratios = [row['seconds_a_step']['ratio']['median'] for row in rows.values()]
    ratios += [row['bytes']['ratio'] for row in rows.values()]
    return int(any(not 1 - OFF <= ratio <= 1 + OFF for ratio in ratios))


if __name__ == '__main__':
    raise SystemExit(main())
