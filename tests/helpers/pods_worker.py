"""What the processes of tests/runtime/test_processes.py run.

python -m tests.helpers.pods_worker WHAT FOLDER --coordinator_address=... --num_processes=... --process_id=...

streamed    batches that are read from a file
together    twenty steps in float64 and an evaluation, as that file runs them in one process
loop        a small collective, again and again, until the process is stopped
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from si_jax import InputError, evaluate
from si_jax.evaluation import network as program
from si_jax.runtime import agreement, devices, processes, watchdog
from si_jax.runtime.signals import InterruptGuard
from si_jax.training import recipes, setup
from si_jax.training.state import TrainState
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

STEPS = 20


def train(config) -> dict[str, np.ndarray]:
    """The leaves of state and carry after some steps in float64, the last batch of a pass is padded."""
    ready = setup.setup(config)
    state = jax.tree.map(
        lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, setup.initial_state(ready)
    )
    state = devices.replicate(TrainState(**state._asdict()))
    carry = devices.shard_rows(setup.initial_carry(ready))
    feed, step = setup.feed_of(ready), setup.compile_train_step(ready)
    for number in range(STEPS):
        state, carry, metrics = step(state, carry, *feed(number))
    leaves = jax.tree_util.tree_leaves_with_path((state, devices.join_rows(carry), metrics))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def flags(folder: Path) -> dict[str, np.ndarray]:
    """The flags of each image under attacks of every kind, and the other arrays of the result."""
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        patch.setattr(program, 'GROUP', {'cpu': 16})  # images in a unit
        network = net(dtype='float64')
        images, labels = images_and_labels(40, network, dtype='float64')
        result = evaluate(
            network,
            images,
            labels,
            attacks='pgd,pgd-cal,autoattack',
            eps=0.04,
            steps=3,
            restarts=2,
            batch_size=8,
            state_path=folder / 'state',
            return_images=True,
        )
    arrays = {f'correct {name}': value for name, value in result.correct.items()}
    arrays |= {f'images {name}': value for name, value in result.images.items()}
    return arrays | {'queries': result.attacks['autoattack'].queries}


def batches(folder: Path) -> dict[str, np.ndarray]:
    """Streamed batches of a data set in a folder, with the images that each process reads of them."""
    config = recipes.paper('standard', dataset=f'npz:{folder}', arch='small_cnn')
    config.data.update(stream='always', validation=0)
    config.batch_size = 8
    found = {}
    with contextlib.closing(setup.feed_of(setup.setup(config))) as feed:
        for number in (0, 2, 3):
            names = 'images', 'labels', 'indices', 'mask'
            values = devices.join_rows(feed(number)[1])
            found |= {f'batch {number} {name}': one for name, one in zip(names, values, strict=True)}
    return found


def streamed(folder: Path) -> None:
    found = batches(folder)
    if processes.is_first():
        np.savez(folder / 'batches.npz', **found)


def together(folder: Path) -> None:
    from tests.training.test_run_methods import freeat

    arrays = train(freeat(**{'threat.eps': 0.2}))
    arrays |= flags(folder)
    again = flags(folder)  # all of it from the state
    assert all(np.array_equal(again[name], arrays[name]) for name in again)
    if processes.is_first():
        np.savez(folder / 'arrays.npz', **arrays)
    if processes.count() == 1:
        return
    # They find out who is not like the others, and stop together.
    for described in (
        {'config': {'seed': processes.index()}},
        {'data': 'ab' if processes.is_first() else 'cd'},
    ):
        with pytest.raises(InputError) as error:
            agreement.check_identical(described)
        print(error.value)

    def refuse_in_one() -> None:
        if processes.index() == 1:
            raise InputError('data.dir=here is not there')

    with pytest.raises(InputError) as error:
        processes.agree_on_errors(refuse_in_one)
    print(error.value)


def loop(folder: Path) -> None:
    total = devices.compile_step(
        lambda state, carry, data, batch, key: (state, carry, jax.lax.psum(batch, devices.AXIS))
    )
    rank = devices.from_every_process(np.ones((), np.float32))
    for number in range(10_000):
        watchdog.at_step(number)
        assert float(total((), (), (), rank, ())[2]) == jax.device_count()
        if number == 20:
            (folder / f'ready-{processes.index()}').touch()
        if number == 40 and processes.index() == 1 and (folder / 'hang').exists():
            time.sleep(1000)
        time.sleep(0.02)


def finish(folder: Path) -> None:
    """Ends as a command does, the first process when it is told to."""

    def command() -> int:
        with InterruptGuard():  # which sets the handlers that were there before it, but for JAX's
            pass
        if processes.is_first():
            while not (folder / 'go').exists():
                time.sleep(0.05)
        return 0

    processes.run('finish', command)
    (folder / f'finished-{processes.index()}').touch()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('what')
    parser.add_argument('folder', type=Path)
    for name, flag in processes.FLAGS.items():
        parser.add_argument(f'--{name}', type=flag.type, default=flag.default)
    arguments = vars(parser.parse_args())
    what, folder = arguments.pop('what'), arguments.pop('folder')
    processes.start(**arguments)
    try:
        {'streamed': streamed, 'together': together, 'loop': loop, 'finish': finish}[what](folder)
    except Exception as error:
        processes.fail(error)


if __name__ == '__main__':
    jax.config.update('jax_enable_x64', True)
    jax.config.update('jax_threefry_partitionable', True)
    sys.exit(main())
