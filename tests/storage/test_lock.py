"""One command at a time in a folder; the lock goes with its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from si_jax.errors import InputError
from si_jax.storage import lock

HOLDER = """
import sys, time
from pathlib import Path
from si_jax.storage import lock
with lock.locked(Path(sys.argv[1]), 'wait'):
    (Path(sys.argv[1]) / 'unit').touch()
    print('held', flush=True)
    time.sleep(60)
"""


def test_the_second_is_refused_and_told_who_holds_it(tmp_path):
    folder = tmp_path / 'state'
    with lock.locked(folder, 'wait for it'):
        with (
            pytest.raises(InputError, match=rf'use by process {os.getpid()} on .* since 20.*: wait'),
            lock.locked(folder, 'wait for it'),
        ):
            pass
        assert (folder / lock.NAME).exists()
    assert not folder.exists()  # nothing else was in it
    folder.mkdir()
    (folder / 'unit').touch()
    with lock.locked(folder, ''):
        pass
    assert [path.name for path in folder.iterdir()] == ['unit']


def test_a_killed_holder_leaves_no_lock(tmp_path):
    folder = tmp_path / 'state'
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(InputError, match=f'in use by process {holder.pid} '), lock.locked(folder, ''):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.locked(folder, ''):
        pass


def test_a_lock_on_a_removed_folder_is_none(tmp_path):
    folder = tmp_path / 'state'
    with lock.locked(folder, ''):
        (folder / lock.NAME).unlink()
        folder.rmdir()
        with lock.locked(folder, ''):  # another folder of that name
            pass


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('mine')
    (tmp_path / lock.NAME).symlink_to('precious')
    with pytest.raises(OSError), lock.locked(tmp_path, ''):
        pass
    assert (tmp_path / 'precious').read_text() == 'mine'


def test_what_a_killed_holder_left_half_written_is_removed(tmp_path):
    left, own = tmp_path / f'.unit.npz.{"0a" * 8}.tmp', tmp_path / '.mine.tmp'
    left.write_bytes(b'half')
    own.write_bytes(b'of the user')
    with lock.locked(tmp_path, 'wait'):
        assert not left.exists() and own.exists()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def without(*arguments):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', without)
    with (
        pytest.raises(InputError, match='file system without locks .*mount it with flock'),
        lock.locked(tmp_path, ''),
    ):
        pass
