"""What the planner says of small runs, and what they took: time of a step and memory, on this CPU.

    python -m benchmarks.planned --data_dir=FOLDER --output=results/plan_cpu.json

Each run is calibrated before and after it, as a machine may change its speed meanwhile; the mean of the two
predictions counts. A step's time is that of train.py's own figure, images a second without compilation;
memory is what XLA reserves for the compiled step of the run. Calibration knows the run's network, batch size
and precision, and neither its defense nor its number of attack steps. Exit status: 1 if one is more than 25 %
off.
"""

import argparse
import importlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

from si_jax import compilation_cache, planning
from si_jax.calibration import arguments, calibrate
from si_jax.environment import environment
from si_jax.files import write_json
from si_jax.metrics import read_metrics
from si_jax.training.run import run
from si_jax.training.setup import compile_train_step, setup

OFF = 0.25
DIGITS = {'epochs': 4, 'data.limit': 768, 'evaluation.every_epochs': 4}
CIFAR = {'epochs': 2, 'data.limit': 512, 'data.validation': 64, 'evaluation.every_epochs': 2}
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


def measure(name: str, config_name: str, row: str, fields: dict[str, Any], data_dir: str | None) -> dict:
    """One run, predicted and measured."""
    config = importlib.import_module(f'configs.{config_name}').get_config(row)
    fields = fields | {'logging.tensorboard': False, 'checkpoint.keep_last': 1}
    config.update_from_flattened_dict(fields | ({'data.dir': data_dir} if config_name == 'narrow' else {}))
    ready = setup(config)
    described = planning.describe(config)
    program = compile_train_step(ready).lower(*arguments(ready)).compile().memory_analysis()
    taken = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
    machines = [calibrate(config)]
    with tempfile.TemporaryDirectory() as workdir:
        run(config, workdir)
        speeds = [line['images_per_second'] for line in read_metrics(Path(workdir) / 'metrics.jsonl')]
    machines.append(calibrate(config))
    predictions = [planning.step(described, machine, 1).total for machine in machines]
    return {
        'run': name,
        'config': f'configs/{config_name}.py:{row}',
        'fields': fields,
        'passes': described.passes.total,
        'seconds_a_step': pair(
            statistics.mean(predictions), config.batch_size / statistics.median(speeds), all=predictions
        ),
        'bytes': pair(planning.memory(described, machines[0], 1).total, taken - program.alias_size_in_bytes),
        'rates': [{'attack': machine.attack, 'update': machine.update} for machine in machines],
        'images_per_second': speeds,
    }


def pair(predicted: float, measured: float, **more: Any) -> dict[str, Any]:
    return {'predicted': predicted, 'measured': measured, 'ratio': predicted / measured, **more}


def line(row: dict[str, Any]) -> str:
    time, memory = row['seconds_a_step'], row['bytes']
    cells = (
        row['run'],
        f'{row["passes"]:g}',
        *(f'{1e3 * time[key]:.1f}' for key in ('predicted', 'measured')),
        f'{time["ratio"]:.2f}',
        *(f'{memory[key] / 1e6:.1f}' for key in ('predicted', 'measured')),
        f'{memory["ratio"]:.2f}',
    )
    return f'| {" | ".join(cells)} |'


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--data_dir', help='npz folder of CIFAR-10, or that of tensorflow-datasets')
    flags.add_argument('--rows', help='numbers with commas between, from 1 (default: all)')
    flags.add_argument('--output', help='JSON file')
    given = flags.parse_args()
    compilation_cache.enable()
    numbers = [int(one) for one in given.rows.split(',')] if given.rows else range(1, len(ROWS) + 1)
    rows = []
    for number in numbers:
        rows.append(measure(*ROWS[number - 1], given.data_dir))
        print(line(rows[-1]), flush=True)
        if given.output:
            made_with = {key: value for key, value in environment().items() if key != 'command'}
            write_json(given.output, {'rows': rows, 'environment': made_with})
    ratios = [row[what]['ratio'] for row in rows for what in ('seconds_a_step', 'bytes')]
    return int(any(not 1 - OFF <= ratio <= 1 + OFF for ratio in ratios))


if __name__ == '__main__':
    raise SystemExit(main())
