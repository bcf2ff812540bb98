"""The folder of a run: one run at a time, one config for its whole life.

WORKDIR/config.json       the full config, as of the last start that took a step
WORKDIR/environment.json  versions, devices, commit and command line of that start
WORKDIR/history.json      at which steps the run diverged, or its config was changed, and how
WORKDIR/helper            the run of HAT's helper, where the command names none
WORKDIR/.lock             locked while a run is in the folder; the lock goes with the process
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from si_jax.errors import InputError
from si_jax.runtime import processes
from si_jax.runtime.environment import environment
from si_jax.storage.files import check_fields, read_json, write_json
from si_jax.storage.lock import without_locks
from si_jax.storage.trees import differences
from si_jax.training.recipes import completed

# What a resumed run may change: fields, or sections with all that they hold. None of them changes a step that
# was already taken. `epochs` does move the schedule of the steps to come: its boundaries are fractions of it.
# Of a data set that is registered in a file, checkpoints hold the digest of the images: the file may change.
MAY_CHANGE = (
    'epochs', 'data.dir', 'data.code', 'data.code_digest', 'data.extra', 'data.stream', 'data.workers',
    'workdir', 'logging', 'checkpoint',
)  # fmt: skip
# What it may change beside these after a divergence, as the message about one advises.
AFTER_DIVERGENCE = ('schedule.peak', 'optimiser.clip_norm', 'model.dtype')
LONGEST_NAME = 100  # letters; file systems take 255 for the two that are joined


class Workdir(NamedTuple):
    """A workdir that is open and locked.

    Attributes:
        path: The folder.
        resumed: Whether a run was started here before.
        changed: Field to (old, new), for the changes that a resume allows.
        history: What history.json holds: {'step', 'changed': {field: [old, new]}}, or {'step', 'diverged':
            {term: value}, 'before'}, where a run with another rate goes back to a step below 'before'.
        lock: The open file of the lock; None in a process that does not hold it.
    """

    path: Path
    resumed: bool
    changed: dict[str, tuple[Any, Any]]
    history: list[dict[str, Any]]
    lock: int | None = None

    def check(self) -> None:
        """Call it before anything is written into the folder.

        Raises:
            OSError: The folder, or its lock, is no longer the one that was opened: another run may be there.
        """
        if self.lock is not None and not _same_file(self.lock, self.path / '.lock'):
            raise OSError(
                errno.ESTALE,
                f'workdir {self.path} was deleted, moved or replaced while this run was in it (its lock '
                'is not the one that the run holds). The run ends and writes nothing there. Put the folder '
                'back, and the same command goes on from its last checkpoint; as things are, it starts anew',
            )

    def record(self, config: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Writes config, environment and history, once the run is known to go on.

        Raises:
            OSError: As `check`, or a file cannot be written.
        """
        self.check()
        # The config last: until it is there, the next command finds the change, and writes it down again.
        if history or self.history:
            write_json(self.path / 'history.json', list(history))
        write_json(self.path / 'environment.json', environment())
        write_json(self.path / 'config.json', config)


