"""Standard AutoAttack, here and in the public PyTorch code, on the same networks and images in the same run.

    python -m benchmarks.autoattack --reference=FOLDER --output=results/autoattack_speed.json

FOLDER holds a checkout of the repository fra31/auto-attack; networks and images come from `--shared`. The two
take turns, so that a machine that slows down slows both; quoted are the median of the turns and the ratio of
each. Ours is the whole call of `si_jax.evaluate`, checks and verification included: once with an empty
compilation cache (cold), then with what that call left in it, as later calls of evaluate.py have it (warm).
`--attacks` measures single stages, each alone on all correctly classified images. `--norm=l1` measures the
cascade in L1, at the radius of `benchmarks.conformance`.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.conformance import STANDARDS, problem
from benchmarks.hotspots import matrix_rate
from benchmarks.spread import spread
from si_jax import evaluate
from si_jax.attacks.presets import PRESETS
from si_jax.cost import flops
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

F = torch.nn.functional
NETWORKS = ('cnn_a_adv4', 'kw_base')
STAGES = tuple(stage.attack for stage in PRESETS['autoattack'])


class TorchNetwork(torch.nn.Module):
    """A network of ../shared/checkpoints from the arrays of its npz file; images [B, 3, 32, 32] in [0, 1]."""

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        for key, array in weights.items():
            self.register_buffer(key.replace('.', '_'), torch.from_numpy(np.asarray(array, np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean.reshape(1, 3, 1, 1)) / self.std.reshape(1, 3, 1, 1)
        residual = hasattr(self, 'conv1_weight')
        if residual:
            x = F.relu(self._convolve(x, 'conv1', 2, 1))
            for block in ('layer1_0', 'layer1_1', 'layer2_0', 'layer2_1'):
                if hasattr(self, f'{block}_conv1_weight'):
                    x = self._block(x, block)
        else:
            x = F.relu(self._convolve(F.relu(self._convolve(x, '0', 2, 1)), '2', 2, 1))
        for number, layer in enumerate(('linear1', 'linear2') if residual else ('5', '7')):
            x = F.linear(
                F.relu(x) if number else x.flatten(1),
                self.get_buffer(f'{layer}_weight'),
                self.get_buffer(f'{layer}_bias'),
            )
        return x

    def _convolve(self, x: torch.Tensor, layer: str, stride: int, padding: int) -> torch.Tensor:
        kernel, bias = self.get_buffer(f'{layer}_weight'), self.get_buffer(f'{layer}_bias')
        return F.conv2d(x, kernel, bias, stride, padding)

    def _block(self, x: torch.Tensor, block: str) -> torch.Tensor:
        stride = 2 if block.endswith('0') else 1
        y = F.relu(self._convolve(x, f'{block}_conv1', stride, 1))
        y = self._convolve(y, f'{block}_conv2', 1, 1)
        if hasattr(self, f'{block}_shortcut_0_weight'):
            x = self._convolve(x, f'{block}_shortcut_0', stride, 0)
        return F.relu(x + y)


def measure(
    name: str, attacks: str, shared: Path, reference: Any, count: int, turns: int, norm: str = 'linf'
) -> dict[str, Any]:
    """Times both sides on one network.

    Args:
        name: Of the network.
        attacks: `autoattack`, or one of its stages.
        shared: The folder with `checkpoints`, `data` and `reference`.
        reference: The module `autoattack` of the public code.
        count: Images.
        turns: How often each side runs, after a first, cold run of ours.
        norm: A row of `benchmarks.conformance.STANDARDS`.

    Returns:
        All runs, and medians and ratios with their spread.
    """
    network, images, labels, eps = problem(shared, name, count)
    eps = STANDARDS[norm].eps or eps
    theirs = TorchNetwork(dict(np.load(shared / 'checkpoints' / f'{name}.npz'))).eval()
    x, y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
    with torch.no_grad():
        difference = np.abs(theirs(x[:64]).numpy() - np.asarray(network(images[:64])[0])).max()
    assert difference < 1e-3, f'the two forms of {name} differ by {difference}'

    def run_ours() -> dict[str, Any]:
        began = time.process_time()
        result = evaluate(network, images, labels, attacks=attacks, eps=eps, norm=norm)
        parts = result.timing['parts']
        passes = {
            stage['attack']: stage['forward_passes'] + stage['backward_passes']
            for stage in result.attacks[attacks].stages
        }
        return {
            'accuracy': result.accuracy[attacks],
            'seconds': result.timing['seconds'],
            'cpu_seconds': time.process_time() - began,
            'stages': {stage: parts[key] for stage in STAGES if (key := f'{attacks}, {stage}') in parts},
            'passes': passes,
        }

    def run_theirs() -> dict[str, Any]:
        settings: dict[str, Any] = {'version': 'standard'}
        if attacks != 'autoattack':
            settings = {'version': 'custom', 'attacks_to_run': [attacks]}
        log = tempfile.NamedTemporaryFile('r', suffix='.txt')
        attack = reference.AutoAttack(
            theirs, norm=norm.capitalize(), eps=eps, seed=0, device='cpu', log_path=log.name, **settings
        )
        if attacks != 'autoattack':  # a custom run would make five restarts
            attack.apgd.n_restarts = 1
        began, cpu = time.perf_counter(), time.process_time()
        with open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing):
            found = attack.run_standard_evaluation(x, y, bs=count)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        with log:
            ends = re.findall(r'robust accuracy after (\S+): .*\(total time ([\d.]+) s\)', log.read())
        starts = [0.0, *(float(end) for _, end in ends)]
        stages = {
            stage.lower(): float(end) - start for (stage, end), start in zip(ends, starts, strict=False)
        }
        with torch.no_grad():
            accuracy = float((theirs(found).argmax(1) == y).float().mean())
        return {'accuracy': accuracy, 'seconds': seconds, 'cpu_seconds': cpu, 'stages': stages}

    forward = flops.count(lambda x: network(x)[0], images[:1])
    cold = run_ours()
    runs: dict[str, list[dict[str, Any]]] = {'si_jax': [], 'reference': []}
    for _ in range(turns):
        runs['si_jax'].append(run_ours())
        runs['reference'].append(run_theirs())

    def figures(of: Any) -> dict[str, Any]:
        seconds = {who: [of(run) for run in several] for who, several in runs.items()}
        ratios = [b / a for a, b in zip(seconds['si_jax'], seconds['reference'], strict=True)]
        return {
            **{who: spread(several) for who, several in seconds.items()},
            'cold': of(cold),
            'times_faster': spread(ratios),
            'times_faster_cold': spread([b / of(cold) for b in seconds['reference']]),
        }

    rows = {attacks: figures(lambda run: run['seconds'])}
    for stage in cold['stages']:
        rows[stage] = figures(lambda run, stage=stage: run['stages'][stage])
        needed = forward * cold['passes'][stage]
        rows[stage]['flops_a_second'] = spread([needed / run['stages'][stage] for run in runs['si_jax']])
    return {
        'network': name,
        'images': count,
        'norm': norm,
        'eps': eps,
        'seconds': rows,
        'forward_flops': forward,
        'matrix_flops_a_second': matrix_rate(),
        'runs': {'cold': cold, **runs},
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--reference', type=Path, required=True, help='a checkout of fra31/auto-attack')
    flags.add_argument('--shared', type=Path, default=Path(os.environ.get('SI_JAX_SHARED', '../shared')))
    flags.add_argument('--networks', default=','.join(NETWORKS), help='default: %(default)s')
    flags.add_argument('--attacks', default='autoattack', help='or stages of it (default: %(default)s)')
    flags.add_argument('--norm', choices=STANDARDS, default='linf', help='default: %(default)s')
    flags.add_argument('--images', type=int, default=1000)
    flags.add_argument('--turns', type=int, default=3)
    flags.add_argument('--output', help='JSON file')
    given = flags.parse_args()
    if given.norm == 'l1' and given.attacks != 'autoattack':
        flags.error('in L1 the stages alone have other settings in that code: leave --attacks out')
    # As many threads for PyTorch as there are cores for this process.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sys.path.insert(0, str(given.reference))
    import autoattack

    rows = []
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update('jax_compilation_cache_dir', cache)
        compilation_cache.enable()
        for name in given.networks.split(','):
            for attacks in given.attacks.split(','):
                row = measure(name, attacks, given.shared, autoattack, given.images, given.turns, given.norm)
                rows.append(row)
                print(f'{name:<12}{"si_jax":>10}{"reference":>11}{"cold":>8}  times faster', flush=True)
                for part, seconds in row['seconds'].items():
                    ratio = seconds['times_faster']
                    print(
                        f'  {part:<10}{seconds["si_jax"]["median"]:>10.1f}'
                        f'{seconds["reference"]["median"]:>11.1f}{seconds["cold"]:>8.1f}  '
                        f'{ratio["median"]:.2f} ({ratio["min"]:.2f} to {ratio["max"]:.2f})',
                        flush=True,
                    )
    if given.output:
        made_with = {key: value for key, value in environment().items() if key != 'command'}
        peer = {
            'reference': 'fra31/auto-attack',
            'torch': torch.__version__,
            'threads': torch.get_num_threads(),
        }
        write_json(given.output, {'rows': rows, 'peer': peer, 'environment': made_with})


if __name__ == '__main__':
    main()
