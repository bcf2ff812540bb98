"""A lock on a folder that goes with its process: however that ends, none is left behind."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from si_jax.errors import InputError
from si_jax.storage.files import remove_leftovers

NAME = '.lock'


@contextlib.contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it does not exist and removed again if it stays empty.

    It is an flock on a file in the folder, which the system takes back when the process ends. What a holder
    that was killed left half written in the folder is removed.

    Args:
        folder: What must have one user at a time.
        remedy: What else to do, for the error.

    Raises:
        InputError: Another process holds it; the message says which, and since when.
        OSError: The folder cannot be written.
    """
    path = folder / NAME
    descriptor = _take(path, remedy)
    try:
        os.ftruncate(descriptor, 0)
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        remove_leftovers(folder)
        os.write(descriptor, f'process {os.getpid()} on {socket.gethostname()} since {since}\n'.encode())
        yield
    finally:
        if _lies_at(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing is in it


def without_locks(folder: Path, error: OSError) -> Exception:
    """What to raise where a lock fails for another reason than that somebody holds it."""
    if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
        return error
    return InputError(
        f'{folder} is on a file system without locks ({error.strerror}), where two commands would spoil each '
        "other's files: mount it with flock (Lustre: -o flock), or give a folder elsewhere"
    )


def _take(path: Path, remedy: str) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # the folder was removed just now, by who had it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors='replace').strip() or 'another process'
            os.close(descriptor)
            raise InputError(f'{path.parent} is in use by {holder}: {remedy}') from None
        except OSError as error:
            os.close(descriptor)
            raise without_locks(path.parent, error) from None
        if _lies_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder removed the file before it let go


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
