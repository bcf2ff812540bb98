"""Standard AutoAttack, here and in the public PyTorch code, on the same networks and images in the same run.

    python -m benchmarks.autoattack --reference=FOLDER --output=results/autoattack_speed.json

FOLDER holds a checkout of the repository fra31/auto-attack. The two take turns, so that a machine that slows
down slows both; quoted are the median of the turns and the ratio of each. Ours is the whole call of
`si_jax.evaluate`, checks and verification included, with the compilation cache that evaluate.py has; what the
first call took, with an empty cache, is written down beside it.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.spread import spread
from si_jax import compilation_cache, evaluate
from si_jax.environment import environment
from si_jax.files import write_json

F = torch.nn.functional
SEQUENTIAL = ('cnn_a_adv4', 'kw_base')


class TorchNetwork(torch.nn.Module):
    """A network of ../shared/checkpoints from the arrays of its npz file; images [B, 3, 32, 32] in [0, 1]."""

    def __init__(self, name: str, weights: dict[str, np.ndarray]):
        super().__init__()
        self.sequential = name in SEQUENTIAL
        for key, array in weights.items():
            self.register_buffer(key.replace('.', '_'), torch.from_numpy(np.asarray(array, np.float32)))

    def conv(self, x: torch.Tensor, key: str, stride: int, padding: int) -> torch.Tensor:
        return F.conv2d(x, getattr(self, f'{key}_weight'), getattr(self, f'{key}_bias'), stride, padding)

    def linear(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return F.linear(x, getattr(self, f'{key}_weight'), getattr(self, f'{key}_bias'))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean.reshape(1, 3, 1, 1)) / self.std.reshape(1, 3, 1, 1)
        if self.sequential:
            x = F.relu(self.conv(F.relu(self.conv(x, '0', 2, 1)), '2', 2, 1))
            return self.linear(F.relu(self.linear(x.flatten(1), '5')), '7')
        x = F.relu(self.conv(x, 'conv1', 2, 1))
        for block in (f'layer{layer}_{number}' for layer in (1, 2) for number in (0, 1)):
            if not hasattr(self, f'{block}_conv1_weight'):
                continue
            stride = 2 if block.endswith('0') else 1
            y = F.relu(self.conv(x, f'{block}_conv1', stride, 1))
            if hasattr(self, f'{block}_shortcut_0_weight'):
                x = self.conv(x, f'{block}_shortcut_0', stride, 0)
            x = F.relu(x + self.conv(y, f'{block}_conv2', 1, 1))
        return self.linear(F.relu(self.linear(x.flatten(1), 'linear1')), 'linear2')


def measure(name: str, shared: Path, reference: Any, count: int, turns: int) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location('nets', shared / 'reference' / 'nets.py')
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    path = shared / 'checkpoints' / f'{name}.npz'
    network, _ = nets.load(path, name)
    theirs = TorchNetwork(name, dict(np.load(path))).eval()
    eps = nets.EPS[name] / 255
    data = np.load(shared / 'data' / 'cifar10_test.npz')
    images = (data['images'][:count] / 255).astype(np.float32)
    labels = data['labels'][:count].astype(np.int32)
    x, y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
    with torch.no_grad():
        difference = np.abs(theirs(x[:64]).numpy() - np.asarray(network(images[:64])[0])).max()
    assert difference < 1e-3, f'the two forms of {name} differ by {difference}'

    def run_ours() -> dict[str, float]:
        result = evaluate(network, images, labels, attacks='autoattack', eps=eps)
        parts = {key.rpartition(' ')[2]: value for key, value in result.timing['parts'].items() if ',' in key}
        return {'accuracy': result.accuracy['autoattack'], 'seconds': result.timing['seconds'], **parts}

    def run_theirs() -> dict[str, float]:
        attack = reference.AutoAttack(theirs, norm='Linf', eps=eps, version='standard', seed=0, device='cpu')
        began = time.perf_counter()
        with open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing):
            found = attack.run_standard_evaluation(x, y, bs=min(count, 1000))
        seconds = time.perf_counter() - began
        with torch.no_grad():
            return {'accuracy': float((theirs(found).argmax(1) == y).float().mean()), 'seconds': seconds}

    cold = run_ours()
    runs: dict[str, list[dict[str, float]]] = {'si_jax': [], 'reference': []}
    for _ in range(turns):
        runs['si_jax'].append(run_ours())
        runs['reference'].append(run_theirs())
    seconds = {who: [run['seconds'] for run in several] for who, several in runs.items()}
    ratios = [b / a for a, b in zip(seconds['si_jax'], seconds['reference'], strict=True)]
    return {
        'network': name,
        'images': count,
        'cold_seconds': cold['seconds'],
        'runs': runs,
        'seconds': {who: spread(several) for who, several in seconds.items()},
        'times_faster': spread(ratios),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--reference', type=Path, required=True, help='a checkout of fra31/auto-attack')
    flags.add_argument('--shared', type=Path, default=Path(os.environ.get('SI_JAX_SHARED', '../shared')))
    flags.add_argument('--networks', default=','.join(SEQUENTIAL), help='default: %(default)s')
    flags.add_argument('--images', type=int, default=1000)
    flags.add_argument('--turns', type=int, default=3)
    flags.add_argument('--output', help='JSON file')
    given = flags.parse_args()
    sys.path.insert(0, str(given.reference))
    import autoattack

    rows = []
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update('jax_compilation_cache_dir', cache)
        compilation_cache.enable()
        for name in given.networks.split(','):
            row = measure(name, given.shared, autoattack, given.images, given.turns)
            rows.append(row)
            ours, theirs, ratio = row['seconds']['si_jax'], row['seconds']['reference'], row['times_faster']
            print(
                f'{name}: si_jax {ours["median"]:.1f} s, reference {theirs["median"]:.1f} s; '
                f'{ratio["median"]:.2f} times as fast ({ratio["min"]:.2f} to {ratio["max"]:.2f}); '
                f'first call {row["cold_seconds"]:.1f} s',
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
