"""Holds the attacks against reference results: `python -m benchmarks.conformance`."""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError, unknown
from si_jax.evaluation.evaluate import evaluate
from si_jax.runtime import terminal
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

ABOUT = """
Holds the attacks against reference results on published networks, and writes
down what it measured. The folder holds networks, images and, for each network,
one flag per image from PyTorch implementations: the PGD family with five seeds,
and each stage of AutoAttack alone and the cascade from fra31/auto-attack.

examples:
  all networks, an hour or so on two CPU cores
    python -m benchmarks.conformance --shared=../shared
  one of them; of the others the file keeps what it says
    python -m benchmarks.conformance --networks=cnn_a_adv4
  into another file
    python -m benchmarks.conformance --output=conformance.json
"""
NETWORKS = ('cnn_a_adv4', 'kw_base', 'resnet4b')
IMAGES = 1000
FAMILY = ('pgd', 'cw', 'dlr', 'sipgd')
STAGES = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
SEEDS = 3  # of the cascade
# Bounds, in points of accuracy or percent of flags. The reference moves by about as much with its own seed.
FAMILY_MEAN = 0.3
STAGE_ACCURACY = {'fab-t': 0.4, 'square': 1.0}
STAGE_FLAGS = {'apgd-ce': 99.0, 'apgd-t': 99.0}
FLAGS_ON = ('cnn_a_adv4', 'kw_base')
CASCADE_ABOVE, CASCADE_EITHER = 0.2, 0.4


class Problem(NamedTuple):
    """A published network as a classifier, the first test images of CIFAR-10, and the radius for it."""

    network: Callable[[Any], Any]
    images: np.ndarray
    labels: np.ndarray
    eps: float


def problem(shared: Path, name: str, count: int = IMAGES) -> Problem:
    """Loads a network and `count` images from the folder with `checkpoints`, `data` and `reference`."""
    spec = importlib.util.spec_from_file_location('nets', shared / 'reference' / 'nets.py')
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, _ = nets.load(shared / 'checkpoints' / f'{name}.npz', name)
    data = np.load(shared / 'data' / 'cifar10_test.npz')
    images = (data['images'][:count] / 255).astype(np.float32)
    return Problem(network, images, data['labels'][:count].astype(np.int32), nets.EPS[name] / 255)


def compare(shared: Path, name: str) -> dict[str, Any]:
    """Measures all attacks on one network.

    Args:
        shared: The folder with `checkpoints`, `data` and `reference`.
        name: Of the network.

    Returns:
        For each attack our figures, those of the reference, and whether the bounds hold.
    """
    network, images, labels, eps = problem(shared, name)
    numbers = json.loads((shared / 'reference' / f'{name}.json').read_text())
    flags = np.load(shared / 'reference' / f'{name}.npz')
    settings: dict[str, Any] = {'eps': eps, 'batch_size': None, 'progress': True}

    family = evaluate(network, images, labels, attacks=FAMILY, restarts=5, **settings)
    report: dict[str, Any] = {
        'clean': {
            'accuracy': family.accuracy['clean'],
            'reference': float(flags['clean'].mean()),
            'flags_percent': _agreement(family.correct['clean'], flags['clean']),
        }
    }
    report['clean']['holds'] = report['clean']['flags_percent'] == 100.0
    for attack in FAMILY:
        ours = family.attacks[attack].runs.mean(axis=1)
        difference = _points(ours.mean() - numbers[attack]['mean'])
        report[attack] = {
            'runs': ours.tolist(),
            'accuracy': float(ours.mean()),
            'reference': numbers[attack]['mean'],
            'difference_points': difference,
            'holds': abs(difference) <= FAMILY_MEAN,
        }

    alone = evaluate(network, images, labels, attacks=STAGES, **settings)
    for stage in STAGES:
        theirs = flags[f'aa_{stage}']
        difference = _points(alone.accuracy[stage] - theirs.mean())
        agreement = _agreement(alone.correct[stage], theirs)
        asked = name in FLAGS_ON and stage in STAGE_FLAGS
        report[stage] = {
            'accuracy': alone.accuracy[stage],
            'reference': float(theirs.mean()),
            'difference_points': difference,
            'flags_percent': agreement,
            'holds': abs(difference) <= STAGE_ACCURACY.get(stage, np.inf)
            and (not asked or agreement >= STAGE_FLAGS[stage]),
            'seconds': alone.timing['parts'][stage],
        }

    # A stage does the same to an image alone as in the cascade: with this seed the cascade has been run.
    left = alone.correct['clean']
    stages: dict[str, float] = {}
    for stage in STAGES:
        left = left & alone.correct[stage]
        stages[stage] = float(left.mean())
    runs, seconds = [float(left.mean())], []
    for seed in range(1, SEEDS):
        result = evaluate(network, images, labels, attacks='autoattack', seed=seed, **settings)
        runs.append(result.accuracy['autoattack'])
        seconds.append(result.timing['seconds'])
    difference = _points(np.mean(runs) - flags['aa'].mean())
    report['autoattack'] = {
        'runs': runs,
        'accuracy': float(np.mean(runs)),
        'reference': float(flags['aa'].mean()),
        'difference_points': difference,
        'flags_percent': _agreement(left, flags['aa']),
        'after_each_stage': stages,
        'holds': -CASCADE_EITHER <= difference <= CASCADE_ABOVE,
        'seconds': seconds,
    }
    return report


