"""train.py as users run it: resumed runs equal whole ones bit for bit, bad input ends in one clear line."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from si_jax.training.checkpoints import Checkpoints
from si_jax.training.metrics import read_metrics
from tests.chaos.forks import Forked
from tests.helpers.processes import assert_traced, compiled_as_the_suite, environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
    '--config=configs/quickstart.py',
    '--config.epochs=3',
    '--config.batch_size=8',
    '--config.data.limit=60',  # 8 steps an epoch, the last one padded
    '--config.data.validation=16',
    '--config.attack.steps=2',
    '--config.evaluation.steps=2',
    '--config.model.width=4',
    '--config.checkpoint.every_steps=3',
    '--config.logging.every_steps=2',
]


def two_devices():
    return environment(f'{compiled_as_the_suite()} --xla_force_host_platform_device_count=2')


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Starts train.py with these flags on two devices."""

    def started(*flags, program='train.py'):
        folder = tmp_path_factory.mktemp('printed')
        return Forked([sys.executable, program, *flags], folder / 'out', two_devices(), folder / 'err')

    return started


def finish(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def final(workdir):
    restored = Checkpoints(workdir / 'checkpoints').restore('last')
    lines = list(read_metrics(workdir / 'metrics.jsonl'))
    for line in lines:
        line.pop('images_per_second', None)  # missing where only one step was left of an epoch
        line.pop('time', None)
    return restored, lines


def flat(tree, prefix=''):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{name}/')
        else:
            yield f'{prefix}{name}', value


@pytest.fixture(scope='module')
def uninterrupted(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    trace = workdir.with_name('trace')
    code, out, err = finish(start(*SMALL, f'--workdir={workdir}', f'--profile={trace}'))
    assert code == 0, err
    assert 'epoch 3/3' in out and 'PGD' in out and 'GFLOP/s' in out and 'unknown chip' not in out
    assert_traced(trace)
    return workdir


def same_run(one, other):
    (a, lines_a), (b, lines_b) = final(one), final(other)
    assert a.step == b.step == 24
    arrays_a, arrays_b = dict(flat(a.state)), dict(flat(b.state))
    assert arrays_a.keys() == arrays_b.keys()
    for name, array in arrays_a.items():
        assert np.asarray(array).tobytes() == np.asarray(arrays_b[name]).tobytes(), name
    assert lines_a == lines_b
    assert [line['step'] for line in lines_a] == [8, 16, 24]


STOPPED = """
import os, signal, sys
from si_jax.cli.train import command
from si_jax.training.checkpoints import Checkpoints

def save(*arguments, whole=Checkpoints.save, **settings):
    Checkpoints.save = whole
    os.kill(os.getpid(), signal.SIGTERM)
    return whole(*arguments, **settings)

Checkpoints.save = save
command(sys.argv[1:])
"""


def test_sigterm_saves_and_the_same_command_goes_on_bit_for_bit(start, uninterrupted, tmp_path):
    workdir = tmp_path / 'stopped'
    # Within an epoch, and however fast the steps are: the signal comes as the third one is saved.
    stopped = tmp_path / 'stopped.py'
    stopped.write_text(STOPPED)
    code, out, err = finish(start(*SMALL, f'--workdir={workdir}', program=str(stopped)))
    assert code == 143, err
    stopped_at = Checkpoints(workdir / 'checkpoints').latest_step
    assert stopped_at < 24 and f'SIGTERM: saved at step {stopped_at}. To go on:\n' in err
    # The disk fills up: no file can grow beyond 8 KiB, 16 blocks. What is printed goes to no file.
    limited = subprocess.run(
        [
            'sh',
            '-c',
            'ulimit -f 16; exec "$@"',
            'sh',
            sys.executable,
            'train.py',
            *SMALL,
            f'--workdir={workdir}',
        ],
        env=two_devices(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    code, err = limited.returncode, limited.stderr
    assert code == 1, err
    assert 'train.py: disk full while saving step' in err and f'checkpoint is step {stopped_at}' in err
    code, out, err = finish(start(*SMALL, f'--workdir={workdir}'))
    assert code == 0 and f'at step {stopped_at}' in out, err
    same_run(uninterrupted, workdir)


def test_a_finished_run_holds_what_it_measured(uninterrupted):
    lines = list(read_metrics(uninterrupted / 'metrics.jsonl'))
    for name in (
        'train/loss',
        'train/natural_ce',
        'train/kl',
        'train/si_margin_ce',
        'learning_rate',
        'validation/natural_accuracy',
        'validation/pgd_accuracy',
        'validation/calibrated_pgd_accuracy',
        'validation/median_gap',
        'validation/decision_agreement',
        'validation/weight_norm',
        'validation/weight_norm_spread',
        'validation/feature_norm',
        'validation/true_cosine',
    ):
        assert all(np.isfinite(line[name]) for line in lines), name
    expected = lines[0]['train/natural_ce'] + 6 * lines[0]['train/kl'] + 0.2 * lines[0]['train/si_margin_ce']
    assert lines[0]['train/loss'] == pytest.approx(expected, rel=1e-5)
    config = json.loads((uninterrupted / 'config.json').read_text())
    assert config['defense']['si'] is True and config['threat']['eps'] == 0.2
    assert json.loads((uninterrupted / 'environment.json').read_text())
    assert list((uninterrupted / 'tensorboard').iterdir())
    checkpoints = Checkpoints(uninterrupted / 'checkpoints')
    accuracies = {line['step']: line['validation/calibrated_pgd_accuracy'] for line in lines}
    assert accuracies[checkpoints.best_step] == max(accuracies.values())


def test_another_config_in_the_workdir_is_refused_and_nothing_changes(start, uninterrupted):
    before = (uninterrupted / 'metrics.jsonl').read_bytes()
    code, _, err = finish(start(*SMALL, f'--workdir={uninterrupted}', '--config.threat.eps=0.1'))
    assert code == 2 and 'threat.eps' in err and '0.2' in err and '0.1' in err and 'Traceback' not in err
    assert (uninterrupted / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize(
    ('flag', 'code', 'words'),
    [
        ('--config.epoch=3', 2, ['epoch', 'epochs']),
        ('--config.threat.eps=8', 2, ['eps=8', '8/255']),
        ('--workdirs=x', 2, ['workdirs']),
        ('--config.init_from=gone.npz', 2, ['init_from=gone.npz']),  # asks who knows where networks lie
    ],
)
def test_bad_input_is_one_line_before_any_compute(start, tmp_path, flag, code, words):
    workdir = tmp_path / 'run'
    got, _, err = finish(start(*SMALL, f'--workdir={workdir}', flag))
    assert got == code, err
    assert all(word in err for word in words), err
    assert 'Traceback' not in err and len(err.strip().splitlines()) == 1
    assert not (workdir / 'checkpoints').exists()


def test_a_missing_data_folder_names_the_command_that_makes_it(start, tmp_path):
    flags = [
        '--config=configs/at_cifar10.py',
        f'--config.data.dir={tmp_path / "nowhere"}',
        f'--workdir={tmp_path / "w"}',
    ]
    code, _, err = finish(start(*flags))
    assert code == 2 and 'nowhere' in err and 'download_and_prepare' in err and '--config.data.dir' in err


def test_an_exploding_loss_stops_with_the_step_the_terms_and_the_last_good_state(start, tmp_path):
    workdir = tmp_path / 'run'
    flags = [*SMALL, f'--workdir={workdir}', '--config.schedule.peak=1e30']
    code, _, err = finish(start(*flags))
    assert (
        code == 1
        and 'is not finite' in err
        and 'natural_ce' in err
        and 'peak' in err
        and 'Traceback' not in err
    )
    step = int(err.split('step ')[1].split()[0])
    restored = Checkpoints(workdir / 'checkpoints').restore('last')
    assert restored.step == step
    assert all(np.isfinite(array).all() for _, array in flat(restored.state['params']))
