"""Files that are replaced in one step."""

import errno
import os
import pathlib
import secrets
import signal
import subprocess
import sys

import pytest

from si_jax.storage.files import remove_leftovers, write_atomic, write_json

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_replaces_text_bytes_and_json(tmp_path):
    file = tmp_path / 'file'
    for content, expected in (('Größe', 'Größe'.encode()), (b'\x00\xff', b'\x00\xff'), ('', b'')):
        write_atomic(file, content)
        assert file.read_bytes() == expected
    write_json(file, {'a': [1, None]})
    assert file.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('value, error', [({'a': float('nan')}, ValueError), ({'a': object()}, TypeError)])
def test_what_json_cannot_say_leaves_the_old_file(tmp_path, value, error):
    file = tmp_path / 'file'
    file.write_text('old')
    with pytest.raises(error):
        write_json(file, value)
    assert file.read_text() == 'old'


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    file.write_text('old')

    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_atomic(file, 'new')
    assert file.read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_name_that_was_guessed_is_not_followed(tmp_path, monkeypatch):
    """Whoever may write into the folder puts links there, under the name that will be used."""
    monkeypatch.setattr(secrets, 'token_hex', lambda count: 'guessed')
    (tmp_path / 'precious').write_text('mine')
    for target in ('precious', 'not there'):
        (tmp_path / '.file.guessed.tmp').symlink_to(target)
        with pytest.raises(FileExistsError):
            write_atomic(tmp_path / 'file', 'new')
        (tmp_path / '.file.guessed.tmp').unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['precious']
    assert (tmp_path / 'precious').read_text() == 'mine'


def test_temporary_names_cannot_be_guessed(tmp_path, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda a, b: (names.append(str(a)), replace(a, b)))
    for _ in range(2):
        write_atomic(tmp_path / 'file', 'new')
    assert len(set(names)) == 2 and not any(str(os.getpid()) == name.split('.')[-2] for name in names)


def test_no_room_names_the_file(tmp_path, no_room):
    with no_room(100), pytest.raises(OSError, match='File too large.*result.json') as raised:
        write_atomic(tmp_path / 'result.json', 1000 * 'x')
    assert raised.value.errno == errno.EFBIG


def test_leftovers_of_one_file_are_told_from_others(tmp_path):
    names = [f'.{name}.{"1f" * 8}.tmp' for name in ('result.json', 'result.npz', 'result2.json')]
    for name in (*names, '.result.tmp', 'result.json'):
        (tmp_path / name).touch()
    (tmp_path / f'.result.json.{"2e" * 8}.tmp').mkdir()  # no file of ours
    remove_leftovers(tmp_path, 'result')
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {names[2], '.result.tmp', 'result.json', f'.result.json.{"2e" * 8}.tmp'}
    remove_leftovers(tmp_path)
    assert names[2] not in {path.name for path in tmp_path.iterdir()}
    remove_leftovers(tmp_path / 'missing')


@pytest.mark.parametrize('point', ['os.fsync', 'os.replace'])
def test_a_writer_that_is_killed_leaves_what_is_found(tmp_path, point):
    code = f"""
import os, signal
from si_jax.storage.files import write_atomic
{point} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic({str(tmp_path / 'file')!r}, 'new')
"""
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
