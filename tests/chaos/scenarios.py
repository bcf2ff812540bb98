"""What is interrupted: small runs of train.py and evaluate.py on the digits, in one process or several.

A scenario knows its commands (one a process), how far a run is, what could be damaged, and what a finished
run came to. It is small but whole: attacks, several epochs and checkpoints, every part of a protocol.
"""

import abc
import dataclasses
import functools
import json
import os
import random
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from si_jax import data
from si_jax.storage import manifest
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PEER_TIMEOUT = 20  # seconds after which the processes of a run notice that one is gone

# The nearest mean of a class, |x - m|^2 less what all classes share: a classifier that needs no training.
MODEL = """
import jax.numpy as jnp
import numpy as np
from si_jax import data

def build():
    train = data.load('digits', 'train')
    images = np.asarray(train.images, np.float32).reshape(len(train.labels), -1) / 16
    means = np.stack([images[train.labels == k].mean(0) for k in range(10)])
    w, b = jnp.asarray(2 * means.T), -jnp.asarray((means**2).sum(1))
    return lambda x: x.reshape(len(x), -1) @ w + b
"""


def environment(devices: int = 1) -> dict[str, str]:
    """Of every process: the CPU, as many simulated devices, and one cache of compiled programs for all."""
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'compiled'))
    # Unoptimised code is there sooner. Both of the runs that are compared have it.
    flags = (
        f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 '
        '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
    )
    settings = {
        'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_X64': '0', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT),
        'PYTHONUNBUFFERED': '1', 'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
    kept.pop('NPROC', None)
    return kept | settings


@dataclasses.dataclass(frozen=True)
class Scenario(abc.ABC):
    """A command that is interrupted.

    Attributes:
        processes: How many run it together.
    """

    processes: int

    kind = ''

    @property
    def name(self) -> str:
        return f'{self.kind}, {self.processes} process{"es" if self.processes > 1 else ""}'

    @abc.abstractmethod
    def arguments(self, folder: Path) -> list[str]:
        """The program and its flags, but those that join processes."""

    def commands(self, folder: Path) -> list[list[str]]:
        """One command a process."""
        command = [sys.executable, *self.arguments(folder)]
        if self.processes == 1:
            return [command]
        with socket.socket() as free:
            free.bind(('localhost', 0))
            address = f'--coordinator_address=localhost:{free.getsockname()[1]}'
        joined = [*command, address, f'--num_processes={self.processes}', f'--peer_timeout={PEER_TIMEOUT}']
        return [[*joined, f'--process_id={rank}'] for rank in range(self.processes)]

    @abc.abstractmethod
    def progress(self, folder: Path) -> int:
        """How far a run is, in whatever unit; it grows as the run writes."""

    @abc.abstractmethod
    def whole(self) -> int:
        """About how far a finished run is."""

    def kept(self, folder: Path) -> int | None:
        """The step that the next start must go on from; None where nothing is said of it."""
        return None

    def said(self, output: str) -> int | None:
        """The step that a start said it goes on from."""
        return None

    def replaceable(self, folder: Path) -> Path | None:
        """A folder that a run holds, and that it must not write into once another lies in its place."""
        return None

    def rename(self, folder: Path) -> str:
        """Renames what the next start would take, where another serves in its place; how, '' for nothing."""
        return ''

    def exchange(self, folder: Path) -> Callable[[], object] | None:
        """Changes what the run reads, so that the next start must refuse it; gives what puts it back."""
        return None

    @abc.abstractmethod
    def damageable(self, folder: Path) -> list[Path]:
        """Files that may be damaged without loss: others serve in their place."""

    @abc.abstractmethod
    def outcome(self, folder: Path) -> dict[str, Any]:
        """What a finished run came to, by name; everything in it must be equal."""


