"""The folder of a run: found again by the same command, never shared, never mixed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from si_jax.errors import InputError
from si_jax.storage.trees import differences
from si_jax.training.workdir import default_workdir, open_workdir

CONFIG = {
    'seed': 0,
    'epochs': 120,
    'data': {'name': 'cifar10', 'dir': None},
    'schedule': {'peak': 0.01, 'boundaries': (0.5, 0.75)},
    'defense': {'weights': {'ce': 1.0}},
    'checkpoint': {'keep_last': 2},
    'logging': {'every_steps': 50},
}


def changed(**fields) -> dict:
    """CONFIG with dotted fields replaced; `__` stands for a dot."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in fields.items():
        *sections, field = name.split('__')
        section = config
        for part in sections:
            section = section[part]
        section[field] = value
    return config


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != '.lock'}


def started(path: Path, config: dict = CONFIG) -> None:
    """A run that has taken its first step."""
    with open_workdir(path, config) as workdir:
        workdir.record(config, [])


def test_default_workdir_is_found_again_by_the_same_command():
    overrides = {'seed': 1, 'threat.eps': 8 / 255, 'schedule.boundaries': (0.5,)}
    path = default_workdir('configs/tradessi_cifar10.py', 'wrn_34_10', overrides)
    assert path.parts[:2] == ('runs', 'tradessi_cifar10-wrn_34_10') and len(path.parts) == 3
    reordered = dict(reversed(overrides.items()))
    assert default_workdir('/elsewhere/tradessi_cifar10.py', 'wrn_34_10', reordered) == path
    other = [
        default_workdir('configs/tradessi_cifar10.py', 'wrn_34_10', overrides | {'seed': 2}),
        default_workdir('configs/tradessi_cifar10.py', None, overrides),
        default_workdir('configs/trades_cifar10.py', 'wrn_34_10', overrides),
        default_workdir('configs/tradessi_cifar10.py', 'wrn_34_10', {}),
    ]
    assert len({path, *other}) == 5
    assert default_workdir('a.py', '', {}, root='results').parts[:2] == ('results', 'a')
    # As the README has it: an architecture, then si.
    names = [default_workdir('awp_cifar10.py', after, {}).parts[1] for after in ('small_cnn,si', ',si')]
    assert names == ['awp_cifar10-small_cnn-si', 'awp_cifar10-si']


@pytest.mark.parametrize(
    'config_file, arch',
    [
        *[('a.py', arch) for arch in ('../x', 'a/b', '..', 'x\n', 'x\0')],
        *[(config_file, None) for config_file in ('..', '', 'a b.py', '-a.py', '.py', '...')],
    ],
)
def test_names_that_leave_the_folder_of_runs_are_refused(config_file, arch):
    with pytest.raises(InputError, match='cannot name a folder in runs/'):
        default_workdir(config_file, arch, {})


def test_a_config_file_of_a_parent_folder_stays_inside():
    assert default_workdir('../../up.py', None, {}).parts[:2] == ('runs', 'up')


def test_creates_the_folder_and_writes_config_and_environment(tmp_path):
    path = tmp_path / 'runs' / 'x' / '0'
    with open_workdir(path, CONFIG) as workdir:
        assert (workdir.path, workdir.resumed, workdir.changed) == (path, False, {})
        assert not contents(path)
        workdir.record(CONFIG, [])
        assert json.loads((path / 'config.json').read_text()) == changed()
        assert json.loads((path / 'environment.json').read_text())['device_count'] == 8
    with open_workdir(path, changed()) as workdir:  # tuples and lists are the same
        assert (workdir.resumed, workdir.changed) == (True, {})


def test_a_resume_may_change_epochs_logging_paths_and_checkpoints(tmp_path):
    started(tmp_path)
    new = changed(
        epochs=130,
        data__dir='/data',
        logging={'every_steps': 1, 'tensorboard': False},
        checkpoint__keep_last=5,
    )
    with open_workdir(tmp_path, new) as workdir:
        assert workdir.changed == {
            'epochs': (120, 130),
            'data.dir': (None, '/data'),
            'checkpoint.keep_last': (2, 5),
            'logging.every_steps': (50, 1),
            'logging.tensorboard': (True, False),
        }
        workdir.record(new, [])
    assert json.loads((tmp_path / 'config.json').read_text()) == new


