"""Holds the attacks against reference results: `python -m benchmarks.conformance`."""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
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
one flag per image from PyTorch implementations: the PGD family with five
seeds, and each stage of AutoAttack alone and the cascade from
fra31/auto-attack. In L1 the folder has the stages and the cascade, on fewer
images.

examples:
  all networks, an hour or so on two CPU cores
    python -m benchmarks.conformance --shared=../shared
  one of them; of the others the file keeps what it says
    python -m benchmarks.conformance --networks=cnn_a_adv4
  in L1, into results/conformance_l1.json
    python -m benchmarks.conformance --norm=l1
  into another file
    python -m benchmarks.conformance --output=conformance.json

What was finished of a network is kept beside the output, in a folder that
ends in .partial: the same command goes on there after an interruption.
"""
STAGES = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
FAMILY_MEAN = 0.3  # points
FLAGS_ON = ('cnn_a_adv4', 'kw_base')


class Standard(NamedTuple):
    """What there is to compare with in a norm, and how near it must be.

    Bounds are in points of accuracy or percent of flags. The reference moves by about as much with its own
    seed.

    Attributes:
        networks: Their names.
        images: How many there are flags of.
        suffix: Of the reference's files, after the name of the network, and of the output.
        eps: The radius; None for that of the network.
        family: Attacks of the PGD family.
        flags: Percent of flags that agree, by stage.
        accuracy: How far the accuracy may be off, by stage.
        above: How far the cascade's may be above.
        either: And below.
        seeds: Of the cascade.
    """

    networks: tuple[str, ...]
    images: int
    suffix: str
    eps: float | None
    family: tuple[str, ...]
    flags: dict[str, float]
    accuracy: dict[str, float]
    above: float
    either: float
    seeds: int


STANDARDS = {
    'linf': Standard(
        ('cnn_a_adv4', 'kw_base', 'resnet4b'),
        1000,
        '',
        None,
        ('pgd', 'cw', 'dlr', 'sipgd'),
        {'apgd-ce': 99.0, 'apgd-t': 99.0},
        {'fab-t': 0.4, 'square': 1.0},
        above=0.2,
        either=0.4,
        seeds=3,
    ),
    'l1': Standard(
        ('cnn_a_adv4', 'kw_base'),
        500,
        '_l1',
        3.0,
        (),
        {'apgd-ce': 98.0},
        {'apgd-t': 0.6, 'fab-t': 1.0, 'square': 2.0},
        above=0.6,
        either=0.6,
        seeds=1,
    ),
}


class Problem(NamedTuple):
    """A published network as a classifier, the first test images of CIFAR-10, and the radius for it."""

    network: Callable[[Any], Any]
    images: np.ndarray
    labels: np.ndarray
    eps: float


def problem(shared: Path, name: str, count: int = 1000) -> Problem:
    """Loads a network and `count` images from the folder with `checkpoints`, `data` and `reference`."""
    spec = importlib.util.spec_from_file_location('nets', shared / 'reference' / 'nets.py')
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, _ = nets.load(shared / 'checkpoints' / f'{name}.npz', name)
    data = np.load(shared / 'data' / 'cifar10_test.npz')
    images = (data['images'][:count] / 255).astype(np.float32)
    return Problem(network, images, data['labels'][:count].astype(np.int32), nets.EPS[name] / 255)


def compare(shared: Path, name: str, norm: str, partial: Path) -> Iterator[dict[str, Any]]:
    """Measures all attacks on one network, the cascade last.

    Args:
        shared: The folder with `checkpoints`, `data` and `reference`.
        name: Of the network.
        norm: A row of `STANDARDS`.
        partial: A folder in which finished parts are kept, to go on after an interruption.

    Yields:
        For each attack our figures, those of the reference, and whether the bounds hold: first of the attacks
        alone, then with the cascade.
    """
    standard = STANDARDS[norm]
    network, images, labels, eps = problem(shared, name, standard.images)
    numbers = json.loads((shared / 'reference' / f'{name}{standard.suffix}.json').read_text())
    flags = np.load(shared / 'reference' / f'{name}{standard.suffix}.npz')
    settings: dict[str, Any] = {'eps': standard.eps or eps, 'norm': norm, 'progress': True}

    stages = [stage for stage in STAGES if f'aa_{stage}' in flags]
    resumed = partial.exists()  # then the times of what was finished are lost
    alone = evaluate(network, images, labels, attacks=stages, state_path=partial / 'stages', **settings)
    report: dict[str, Any] = {
        'clean': {
            'accuracy': alone.accuracy['clean'],
            'reference': float(flags['clean'].mean()),
            'flags_percent': _agreement(alone.correct['clean'], flags['clean']),
        }
    }
    report['clean']['holds'] = report['clean']['flags_percent'] == 100.0
    if standard.family:
        kept = partial / 'family'
        family = evaluate(
            network, images, labels, attacks=standard.family, restarts=5, state_path=kept, **settings
        )
    for attack in standard.family:
        ours = family.attacks[attack].runs.mean(axis=1)
        difference = _points(ours.mean() - numbers[attack]['mean'])
        report[attack] = {
            'runs': ours.tolist(),
            'accuracy': float(ours.mean()),
            'reference': numbers[attack]['mean'],
            'difference_points': difference,
            'holds': abs(difference) <= FAMILY_MEAN,
        }

    for stage in stages:
        theirs = flags[f'aa_{stage}']
        difference = _points(alone.accuracy[stage] - theirs.mean())
        agreement = _agreement(alone.correct[stage], theirs)
        asked = name in FLAGS_ON and stage in standard.flags
        report[stage] = {
            'accuracy': alone.accuracy[stage],
            'reference': float(theirs.mean()),
            'difference_points': difference,
            'flags_percent': agreement,
            'holds': abs(difference) <= standard.accuracy.get(stage, np.inf)
            and (not asked or agreement >= standard.flags[stage]),
            'seconds': None if resumed else alone.timing['parts'][stage],
        }

    yield report
    # A stage does the same to an image alone as in the cascade: with this seed most of the cascade has been
    # run. Stages that the reference has no flags of get the images that are left.
    left, after, seconds = alone.correct['clean'].copy(), {}, []
    for stage in STAGES:
        if stage in stages:
            left &= alone.correct[stage]
        else:
            standing = np.flatnonzero(left)
            rest = {**settings, 'indices': standing, 'state_path': partial / stage}
            result = evaluate(network, images[left], labels[left], attacks=stage, **rest)
            left[standing] = result.correct[stage]
        after[stage] = float(left.mean())
    runs = [float(left.mean())]
    for seed in range(1, standard.seeds):
        kept = partial / f'seed{seed}'
        result = evaluate(
            network, images, labels, attacks='autoattack', seed=seed, state_path=kept, **settings
        )
        runs.append(result.accuracy['autoattack'])
        seconds.append(result.timing['seconds'])
    difference = _points(np.mean(runs) - flags['aa'].mean())
    report['autoattack'] = {
        'runs': runs,
        'accuracy': float(np.mean(runs)),
        'reference': float(flags['aa'].mean()),
        'difference_points': difference,
        'flags_percent': _agreement(left, flags['aa']),
        'after_each_stage': after,
        'holds': -standard.either <= difference <= standard.above,
        'seconds': seconds,
    }
    yield report


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
    flags.add_argument('--norm', choices=STANDARDS, default='linf', help='default: %(default)s')
    flags.add_argument(
        '--output',
        type=Path,
        metavar='FILE.json',
        help='default: results/conformance.json, results/conformance_l1.json in L1',
    )
    flags.add_argument('--networks', metavar='A,B', help='default: all that there are results of')
    arguments = flags.parse_args(argv)
    return terminal.run('conformance', lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> int:
    """Measures the networks that were asked for, and says whether all bounds hold by the exit status."""
    if not arguments.shared.is_dir():
        raise InputError(f'--shared={arguments.shared} is not a folder: give another, or set SI_JAX_SHARED')
    standard = STANDARDS[arguments.norm]
    output = arguments.output or Path(f'results/conformance{standard.suffix}.json')
    names = arguments.networks.split(',') if arguments.networks else standard.networks
    for name in names:
        if name not in standard.networks:
            raise unknown('network', name, standard.networks)
    # The command line would say where on this machine it ran.
    made_with = {key: value for key, value in environment().items() if key != 'command'}
    content: dict[str, Any] = {'images': standard.images, 'environments': {}, 'networks': {}}
    if output.exists():
        before = json.loads(output.read_text())
        content |= {key: before.get(key, {}) for key in ('environments', 'networks')}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        began = time.perf_counter()
        partial = output.with_name(f'{output.stem}-{name}.partial')
        for report in compare(arguments.shared, name, arguments.norm, partial):
            # Written twice: the cascade may take an hour.
            content['networks'][name], content['environments'][name] = report, made_with
            content['holds'] = all(
                row['holds'] for rows in content['networks'].values() for row in rows.values()
            )
            write_json(output, content)
        print(f'{name} ({time.perf_counter() - began:.0f} s)')
        for attack, row in report.items():
            mark = 'ok' if row['holds'] else 'OUTSIDE ITS BOUND'
            agreement = f'{row["flags_percent"]:.1f} % of flags' if 'flags_percent' in row else ''
            figures = f'{100 * row["accuracy"]:>7.2f}{100 * row["reference"]:>8.2f}'
            print(f'  {attack:<12}{figures}   {agreement:<18}{mark}')
        # In one step, as half of a state cannot be gone on with.
        shutil.rmtree(partial.rename(partial.with_suffix('.finished')))
    return terminal.OK if content['holds'] else terminal.FAILED


def _points(difference: float) -> float:
    """In percentage points, rounded to what the number of images resolves by far."""
    return round(100 * float(difference), 4)


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return round(100 * float(np.mean(ours == theirs)), 4)


if __name__ == '__main__':
    sys.exit(main())
