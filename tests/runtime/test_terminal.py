"""What users see: help that teaches, tables of 80 columns, colours where they belong, and how to go on."""

import io
import json
import os
import re
import shlex
import signal
import sys
import time

import numpy as np
import pytest

from benchmarks import conformance
from si_jax.auditing.report import Audit
from si_jax.auditing.verdicts import Check
from si_jax.cli import evaluate, export, figures, launch, report, zoo
from si_jax.errors import InputError
from si_jax.evaluation.compare import Comparison, Difference
from si_jax.evaluation.result import AttackRecord, Result
from si_jax.runtime import terminal
from si_jax.threat import Threat
from tests.chaos.forks import Forked
from tests.cli.test_train import SMALL
from tests.helpers.processes import compiled_as_the_suite, environment

LONG = 'transfer-a-network-whose-name-somebody-made-longer-than-any-column-of-a-table-can-be'
WORDS = 'more than anybody can read in one line of a terminal, which has eighty columns ' * 3


class Screen(io.StringIO):
    def isatty(self):
        return True


HELP = {
    'evaluate.py': lambda: evaluate.main(['--help']),
    'evaluate.py compare': lambda: evaluate.main(['compare', '--help']),
    'report.py': lambda: report.main(['--help']),
    'report.py --workdirs=A': lambda: report.main(['--workdirs=A', '--help']),
    'report.py --figure=1': lambda: report.main(['--figure=1', '--help']),
    'python -m si_jax.cli.export': lambda: export.main(['--help']),
    'python -m si_jax.cli.launch': lambda: launch.main(['--help']),
    'python -m benchmarks.conformance': lambda: conformance.main(['--help']),
    'python -m si_jax.cli.zoo': lambda: zoo.main(['--help']),
}


def check_help(text: str) -> None:
    assert max(map(len, text.splitlines())) <= terminal.WIDTH
    examples = text.split('examples:\n')[1].split('\n\n')[0]
    assert 3 <= len(re.findall(r'^    python ', examples, re.MULTILINE)) <= 8
    status = re.findall(r'^  (\d+)', text.split('exit status:\n')[1], re.MULTILINE)
    assert [number for number in status if number != str(terminal.LOST)] == ['0', '1', '2', '130']


@pytest.mark.parametrize('command', HELP)
def test_help_teaches(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit) as stop:
        HELP[command]()
    assert stop.value.code == 0
    check_help(capsys.readouterr().out)


def record(runs: int = 1, **settings) -> AttackRecord:
    correct = np.random.default_rng(0).random((runs, 40)) > 0.3
    return AttackRecord(correct, 100_000, 0.1, 1, 0.031373, **settings)


def result() -> Result:
    stages = tuple(
        {'attack': name, 'accuracy': 1.0, 'attacked': 10_000, 'broken': 10_000}
        for name in ('started there', 'pgd-hybrid-20')
    )
    return Result(
        clean=np.ones(40, bool),
        attacks={'autoattack-rand': record(stages=stages), LONG: record(12), f'{LONG}2': record()},
        labels=np.zeros(40, int),
        indices=np.arange(40),
        threat=Threat('linf', 8 / 255),
        seed=1234567890,
        precision={},
        dataset={'examples': 40},
        warnings=[WORDS, 'short'],
        environment={},
        timing={},
    )


def comparison(seeds: int) -> Comparison:
    flags = np.random.default_rng(1).random((2, seeds))
    one = Difference(
        a=np.ones(seeds) - 1e-3 * flags[0],
        b=flags[1],
        only_a=np.full(seeds, 99_999),
        only_b=np.full(seeds, 9_999),
        mcnemar_p=np.full(seeds, 1.2e-111),
        ci95=(-1.0, 1.0),
        seeds_ci95=(-1.0, 1.0),
        paired_t_p=1.2e-9,
    )
    paths = [f'runs/{LONG}/{seed}.json' for seed in range(seeds)]
    return Comparison(
        differences={'clean': one, 'autoattack-plus': one, LONG: one, f'{LONG}2': one},
        a=paths,
        b=paths,
        seeds=list(range(1000, 1000 + seeds)),
        threat={'norm': 'linf', 'eps': 8 / 255},
        dataset={},
        images=10_000,
        resamples=10,
        seed=0,
        notes=[WORDS],
    )