@dataclasses.dataclass(frozen=True)
class Training(Scenario):
    """train.py: 3 epochs with the multi-step attack, a checkpoint every second step.

    An epoch has 8 steps, the last of them padded; 4 steps, padded likewise, where each waits for others.
    """

    kind = 'training'

    def arguments(self, folder: Path) -> list[str]:
        images = 60 if self.processes == 1 else 28
        if not (folder / 'data').exists():
            (folder / 'data').mkdir()
            digits = data.load('digits', 'train')
            arrays = {'images': digits.images[:100], 'labels': digits.labels[:100]}
            np.savez(folder / 'data' / 'digits_train.npz', **arrays)
        fields = {
            'epochs': 3, 'batch_size': 8, 'data.limit': images, 'data.validation': 16, 'attack.steps': 2,
            'evaluation.steps': 2, 'model.width': 4, 'checkpoint.every_steps': 2, 'logging.every_steps': 2,
            'logging.tensorboard': False, 'data.dir': folder / 'data',
        }  # fmt: skip
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        return ['train.py', '--config=configs/quickstart.py', *flags, f'--workdir={folder / "run"}']

    def progress(self, folder: Path) -> int:
        names = [path.name for path in _entries(folder / 'run' / 'checkpoints')]
        return max((int(found[0]) for name in names if (found := re.match(r'\d+', name))), default=0)

    def whole(self) -> int:
        return 24 if self.processes == 1 else 12

    def kept(self, folder: Path) -> int | None:
        return Checkpoints(folder / 'run' / 'checkpoints').latest_step

    def said(self, output: str) -> int | None:
        found = re.search(r'resuming .* at step (\d+)', output)
        return int(found[1]) if found else None

    def replaceable(self, folder: Path) -> Path | None:
        return folder / 'run' if (folder / 'run' / '.lock').exists() else None

    def rename(self, folder: Path) -> str:
        checkpoints = folder / 'run' / 'checkpoints'
        *before, last = [None, *Checkpoints(checkpoints).steps()]
        if len(before) < 2:
            return ''
        (checkpoints / f'{last}').rename(checkpoints / f'{last + 1}')
        return f'renamed: {last} to {last + 1}'

    def exchange(self, folder: Path) -> Callable[[], object] | None:
        if self.kept(folder) is None:
            return None
        file = folder / 'data' / 'digits_train.npz'
        content, arrays = file.read_bytes(), dict(np.load(file))
        arrays['images'][0, 0, 0, 0] ^= 1
        np.savez(file, **arrays)
        return functools.partial(file.write_bytes, content)

    def damageable(self, folder: Path) -> list[Path]:
        checkpoints = folder / 'run' / 'checkpoints'
        steps = Checkpoints(checkpoints).steps()
        if len(steps) < 2:
            return []
        latest = checkpoints / str(steps[-1])
        return [path for path in latest.rglob('*') if path.is_file() and path.stat().st_size]

    def outcome(self, folder: Path) -> dict[str, Any]:
        checkpoints = Checkpoints(folder / 'run' / 'checkpoints')
        restored = checkpoints.restore('last')
        found: dict[str, Any] = dict(_arrays(restored.state, 'state'))
        found['step'], found['best step'] = restored.step, checkpoints.best_step
        found['metric'] = restored.metric
        for number, line in enumerate(read_metrics(folder / 'run' / 'metrics.jsonl')):
            line.pop('images_per_second', None)  # missing where only one step was left of an epoch
            found |= {f'metrics/{number}/{name}': value for name, value in line.items()}
        return found


@dataclasses.dataclass(frozen=True)
class Evaluation(Scenario):
    """evaluate.py: PGD with restarts and three stages of a cascade, some 30 units of work."""

    kind = 'evaluation'

    def arguments(self, folder: Path) -> list[str]:
        (folder / 'model.py').write_text(MODEL)
        flags = (
            '--dataset=digits --num_examples=64 --attacks=pgd,apgd-ce,fab-t,square --eps=0.05 --restarts=12'
        )
        return [
            'evaluate.py', f'--model={folder / "model.py"}:build', *flags.split(), '--batch_size=16',
            f'--output={folder / "result.json"}',
        ]  # fmt: skip

    def progress(self, folder: Path) -> int:
        return sum(path.suffix == '.npz' for path in _entries(folder / 'result.partial'))

    def whole(self) -> int:
        return 16

    def damageable(self, folder: Path) -> list[Path]:
        units = (path for path in _entries(folder / 'result.partial') if path.suffix == '.npz')
        return [path for path in units if path.stem != 'clean']

    def outcome(self, folder: Path) -> dict[str, Any]:
        assert not (folder / 'result.partial').exists(), 'the state of a finished evaluation is still there'
        result = json.loads((folder / 'result.json').read_text())
        result.pop('timing')
        result.pop('model')  # names the folder
        for name in ('command', 'git_commit', 'git_dirty'):  # so does this, and others may edit the source
            result['environment'].pop(name, None)
        found: dict[str, Any] = {f'result/{name}': value for name, value in result.items()}
        with np.load(folder / 'result.npz') as flags:
            return found | {f'flags/{name}': flags[name] for name in flags.files}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names under which two outcomes are not bit for bit the same."""
    return [
        name for name in sorted(one.keys() | other.keys()) if _bits(one.get(name)) != _bits(other.get(name))
    ]


def damage(file: Path, rng: random.Random) -> str:
    """Flips a bit of a file, cuts it off or removes it, and says which."""
    content, kind = file.read_bytes(), rng.choice(('flipped', 'truncated', 'missing'))
    if kind == 'missing':
        file.unlink()
    elif kind == 'truncated':
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        place = rng.randrange(len(content))
        file.write_bytes(
            content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
        )
    return f'{kind}: {"the manifest" if file.name == manifest.NAME else file.parent.name + "/" + file.name}'


def _bits(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return json.dumps(value, sort_keys=True)


def _arrays(tree: Any, name: str) -> list[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        return [found for key, value in tree.items() for found in _arrays(value, f'{name}/{key}')]
    return [(name, np.asarray(tree))]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # not there yet, or removed meanwhile
        return []
