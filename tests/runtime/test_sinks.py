"""Sinks: what each gets, when it is refused, and that a training that goes on is one run."""

import contextlib
import sys
import types

import pytest

from si_jax.errors import InputError
from si_jax.runtime import sinks
from si_jax.training.metrics import MetricsWriter


class Tracking(types.ModuleType):
    """A module with the functions of wandb, and of trackio, that remembers what they were called with."""

    def __init__(self, name):
        super().__init__(name)
        self.runs, self.finished = [], 0

    def init(self, **options):
        if options['project'] == 'refused':
            raise RuntimeError('no key')
        run = types.SimpleNamespace(options=options, logged=[])
        run.log = lambda numbers, step: run.logged.append((step, numbers))
        run.finish = lambda: setattr(self, 'finished', self.finished + 1)
        self.runs.append(run)
        return run


@pytest.fixture
def library(request, monkeypatch):
    module = Tracking(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


@pytest.mark.parametrize('library', sinks.LIBRARIES, indirect=True)
def test_a_training_that_goes_on_is_one_run(tmp_path, library):
    name, folder = library.__name__, tmp_path / 'at_cifar10' / '1f2e'
    folder.mkdir(parents=True)

    def write(after, *steps):
        writer = MetricsWriter(folder, tensorboard=False, sinks=name, config={'seed': 3})
        with contextlib.closing(writer):
            writer.cut(after)
            writer.open()
            for step in steps:
                writer.write(step, 1, {'train/loss': 0.5 * step, 'ended': 'text', 'right': True})

    write(-1, 1, 2)
    write(1, 2)
    write(-1, 1)  # begun anew in the same folder
    first, second, anew = library.runs
    assert first.logged == [(1, {'train/loss': 0.5, 'right': True}), (2, {'train/loss': 1.0, 'right': True})]
    assert second.logged == first.logged[1:] and library.finished == 3
    assert first.options == second.options and first.options['name'] != anew.options['name']
    assert first.options['name'].startswith('at_cifar10-1f2e-') and first.options['config'] == {'seed': 3}
    assert first.options['project'] == 'si_jax' and first.options['resume'] == 'allow'
    assert ('dir' in first.options) == (name == 'wandb')


@pytest.mark.parametrize('library', ['wandb'], indirect=True)
def test_a_library_that_cannot_begin_says_what_helps(tmp_path, library, monkeypatch):
    monkeypatch.setenv('WANDB_PROJECT', 'refused')
    with pytest.raises(InputError, match=r'no key.*WANDB_MODE=offline'):
        MetricsWriter(tmp_path, sinks='wandb').open()


def test_a_sink_of_ones_own_by_file_and_by_name(tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text(
        'class Lines:\n'
        '    def __init__(self, start):\n'
        '        self.file = open(start.folder / "lines.txt", "a")\n'
        '    def write(self, step, scalars):\n'
        '        print(step, scalars, file=self.file)\n'
        '    def close(self):\n'
        '        self.file.close()\n'
    )
    with contextlib.closing(MetricsWriter(tmp_path, sinks=f'{tmp_path}/mine.py:Lines')) as writer:
        writer.write(7, 1, {'a': 1.5, 'b': None})
    assert (tmp_path / 'lines.txt').read_text() == "7 {'a': 1.5}\n"
    assert list((tmp_path / 'tensorboard').iterdir())
    monkeypatch.setattr(sinks, 'SINKS', dict(sinks.SINKS))
    sinks.register('mine', sinks.TensorBoard)
    assert list(sinks.parse('mine, tensorboard', 'sinks')) == ['mine', 'tensorboard']
    with pytest.raises(InputError, match='without comma'):
        sinks.register('a,b', sinks.TensorBoard)


def test_a_sink_that_fails_is_left_out_and_the_file_has_all(tmp_path, monkeypatch, capsys):
    class Failing:
        def __init__(self, start):
            self.error = start.config['error']

        def write(self, step, scalars):
            raise self.error

    monkeypatch.setattr(sinks, 'SINKS', sinks.SINKS | {'failing': Failing})
    options = {'tensorboard': False, 'sinks': 'failing'}
    with contextlib.closing(
        MetricsWriter(tmp_path, config={'error': ValueError('gone')}, **options)
    ) as writer:
        writer.write(1, 0, {})
        writer.write(2, 0, {})
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2
    assert capsys.readouterr().err.count('the sink failing failed (ValueError: gone)') == 1
    with pytest.raises(OSError, match='full'):
        MetricsWriter(tmp_path, config={'error': OSError(28, 'full')}, **options).write(3, 0, {})


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        ('tensorbord', "did you mean 'tensorboard'|tensorboard"),
        ('nothing.py:Sink', 'there is no file'),
        ('wandb', r'pip install wandb'),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(names, words, monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    with pytest.raises(InputError, match=words):
        sinks.parse(names, '--config.logging.sinks')