def audit() -> Audit:
    grid = list(np.linspace(0, 1, 20))
    evidence = {
        'eps': {'eps': grid, 'accuracy': grid},
        'steps': {'steps': [10**i for i in range(9)], 'accuracy': grid[:9]},
    }
    evidence['restarts'] = {'accuracy': [1.0] * 12}
    return Audit(
        checks=(
            *(Check(name, 'pass', WORDS, evidence[name]) for name in evidence),
            Check('binarization', 'fail', WORDS),
            Check('gradients', 'warn', f'{LONG}{LONG}'),
        ),
        attack={'name': 'pgd-hybrid', 'steps': 100_000, 'restarts': 100},
        threat=Threat('l2', 1.0),
        clean=1.0,
        accuracy=1.0,
        examples=10_000,
        seed=1234567890,
        precision={},
        dataset={},
        environment={},
        timing={},
    )


TABLES = {
    'evaluation': lambda: result().table(),
    'comparison': lambda: comparison(1).table(),
    'comparison over seeds': lambda: comparison(25).table(),
    'audit': lambda: audit().table(),
    'paper': lambda: report.report.run(table='8', runs='nowhere', seeds='0,1,2'),
    'figure options': lambda: figures.parser().format_help(),
}


@pytest.mark.parametrize('name', TABLES)
def test_tables_fit_80_columns_whatever_the_names(name):
    lines = TABLES[name]().splitlines()
    # What has no space cannot be broken without harm: it stands alone on its line.
    wide = [line for line in lines if len(line) > 80 and ' ' in line.strip().removesuffix(' \\')]
    assert len(lines) > 5 and not wide, wide


def test_names_of_rows_are_whole():
    for text in (result().table(), comparison(1).table(), comparison(3).table()):
        shown = ''.join(text.split())
        assert f'{LONG}2' in shown and f'{LONG}2'[:70] in text


def test_missing_commands_are_broken_so_that_a_shell_reads_them_whole():
    text = report.report.run(table='6', runs='nowhere', data_dir='a folder', seeds='0')
    shown = text.split('commands that fill it:\n')[1].replace('\\\n', ' ')
    wanted = report.report.run(table='6', runs='nowhere', data_dir='a folder', seeds='0', commands='missing')
    assert [shlex.split(line) for line in shown.splitlines()] == [
        shlex.split(line) for line in wanted.splitlines()
    ]


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    text = result().table() + '\n' + audit().table()

    def shown(screen):
        terminal.show(text, screen)
        return screen.getvalue()

    assert shown(io.StringIO()) == f'{text}\n'
    coloured = shown(Screen())
    assert re.sub(r'\x1b\[\d+m', '', coloured) == f'{text}\n'
    painted = re.findall(r'\x1b\[(\d+)m([^\x1b]*)\x1b\[0m', coloured)
    assert [(colour, words.split()[0]) for colour, words in painted] == [
        ('1', 'worst'),
        ('33', 'warning:'),
        ('33', 'warning:'),
        ('31', 'FAIL'),
        ('33', 'warn'),
        ('31', 'verdict:'),
    ]
    for variable, value in (('NO_COLOR', '1'), ('TERM', 'dumb')):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert shown(Screen()) == f'{text}\n'


