"""What commands refuse: the right words, and a remedy that works."""

import errno
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from absl import flags as absl_flags
from ml_collections import config_flags

from si_jax.cli import evaluate
from si_jax.cli.subject import load_attribute
from si_jax.data import npz
from si_jax.errors import InputError
from si_jax.interop.torch_weights import from_torch
from si_jax.reports.collect import _nothing
from si_jax.runtime import terminal
from si_jax.zoo.entries import VARIABLE, folders

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ('text', 'who'),
    [
        ('import sys\ndef build(): ...\nsys.exit(0)\n', '--model=net.py:build called sys.exit(0)'),
        ('def build():\n    raise SystemExit\n', 'build called sys.exit()'),
    ],
)
def test_a_model_that_ends_the_command_is_no_success(text, who, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('net.py').write_text(text)
    assert evaluate.main(['--model=net.py:build', '--dataset=digits']) == 2
    err = capsys.readouterr().err
    assert who in err and "under `if __name__ == '__main__':`" in err
    pathlib.Path('net.py').write_text("def build(): ...\nif __name__ == '__main__':\n    raise SystemExit\n")
    assert callable(load_attribute('net.py:build', 'model'))


def test_an_npz_is_no_checkpoint_of_pytorch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez('net.npz', conv=np.ones(3))
    assert evaluate.main(['--torch_checkpoint=net.npz', '--arch=resnet18', '--dataset=digits']) == 2
    assert 'net.npz is an npz file, not one of PyTorch: give weights of this library as --model=net.npz' in (
        capsys.readouterr().err
    )


def test_arrays_of_another_name_are_not_called_truncated(tmp_path):
    x, y = np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, int)
    np.savez(tmp_path / 'mine_test.npz', x_test=x, y_test=y)
    with pytest.raises(
        InputError, match=r'`images` and `labels`.*np\.savez\(path, images=x, labels=y\)'
    ) as e:
        npz.read([tmp_path / 'mine_test.npz'], (8, 8, 1), 10, 255)
    assert 'truncated' not in str(e.value) and 'x_test' in str(e.value)
    np.savez(tmp_path / 'mine_test.npz', images=x, labels=y)
    assert len(npz.read([tmp_path / 'mine_test.npz'], (8, 8, 1), 10, 255)[0]) == 2


def parse(monkeypatch, *argv):
    monkeypatch.setattr(sys, 'argv', ['train.py', *argv])  # where ml_collections looks for fields
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    terminal.parse_config(values, ['train.py', *argv])


@pytest.mark.parametrize(
    'given, hint',
    [
        ('configs/digit.py', 'did you mean configs/digits.py?'),
        ('digit', 'did you mean digits?'),
        ('qqqq', None),
    ],
)
def test_a_config_that_is_not_there_names_the_near_ones_or_all(given, hint, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = sorted(path.stem for path in pathlib.Path('configs').glob('[a-z]*.py'))
    with pytest.raises(InputError) as raised:
        parse(monkeypatch, f'--config={given}')
    assert str(raised.value) == (
        f'--config={given} is neither a file nor one of the {len(names)} recipes: '
        f'{hint or "known: " + ", ".join(names)}'
    )


def test_a_field_that_is_not_there_has_no_escaped_quotes(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match='no such config field: ') as raised:
        parse(monkeypatch, '--config=configs/quickstart.py', '--config.epoch=3')
    assert '\\' not in str(raised.value) and "''" not in str(raised.value)
    assert 'Did you mean "epochs" instead of "epoch"?' in str(raised.value)


def test_a_hundred_missing_names_are_a_count_and_a_few():
    with pytest.raises(InputError, match='missing: ') as raised:
        from_torch({'linear.bias': np.zeros(10), 'linear.weight': np.zeros((10, 512))}, 'resnet18')
    count = int(re.search(r'(\d+) missing', str(raised.value))[1])
    assert count > 50 and f'and {count - 5} more' in str(raised.value) and len(str(raised.value)) < 400


def test_no_room_comes_with_a_remedy(capsys):
    def full():
        raise OSError(errno.EFBIG, 'File too large', 'out/result.npz')

    assert terminal.run('evaluate.py', full) == 1
    err = capsys.readouterr().err
    assert "'out/result.npz'" in err and 'ulimit -f' in err and 'run the same command again' in err


def test_advice_can_be_pasted_into_a_shell(tmp_path, monkeypatch):
    (tmp_path / 'my runs').mkdir()
    advice = _nothing(tmp_path / 'my runs')
    command = advice.split('train one with ')[1].split(', or give')[0]
    assert shlex.split(command)[-1] == f'--workdir={tmp_path / "my runs"}'
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'my zoo'))
    with pytest.raises(InputError) as raised:
        folders()
    assert shlex.split(str(raised.value).split('make one with ')[1])[-1] == f'--zoo={tmp_path / "my zoo"}'
