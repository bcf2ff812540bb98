"""Several processes on this machine, joined by jax.distributed: they do what one process does."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from configs import quickstart
from si_jax import InputError
from si_jax.runtime import processes, watchdog
from si_jax.training import loop as running
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.metrics import read_metrics
from tests.helpers import multiprocess, pods_worker
from tests.helpers.own_data import write_npz
from tests.training.test_run_methods import digits, freeat

ROOT = multiprocess.ROOT

# Of processes and devices of each: SI_JAX_SHAPES=1x4,2x2,4x1 tests more of them, and every kind of loss.
SHAPES = [tuple(map(int, shape.split('x'))) for shape in os.environ.get('SI_JAX_SHAPES', '2x2').split(',')]
LOSSES = [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)]
if 'SI_JAX_SHAPES' in os.environ:
    LOSSES += [(signal.SIGKILL, 1), (signal.SIGSTOP, 0), (None, 1)]


def worker(count, devices, what, folder, *flags):
    return multiprocess.start(count, devices, '-m', 'tests.helpers.pods_worker', what, folder, *flags)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_processes_train_and_evaluate_as_one_does(tmp_path, shape):
    started = worker(*shape, 'together', tmp_path)
    (tmp_path / 'one').mkdir()
    expected = pods_worker.train(freeat(**{'threat.eps': 0.2})) | pods_worker.flags(tmp_path / 'one')
    ended = multiprocess.finish(started)
    assert {status for status, *_ in ended} == {0}, [err[-2000:] for *_, err in ended]
    with np.load(tmp_path / 'arrays.npz') as stored:
        found = dict(stored)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith('['):  # 20 steps in float64; this process has eight devices
            scale = max(1e-3, np.abs(value).max(initial=0))
            assert np.abs(found[name] - value).max(initial=0) <= 1e-9 * scale, name
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert 0 < np.mean(expected['correct autoattack']) < np.mean(expected['correct clean'])
    # One process goes on with half of what they had finished.
    units = sorted(path for path in (tmp_path / 'state').glob('*.npz') if path.stem != 'clean')
    for path in units[::2]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in units[1::2]}
    alone = pods_worker.flags(tmp_path)
    assert kept == {path: path.stat().st_mtime_ns for path in kept} and all(map(Path.exists, units))
    for name, value in alone.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for _, out, _ in ended if shape[0] > 1 else ():
        assert 'process 1 is not like process 0: config.seed is 1 instead of 0' in out
        assert "process 1 is not like process 0: data is 'cd' instead of 'ab'" in out
        assert 'data.dir=here is not there' in out


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_each_process_reads_its_own_rows_of_what_one_would_be_handed(tmp_path, shape):
    write_npz(tmp_path, (4, 4, 1))
    started = worker(*shape, 'streamed', tmp_path)
    expected = pods_worker.batches(tmp_path)
    ended = multiprocess.finish(started)
    assert {status for status, *_ in ended} == {0}, [err[-2000:] for *_, err in ended]
    with np.load(tmp_path / 'batches.npz') as found:
        assert set(found) == set(expected) and len(expected) == 12
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


# Starts two tasks as srun does, each with the variables of SLURM that JAX reads.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID={job} SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" >{folder}/$rank.log & tasks+=($!)
done
for task in "${{tasks[@]}}"; do wait "$task" || exit $?; done
"""


def test_the_slurm_script_trains_as_one_process_does(tmp_path):
    small = {'data.limit': 8, 'data.validation': 7, 'batch_size': 8, 'model.width': 2, 'epochs': 2}
    small |= {'attack.steps': 1, 'evaluation.steps': 1, 'logging.tensorboard': False}
    job = random.randrange(10**6)  # JAX takes the port from it
    environment = multiprocess.with_tools(tmp_path, srun=SRUN.format(job=job, folder=tmp_path))
    environment['WORKDIR'] = str(tmp_path / 'two')
    script = subprocess.Popen(
        ['bash', 'launch/slurm.sbatch', *(f'--config.{name}={value}' for name, value in small.items())],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.run(digits(quickstart.get_config(), **small), str(tmp_path / 'one'))
    _, err = script.communicate(timeout=240)
    assert script.returncode == 0, err[-3000:]
    logs = [(tmp_path / f'{rank}.log').read_text() for rank in range(2)]
    assert 'epoch 2/2' in logs[0] and 'epoch' not in logs[1]
    one, two = (Checkpoints(tmp_path / name / 'checkpoints') for name in ('one', 'two'))
    assert one.steps() == two.steps() == [1, 2]
    expected, found = one.restore(1), two.restore(1)
    pairs = zip(pods_leaves(expected.state), pods_leaves(found.state), strict=True)
    for (path, value), (other, array) in pairs:
        assert path == other
        np.testing.assert_allclose(
            array, value, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(value).max(initial=0))
        )
    assert expected.metric == found.metric
    lines = [list(read_metrics(tmp_path / name / 'metrics.jsonl')) for name in ('one', 'two')]
    assert [[line['step'] for line in run] for run in lines] == [[1, 2], [1, 2]]
    for name, value in lines[0][0].items():
        if name != 'images_per_second' and not isinstance(value, dict):
            assert lines[1][0][name] == (
                value if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)
            ), name
    assert json.loads((tmp_path / 'two/environment.json').read_text())['process_count'] == 2
    # Another number of processes and of devices goes on with it.
    state = running.run(digits(quickstart.get_config(), **small | {'epochs': 3}), str(tmp_path / 'two'))
    assert int(state.step) == 3


