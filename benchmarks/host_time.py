"""What a training step costs this program itself on the host, for 1 to 8 simulated devices.

    python -m benchmarks.host_time --output=results/host_time.json

`train.py`'s own loop runs with ResNet-18's state and a step that computes nothing, with the same number of
images on each device. Two times are taken from the clock of the loop's thread, which stands still while it
waits: `own` from the return of one step to the call of the next (bookkeeping, fetching metrics every ten
steps), and `dispatch` inside the call, where JAX lets go of the last step's arrays and hands this one to the
devices. What the devices compute, and what they say to each other, is in neither. Each number of devices runs
in processes of its own, in turn with the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.spread import spread
from si_jax.runtime.devices import compile_step
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json
from si_jax.training import loop as training
from si_jax.training import recipes
from si_jax.training.setup import Setup
from si_jax.training.update import metric_names

IMAGES = 8  # a device
STEPS = 20  # an epoch


def measure(epochs: int) -> dict[str, Any]:
    """The times of a step on this process's devices, in milliseconds."""
    devices = jax.device_count()
    config = recipes.paper('trades', si=True, dataset='cifar10', arch='resnet18')
    config.update_from_flattened_dict(
        {
            'data.name': 'digits',
            'model.normalise': 'none',
            'model.width': 2,
            'batch_size': IMAGES * devices,
            'data.limit': IMAGES * devices * STEPS,
            'data.validation': 0,
            'epochs': epochs,
            'logging.every_steps': 10,
            'logging.tensorboard': False,
        }
    )
    calls: list[tuple[float, float]] = []

    def compile_nothing(ready: Setup) -> Any:
        names = len(metric_names(ready.defense))

        def nothing(state: Any, carry: Any, data: Any, rows: Any, key: Any) -> Any:
            del data, rows, key
            return state._replace(step=state.step + 1), carry, jnp.zeros(names)

        step = compile_step(nothing)
        given: list[Any] = []

        def timed(*arguments: Any) -> Any:
            began = time.thread_time()
            given[:] = arguments  # and so lets go of those of the last step, which are donated
            done = step(*arguments)
            calls.append((began, time.thread_time()))
            return done

        return timed

    training.compile_train_step = compile_nothing
    with tempfile.TemporaryDirectory() as folder:
        state = training.run(config, folder)
    began, ended = 1000 * np.array(calls).T
    inside = np.arange(1, len(began)) % STEPS != 0  # not over the end of an epoch
    inside[: STEPS - 1] = False  # nor in the first one, which compiles
    # Averages over an epoch, as metrics are fetched in some steps only.
    own = (began[1:] - ended[:-1])[inside].reshape(-1, STEPS - 1).mean(axis=1)
    dispatch = (ended - began)[1:][inside].reshape(-1, STEPS - 1).mean(axis=1)
    return {
        'devices': devices,
        'images_a_device': IMAGES,
        'arrays': len(jax.tree.leaves(state)),
        'own_ms': own.tolist(),
        'dispatch_ms': dispatch.tolist(),
    }


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--devices', default='1,2,4,8', help='default: %(default)s')
    flags.add_argument('--epochs', type=int, default=7, help='of 20 steps each (default: %(default)s)')
    flags.add_argument(
        '--rounds', type=int, default=3, help='over all of them, in turn (default: %(default)s)'
    )
    flags.add_argument('--output', help='JSON file')
    flags.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.here:
        print(json.dumps(measure(given.epochs)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {}
    for devices in given.devices.split(',') * given.rounds:
        command = [sys.executable, '-m', 'benchmarks.host_time', '--here', f'--epochs={given.epochs}']
        simulated = {
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
            'NPROC': '16',  # threads for the devices, however many cores there are
        }
        done = subprocess.run(
            command, env=os.environ | simulated, stdout=subprocess.PIPE, text=True, check=True
        )
        found.setdefault(devices, []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for devices, runs in found.items():
        times = {key: spread([one for run in runs for one in run[key]]) for key in ('own_ms', 'dispatch_ms')}
        rows.append({**runs[0], **times, 'epochs': sum(len(run['own_ms']) for run in runs)})
        own, dispatch = times['own_ms'], times['dispatch_ms']
        print(f'{devices} devices: own {own["median"]:.3f} ms, dispatch {dispatch["median"]:.3f} ms')
    if given.output:
        made_with = {
            key: value for key, value in environment().items() if key not in ('command', 'device_count')
        }
        write_json(Path(given.output), {'rows': rows, 'environment': made_with})
    return 0


if __name__ == '__main__':
    sys.exit(main())