def divergence(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last divergence of a run, None without one."""
    return next((event for event in reversed(history) if 'diverged' in event), None)


def refused(old: Mapping[str, Any], new: Mapping[str, Any], diverged: bool) -> list[str]:
    """The changes of a completed config that a resume does not allow, in words."""
    allowed = MAY_CHANGE + AFTER_DIVERGENCE * diverged
    return [
        f'{name}: {before!r} -> {after!r}'
        for name, (before, after) in differences(old, new).items()
        if not any(f'{name}.'.startswith(f'{field}.') for field in allowed)
    ]


def default_workdir(
    config_file: str | os.PathLike, arch: str | None, overrides: Mapping[str, Any], *, root: str = 'runs'
) -> Path:
    """`ROOT/<config>[-<arch>][-si]/<hash of overrides>`, so that the same command finds its workdir again.

    `arch` is what follows the config file, if anything does, with commas between its parts. The overrides,
    dotted field to value as on the command line, may come in any order.

    Raises:
        InputError: A name that cannot be the name of one folder.
    """
    parts = [Path(config_file).stem, *(part for part in (arch or '').replace(' ', '').split(',') if part)]
    for part in parts:
        if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.-]*', part):
            raise InputError(
                f'{part!r} cannot name a folder in {root}/: '
                'letters, digits, "_", "." and "-" can, and the first is no "." or "-"; or give --workdir'
            )
        if len(part) > LONGEST_NAME:
            raise InputError(
                f'{part[:40]!r}... has {len(part)} letters, a folder in {root}/ may have {LONGEST_NAME}: '
                'shorten it, or give --workdir'
            )
    text = json.dumps(dict(overrides), sort_keys=True, default=str)
    return Path(root, '-'.join(parts), hashlib.sha256(text.encode()).hexdigest()[:8])


@contextlib.contextmanager
def open_workdir(path: str | os.PathLike, config: Mapping[str, Any]) -> Iterator[Workdir]:
    """Creates or reopens the folder of a run, and holds its lock.

    Call it after `jax.distributed.initialize`, as it looks at the devices. A field that the config there
    lacks, as an older version did not have it, has today's default. The config is the full one, in nested
    dictionaries of JSON's types (tuples count as lists). It is not written before `Workdir.record`.

    Raises:
        InputError: Another run is in the folder, or one was started there with another config: all fields
            that differ and may not (see `MAY_CHANGE`) are named. The files there are not touched then.
        OSError: The folder cannot be written.
    """
    path = Path(path)
    config = json.loads(json.dumps(config, allow_nan=False))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f'--workdir={path} is not a folder, nor can one be made there: name another'
        ) from None
    with _locked(path) as lock:
        history = _read_history(path / 'history.json')
        old = _read_config(path / 'config.json')
        before, now = completed(config if old is None else old), completed(config)
        if differing := refused(before, now, divergence(history) is not None):
            raise InputError(
                f'workdir {path} holds a run with another config ({", ".join(differing)}): '
                'give another --workdir, or the old values to resume it'
            )
        yield Workdir(path, old is not None, differences(before, now), history, lock)


@contextlib.contextmanager
def open_everywhere(path: str | os.PathLike, config: Mapping[str, Any]) -> Iterator[Workdir]:
    """`open_workdir` in all processes of a run: the first one opens it, and all must see the same folder.

    Raises:
        InputError: As there, in all processes; or a process does not see what the first one wrote.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        held: list[int | None] = [None]

        def first() -> list[Any]:
            place = stack.enter_context(open_workdir(path, config))
            held[0] = place.lock
            token = f'.seen-by-all-{os.urandom(8).hex()}' if processes.count() > 1 else None
            if token:
                (path / token).touch()
                stack.callback((path / token).unlink, missing_ok=True)
            return [place.resumed, place.changed, place.history, token]

        def see(token: str | None) -> None:
            if token is not None and not (path / token).exists():
                raise InputError(
                    f'--workdir={path} is not the folder that process 0 has under that name (on '
                    f'{socket.gethostname()}): name one on a file system that all processes share'
                )

        resumed, changed, history, token = processes.from_first(first)
        processes.agree_on_errors(lambda: see(token))
        changed = {name: (old, new) for name, (old, new) in changed.items()}
        yield Workdir(path, resumed, changed, history, *held)


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        config = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise InputError(f'{path} is damaged: it holds no config. Restore it, or give another --workdir')
    return config


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        history = read_json(path)
        for event in history if isinstance(history, list) else [history]:
            kinds: dict[tuple[str, ...], type] = {('step',): int, ('changed',): dict}
            if 'diverged' in event:
                kinds = {('step',): int, ('diverged',): dict, ('before',): int}
            check_fields(event, kinds)
        return list(history)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise InputError(f'{path} is damaged ({error}): restore it, or remove it') from error


def _same_file(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Holds an flock, which the system takes back however the process ends: no stale lock is left behind."""
    with open(path / '.lock', 'a+', encoding='utf-8', errors='replace') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or 'another process'
            raise InputError(
                f'workdir {path} is in use by {holder}: wait for it, stop it, or give another --workdir'
            ) from None
        except OSError as error:
            raise without_locks(path, error) from None
        if not _same_file(file.fileno(), path / '.lock'):
            raise InputError(f'workdir {path} was replaced just now: run the same command again')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield file.fileno()