def main(argv: list[str] | None = None) -> int:
    prog = 'python -m benchmarks.conformance'
    kept = 'networks that were finished are in the output, and --networks names the others'
    flags = terminal.parser(
        prog, f'{prog} [flags]', ABOUT, terminal.exit_status('a bound does not hold', kept)
    )
    flags.add_argument(
        '--shared',
        type=Path,
        metavar='FOLDER',
        default=Path(os.environ.get('SI_JAX_SHARED', '../shared')),
        help='the reference material (default: $SI_JAX_SHARED, or ../shared)',
    )
    flags.add_argument(
        '--output',
        type=Path,
        metavar='FILE.json',
        default=Path('results/conformance.json'),
        help='default: %(default)s',
    )
    flags.add_argument('--networks', metavar='A,B', default=','.join(NETWORKS), help='default: %(default)s')
    arguments = flags.parse_args(argv)
    return terminal.run('conformance', lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> int:
    """Measures the networks that were asked for, and says whether all bounds hold by the exit status."""
    if not arguments.shared.is_dir():
        raise InputError(f'--shared={arguments.shared} is not a folder: give another, or set SI_JAX_SHARED')
    for name in arguments.networks.split(','):
        if name not in NETWORKS:
            raise unknown('network', name, NETWORKS)
    # The command line would say where on this machine it ran.
    made_with = {key: value for key, value in environment().items() if key != 'command'}
    content: dict[str, Any] = {'images': IMAGES, 'environments': {}, 'networks': {}}
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        content |= {key: before.get(key, {}) for key in ('environments', 'networks')}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks.split(','):
        began = time.perf_counter()
        report = compare(arguments.shared, name)
        content['networks'][name], content['environments'][name] = report, made_with
        print(f'{name} ({time.perf_counter() - began:.0f} s)')
        for attack, row in report.items():
            mark = 'ok' if row['holds'] else 'OUTSIDE ITS BOUND'
            agreement = f'{row["flags_percent"]:.1f} % of flags' if 'flags_percent' in row else ''
            figures = f'{100 * row["accuracy"]:>7.2f}{100 * row["reference"]:>8.2f}'
            print(f'  {attack:<12}{figures}   {agreement:<18}{mark}')
        # Written after each network: the next one may take an hour.
        content['holds'] = all(
            row['holds'] for report in content['networks'].values() for row in report.values()
        )
        write_json(arguments.output, content)
    return terminal.OK if content['holds'] else terminal.FAILED


def _points(difference: float) -> float:
    """In percentage points, rounded to what the number of images resolves by far."""
    return round(100 * float(difference), 4)


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return round(100 * float(np.mean(ours == theirs)), 4)


if __name__ == '__main__':
    sys.exit(main())
