"""What a screen costs and what it misses: sequences of attacks beside AutoAttack, on published networks.

    python -m benchmarks.screens --shared=../shared --output=results/screens.json --plot=docs/screens.png

An attack does the same to an image whether it runs alone or after others, so each is run once on all
correctly classified images; from the flags and the forward passes by image the cost and the accuracy of every
sequence follow. `fast` is run too, as a check of that. The accuracy of AutoAttack is that of the reference
results, which fra31/auto-attack computed. Its cost is what this code's APGD-CE and APGD-T spend, and 1,800
forward passes of FAB-T and 5,001 of Square on each image that withstands all: a little less than it is.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from benchmarks.losses import NETWORKS, published
from si_jax import Result, evaluate
from si_jax.attacks.searches import TARGETS
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

PASSES = 101  # of one run of APGD on an image that withstands it
REST = 9 * 100 * 2 + 5001  # of FAB-T and Square
FIRST = ('apgd-ce', 'apgd-cal', 'pgd-gap', 'pgd-hybrid-20')
FAST = 'pgd-hybrid-20 + apgd-cal + apgd-t, 2'
LIMIT, SHARE = 0.1, 12  # points above AutoAttack, and its forward passes over those of a screen


class Step(NamedTuple):
    """An attack in a sequence, on all images: whom it breaks [N], and the forward passes on each [N]."""

    broken: np.ndarray
    passes: np.ndarray


def steps_of(result: Result, steps: int) -> dict[str, Step]:
    """The attacks of a result as steps of sequences; apgd-t as one for each of its targets."""
    clean = result.clean
    found = {}
    for name in FIRST:
        record = result.attacks[name]
        passes = np.full(len(clean), steps) if record.queries is None else record.queries
        found[name] = Step(clean & ~result.correct[name], passes)
    queries = result.attacks['apgd-t'].queries
    broken = clean & ~result.correct['apgd-t']
    for target in range(TARGETS):
        spent = np.clip(queries - target * PASSES, 0, PASSES)
        last = -(-queries // PASSES) - 1  # the target at which it ended
        found[f'target {target + 1}'] = Step(broken & (last == target), spent)
    return found


def sequences() -> dict[str, tuple[str, ...]]:
    """The candidates: one attack or none, and then the first targets of apgd-t."""
    found = {}
    for first in ((), *((name,) for name in FIRST), ('pgd-hybrid-20', 'apgd-cal'), ('pgd-gap', 'apgd-cal')):
        for targets in range(TARGETS + 1):
            chosen = (*first, *(f'target {number + 1}' for number in range(targets)))
            if chosen:
                label = ' + '.join((*first, *([f'apgd-t, {targets}'] if targets else [])))
                found[label] = chosen
    return found


def play(chosen: tuple[str, ...], steps: dict[str, Step], clean: np.ndarray) -> tuple[float, int]:
    """Accuracy in % and forward passes of a sequence."""
    left, passes = clean.copy(), 0
    for name in chosen:
        passes += int(steps[name].passes[left].sum())
        left &= ~steps[name].broken
    return 100 * float(left.mean()), passes


def measure(shared: Path, name: str, images: int, seeds: int) -> dict[str, Any]:
    """All sequences on one network, with several seeds."""
    network, pixels, labels, eps = published(shared, name, images)
    flags = np.load(shared / 'reference' / f'{name}.npz')
    reference = 100 * float(flags['aa'][:images].mean())
    played: dict[str, list[tuple[float, int]]] = {label: [] for label in sequences()}
    fast, budgets = [], []
    for seed in range(seeds):
        result = evaluate(network, pixels, labels, attacks=(*FIRST, 'apgd-t', 'fast'), eps=eps, seed=seed)
        steps = steps_of(result, 20)
        for label, chosen in sequences().items():
            played[label].append(play(chosen, steps, result.clean))
        apgd = played[f'apgd-ce + apgd-t, {TARGETS}'][-1][1]
        budgets.append(apgd + REST * int(flags['aa'][:images].sum()))
        spent = sum(stage['forward_passes'] for stage in result.attacks['fast'].stages)
        fast.append({'accuracy': round(100 * result.accuracy['fast'], 4), 'forward_passes': spent})
    budget = float(np.mean(budgets))
    return {
        'images': images,
        'eps': eps,
        'seeds': seeds,
        'autoattack': {'accuracy': round(reference, 4), 'forward_passes': budgets},
        'fast': fast,
        'sequences': {
            label: {
                'accuracy': [round(accuracy, 4) for accuracy, _ in runs],
                'forward_passes': [passes for _, passes in runs],
                'above_autoattack': round(float(np.mean([a for a, _ in runs])) - reference, 4),
                'share': round(float(np.mean([p for _, p in runs])) / budget, 5),
            }
            for label, runs in played.items()
        },
        'environment': environment(),
    }


def frontier(sequences: dict[str, Any]) -> list[str]:
    """The sequences that no other beats in both accuracy and cost, cheapest first."""
    order = sorted(
        sequences, key=lambda label: (sequences[label]['share'], sequences[label]['above_autoattack'])
    )
    best, found = np.inf, []
    for label in order:
        if sequences[label]['above_autoattack'] < best - 1e-9:
            best = sequences[label]['above_autoattack']
            found.append(label)
    return found


def plot(networks: dict[str, Any], path: Path) -> None:
    """Cost against accuracy, one panel a network; the worst sequences are above it."""
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(networks), figsize=(4 * len(networks), 3.4), squeeze=False)
    for axis, (name, network) in zip(axes[0], networks.items(), strict=True):
        runs = network['sequences']
        axis.plot(
            [runs[label]['share'] for label in runs],
            [runs[label]['above_autoattack'] for label in runs],
            '.',
            color='0.75',
            label='sequences',
        )
        best = [runs[label] for label in frontier(runs)]
        axis.plot(
            [one['share'] for one in best], [one['above_autoattack'] for one in best], 'o-', label='frontier'
        )
        fast = runs[FAST]
        axis.plot(fast['share'], fast['above_autoattack'], 's', color='C3', label='fast')
        axis.axvline(1 / SHARE, color='0.5', linewidth=0.8)
        axis.axhline(LIMIT, color='0.5', linewidth=0.8)
        axis.set(xscale='log', ylim=(-0.05, 1.0), title=name)
        axis.set_xlabel("share of AutoAttack's forward passes")
    axes[0][0].set_ylabel('points above AutoAttack')
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--shared', required=True, help='folder with checkpoints, data and reference')
    flags.add_argument('--networks', default=','.join(NETWORKS), help='with commas between')
    flags.add_argument('--images', type=int, default=1000)
    flags.add_argument('--seeds', type=int, default=3)
    flags.add_argument('--output', required=True, help='JSON file; networks in it that are not named stay')
    flags.add_argument('--plot', help='PNG file')
    given = flags.parse_args()
    compilation_cache.enable()
    output = Path(given.output)
    networks = json.loads(output.read_text())['networks'] if output.exists() else {}
    for name in filter(None, given.networks.split(',')):
        networks[name] = measure(Path(given.shared), name, given.images, given.seeds)
        write_json(output, {'networks': networks})
        for label in frontier(networks[name]['sequences']):
            one = networks[name]['sequences'][label]
            print(f'{name}: {label}: {one["above_autoattack"]:+.2f} points at 1/{1 / one["share"]:.1f}')
    if given.plot:
        plot(networks, Path(given.plot))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