def pods_leaves(tree, prefix=''):
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            yield from pods_leaves(value, f'{prefix}{name}/')
        else:
            yield f'{prefix}{name}', np.asarray(value)


@pytest.mark.parametrize(('number', 'rank'), LOSSES)
def test_a_dead_or_hung_process_is_named_and_the_other_stops(tmp_path, number, rank):
    timeout, limit = (4, 12) if number else (2, 20)
    if number is None:
        (tmp_path / 'hang').touch()  # its main thread alone
    started = worker(2, 1, 'loop', tmp_path, f'--peer_timeout={timeout}')
    lost, left = started[rank], started[1 - rank]
    try:
        for _ in range(2400):
            if all((tmp_path / f'ready-{index}').exists() for index in range(2)):
                break
            assert all(process.poll() is None for process in started), left.communicate()
            time.sleep(0.05)
        if number is not None:
            os.kill(lost.pid, number)
        began = time.monotonic()
        _, err = left.communicate(timeout=60)
        seconds = time.monotonic() - began
        assert left.returncode == watchdog.STATUS, err[-2000:]
        assert f'process {rank} of 2 (on ' in err and f'Process {1 - rank} stops' in err
        assert seconds < limit, seconds
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'coordinator_address': 'node0:1234', 'num_processes': 2}, ['--process_id must be given too']),
        ({'process_id': 1}, ['--coordinator_address and --num_processes must be given too', 'SLURM']),
        ({'coordinator_address': 'node0', 'num_processes': 2, 'process_id': 0}, ["'node0'", 'node0:8476']),
        ({'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 2}, ['process_id=2', '[0, ']),
        ({'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1, 'distributed': 'off'}, ['off']),
        ({'distributed': 'on'}, ["'on'", "'auto' or 'off'"]),
        ({'peer_timeout': 0.0}, ['peer_timeout=0', '[2, ']),
    ],
)
def test_wrong_flags_are_refused_before_anything_waits(given, words):
    with pytest.raises(InputError) as error:
        processes.start(**given)
    assert all(word in str(error.value) for word in words), error.value


def test_a_machine_without_a_cluster_waits_for_nothing():
    began = time.monotonic()
    processes.start()
    processes.start(distributed='off')
    assert time.monotonic() - began < 1 and processes.count() == 1 and processes.is_first()


def test_shares_are_contiguous_and_cover_all_rows(monkeypatch):
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(processes, 'count', lambda count=count: count)
        rows = []
        for rank in range(count):
            monkeypatch.setattr(processes, 'index', lambda rank=rank: rank)
            rows += range(20)[processes.share(20)]
        assert rows == list(range(20))


def test_a_signal_to_one_of_two_finished_processes_ends_neither_early_nor_late(tmp_path):
    started = worker(2, 1, 'finish', tmp_path, '--peer_timeout=20')
    try:
        for _ in range(2400):
            if (tmp_path / 'finished-1').exists():
                break
            assert all(process.poll() is None for process in started), started[0].communicate()
            time.sleep(0.05)
        time.sleep(0.5)  # it waits for the other one, which still writes
        started[1].send_signal(signal.SIGTERM)
        began = time.monotonic()
        (tmp_path / 'go').touch()
        ended = multiprocess.finish(started, timeout=60)
        assert [status for status, *_ in ended] == [0, 0], [err[-2000:] for *_, err in ended]
        assert time.monotonic() - began < 15
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_checkpoint_is_called_whole_only_where_there_is_one(monkeypatch):
    one = watchdog._Watchdog.__new__(watchdog._Watchdog)
    one.me, one.count, one.beats, one.checkpoint = 0, 2, {1: ('', 0.0)}, None
    assert 'whole' not in one._message(1, 'is gone') and 'Start all again' in one._message(1, 'is gone')
    monkeypatch.setattr(watchdog, '_current', one)
    watchdog.at_checkpoint(8)
    assert 'The checkpoint of step 8 is whole: start all again' in one._message(1, 'is gone')