def test_exit_status_and_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'orig_argv', ['python', '-u', 'train.py', '--config=a b.py'])

    def wrong():
        raise InputError('x=1 is not 2')

    assert terminal.run('train.py', wrong) == 2 and terminal.run('train.py', lambda: None) == 0
    assert terminal.run('train.py', lambda: 1) == 1
    assert capsys.readouterr().err == 'train.py: x=1 is not 2\n'
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(terminal.Stopped) as stop, terminal.resumable('what was finished is kept in x'):
            os.kill(os.getpid(), number)
            time.sleep(1)
            pytest.fail(f'{number} did nothing')
        assert stop.value.code == 128 + number and signal.getsignal(signal.SIGTERM) is before
        words = f'{number.name}: what was finished is kept in x. To go on:\n    python -u train.py '
        assert capsys.readouterr().err == f"{words}'--config=a b.py'\n"


MODEL = """
import jax
import jax.numpy as jnp

def build():
    weights = jax.random.normal(jax.random.key(0), (64, 10))
    return lambda images: jnp.tanh(images.reshape(len(images), -1) @ weights)
"""


@pytest.fixture
def start(tmp_path_factory):
    """Starts this command, a program of the project with its flags."""

    def started(*command: str) -> Forked:
        folder = tmp_path_factory.mktemp('printed')
        one = environment(compiled_as_the_suite())
        return Forked([sys.executable, *command], folder / 'out', one, folder / 'err')

    return started


def command_in(errors: str, process: Forked) -> list[str]:
    """The command that an interrupted process says goes on."""
    command = shlex.split(errors.split('To go on:\n')[1])
    assert command == process.args
    return command[1:]


def test_an_evaluation_that_was_interrupted_says_how_to_go_on_and_does(start, tmp_path):
    (tmp_path / 'model.py').write_text(MODEL)
    output = tmp_path / 'a result.json'
    flags = [
        '--dataset=digits',
        '--num_examples=16',
        '--attacks=pgd,rays',
        '--eps=0.01',
        f'--output={output}',
    ]
    process = start('evaluate.py', f'--model={tmp_path / "model.py"}:build', *flags)
    state = output.with_suffix('.partial')
    while not (state / 'pgd-0-0.npz').exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 130 and 'Traceback' not in errors and out == '', errors
    assert f'SIGINT: what was finished is kept in {state}. To go on:' in errors
    written = (state / 'pgd-0-0.npz').stat().st_mtime_ns
    again = start(*command_in(errors, process))
    while again.poll() is None and (state / 'pgd-0-0.npz').exists():
        assert (state / 'pgd-0-0.npz').stat().st_mtime_ns == written
        time.sleep(0.05)
    out, errors = again.communicate(timeout=240)
    assert again.returncode == 0 and 'worst case' in out and 'Traceback' not in errors
    assert json.loads(output.read_text())['attacks'].keys() == {'pgd', 'rays'} and not state.exists()


def test_a_training_that_was_interrupted_says_how_to_go_on_and_does(start, tmp_path):
    from si_jax.training.checkpoints import Checkpoints

    process = start('train.py', *SMALL, f'--workdir={tmp_path / "a run"}', '--config.epochs=200')
    checkpoints = Checkpoints(tmp_path / 'a run' / 'checkpoints')
    while not checkpoints.latest_step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130 and 'Traceback' not in errors, errors
    step = Checkpoints(tmp_path / 'a run' / 'checkpoints').latest_step
    assert f'SIGINT: saved at step {step}. To go on:' in errors
    command = command_in(errors, process)
    # It goes on: as far as the next interruption, to keep the test short; a second Ctrl-C does not wait.
    again = start(*command)
    while again.log.read_text().count('\n') < 2:
        assert again.poll() is None, again.communicate()
        time.sleep(0.05)
    assert f'at step {step}' in again.log.read_text().splitlines()[1]
    again.send_signal(signal.SIGINT)
    again.send_signal(signal.SIGTERM)
    _, errors = again.communicate(timeout=240)
    assert again.returncode in (130, 143) and 'To go on:' in errors and 'Traceback' not in errors
    shown = start('train.py', '--help').communicate(timeout=240)[0]
    check_help(shown)
    assert 'threat.eps                   0.03137' in shown and '--workdir=FOLDER' in shown