def test_any_other_change_is_named_and_refused(tmp_path):
    started(tmp_path)
    before = contents(tmp_path)
    new = changed(
        epochs=1, seed=1, data__name='svhn', schedule__boundaries=[0.5], defense__weights={'kl': 6.0}
    )
    with pytest.raises(InputError) as info, open_workdir(tmp_path, new):
        pass
    expected = "(seed: 0 -> 1, data.name: 'cifar10' -> 'svhn', schedule.boundaries: [0.5, 0.75] -> [0.5], "
    expected += "defense.weights.ce: 1.0 -> 'absent', defense.weights.kl: 'absent' -> 6.0)"
    assert expected in str(info.value)
    assert 'epochs' not in str(info.value) and 'another --workdir, or the old values' in str(info.value)
    assert contents(tmp_path) == before


def test_differences_see_types_and_names_that_only_begin_alike(tmp_path):
    assert differences({'a': 1, 'b': {}}, {'a': 1.0, 'b': {}}) == {'a': (1, 1.0)}
    assert differences({'a': {'b': 1}}, {'a': {}}) == {'a.b': (1, 'absent'), 'a': ('absent', {})}
    started(tmp_path)
    with (
        pytest.raises(InputError, match="logging_level: 'absent' -> 1"),
        open_workdir(tmp_path, changed(logging_level=1)),
    ):
        pass


@pytest.mark.parametrize('content', ['', '{"seed": ', '[1]', '[' * 100_000, 'null'])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(InputError, match='config.json is damaged'), open_workdir(tmp_path, CONFIG):
        pass
    assert (tmp_path / 'config.json').read_text() == content


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(InputError, match='is not a folder'), open_workdir(path, CONFIG):
            pass


HOLDER = """
import sys, time
from si_jax.training.workdir import open_workdir
with open_workdir(sys.argv[1], {'seed': 0}) as workdir:
    workdir.record({'seed': 0}, [])
    print('open', flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
    arguments = [sys.executable, '-c', HOLDER, str(tmp_path)]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == 'open\n'
            before = contents(tmp_path)
            with (
                pytest.raises(InputError, match=f'is in use by process {holder.pid} on '),
                open_workdir(tmp_path, {'seed': 0}),
            ):
                pass
            assert contents(tmp_path) == before
        finally:
            holder.send_signal(signal.SIGKILL)
    with open_workdir(tmp_path, {'seed': 0}) as workdir:  # a killed run leaves no lock behind
        assert workdir.resumed


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), open_workdir(tmp_path, CONFIG):
        raise ZeroDivisionError
    with open_workdir(tmp_path, CONFIG) as workdir:
        assert not workdir.resumed  # it took no step, so nothing was written
        with (
            pytest.raises(InputError, match=f'in use by process {os.getpid()}'),
            open_workdir(tmp_path, CONFIG),
        ):
            pass


@pytest.mark.parametrize('gone', ['deleted', 'replaced', 'lock deleted', 'lock replaced'])
def test_a_workdir_that_went_is_not_written_into(tmp_path, gone):
    path = tmp_path / 'run'
    with open_workdir(path, CONFIG) as workdir:
        workdir.check()
        if gone.startswith('lock'):
            (path / '.lock').unlink()
        else:
            path.rename(tmp_path / 'away')
        if gone == 'replaced':
            shutil.copytree(tmp_path / 'away', path)
        if gone == 'lock replaced':
            (path / '.lock').touch()
        for write in (workdir.check, lambda: workdir.record(CONFIG, [])):
            with pytest.raises(OSError, match=f'workdir {path} was deleted, moved or replaced'):
                write()
        assert not (path / 'config.json').exists()
        if not gone.startswith('lock'):
            shutil.rmtree(path, ignore_errors=True)
            (tmp_path / 'away').rename(path)
            workdir.check()
