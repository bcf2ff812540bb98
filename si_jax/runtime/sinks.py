"""Sinks: where numbers go beside the files that a command writes.

    tensorboard    events in the folder `tensorboard`
    wandb          Weights & Biases, `pip install wandb`; WANDB_MODE=offline needs no network
    trackio        which has the same functions and keeps its numbers on this machine, `pip install trackio`
    FILE.py:NAME   a sink of your own

A sink is an object with the two methods of `Sink`. It is made when a command begins, by a function or class
that takes a `Start`; `register` gives it a name, or its file is named as `FILE.py:NAME`:

    class Print:
        def __init__(self, start):
            self.name = start.name

        def write(self, step, scalars):
            print(self.name, step, scalars)

        def close(self):
            pass

The files remain the record: a sink that fails is left out from then on, which is said once.
"""

import importlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from si_jax.errors import InputError, unknown
from si_jax.runtime.modules import import_file
from si_jax.storage.files import no_room, write_atomic

PROJECT = 'si_jax'  # for wandb and trackio, unless WANDB_PROJECT or TRACKIO_PROJECT names another


class Start(NamedTuple):
    """What a sink is told when it is made.

    Attributes:
        folder: Of the run or result that the numbers are of.
        name: What to call it.
        config: All fields of the run's config, or what is known of an evaluation; in JSON's types.
        purge_step: The first step of what is written now, where a run goes on: what a sink has of this step
            and later ones is written again. 0 or None where nothing was written before.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    purge_step: int | None = None


class Sink(Protocol):
    """What takes numbers."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the numbers of a training step, by name."""

    def close(self) -> None:
        """Called once, when nothing more comes."""


Make = Callable[[Start], Sink]


class TensorBoard:
    """Events in the folder `tensorboard`; the file is made when the first number comes."""

    def __init__(self, start: Start):
        self._start = start
        self._events: Any = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter  # slow to import, and evaluation needs none of it

            folder = self._start.folder / 'tensorboard'
            # The library names files by the second: without the count, two starts in one would share a file.
            count = len(list(folder.glob('*'))) if folder.is_dir() else 0
            self._events = SummaryWriter(
                str(folder),
                purge_step=self._start.purge_step,
                flush_secs=10,
                filename_suffix=f'.{count:04d}',
            )
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Tracker:
    """A run of wandb, or of a library with its functions: `init`, and `log` and `finish` of what it returns.

    What tells the run from others is kept in the folder, as `<library>.id`, so that a training that goes on
    is one curve. wandb passes over steps that it has already; they have the same values.
    """

    def __init__(self, library: str, start: Start):
        start.folder.mkdir(parents=True, exist_ok=True)
        known = start.folder / f'{library}.id'
        if not start.purge_step or not known.is_file():
            write_atomic(known, secrets.token_hex(6))
        identity = known.read_text(encoding='utf-8')
        more = {'id': identity, 'dir': str(start.folder)} if library == 'wandb' else {}
        try:
            self._run = importlib.import_module(library).init(
                project=os.environ.get(f'{library.upper()}_PROJECT') or PROJECT,
                name=f'{start.name}-{identity}',
                config=dict(start.config),
                resume='allow',
                **more,
            )
        except Exception as error:  # of whatever type: the library's own, or of a network
            offline = ' or set WANDB_MODE=offline,' if library == 'wandb' else ''
            raise InputError(
                f'{library} cannot begin ({type(error).__name__}: {error}): log in to it,{offline} or leave '
                f'{library} out of the sinks'
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


LIBRARIES = ('wandb', 'trackio')
SINKS: dict[str, Make] = {
    'tensorboard': TensorBoard,
    'wandb': lambda start: Tracker('wandb', start),
    'trackio': lambda start: Tracker('trackio', start),
}


def register(name: str, make: Make) -> None:
    """Adds a sink to those that can be named; one that was registered before is replaced."""
    if not name or not callable(make) or set(name) & set(',:'):
        raise InputError(f'sink {name!r} needs a name without comma and colon, and a function of a Start')
    SINKS[name] = make


def parse(names: str, field: str) -> dict[str, Make]:
    """The sinks in a comma string, before anything is computed.

    Args:
        names: Of `SINKS`, or `FILE.py:NAME`.
        field: The flag or field that has them, for the errors.

    Raises:
        InputError: There is no such sink, or its library is not installed.
    """
    found: dict[str, Make] = {}
    for name in filter(None, map(str.strip, names.split(','))):
        file, colon, attribute = name.rpartition(':')
        if colon and file.endswith('.py'):
            make = getattr(import_file(file, f'{field}={name}'), attribute, None)
            if not callable(make):
                raise InputError(f'{field}={name}: {file} has no function or class {attribute!r}')
            found[name] = make
            continue
        if name not in SINKS:
            raise unknown('sink', name, [*SINKS, 'FILE.py:NAME'])
        if name in LIBRARIES and name not in sys.modules and importlib.util.find_spec(name) is None:
            raise InputError(f'{field}={names} needs {name}, which is not installed: pip install {name}')
        found[name] = SINKS[name]
    return found


class Sinks:
    """Some sinks as one.

    Args:
        makes: From `parse`.
        start: What each is told.

    Raises:
        InputError: wandb or trackio cannot begin.
    """

    def __init__(self, makes: Mapping[str, Make], start: Start):
        self._open = {name: make(start) for name, make in makes.items()}

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Hands over those values that are numbers.

        Raises:
            OSError: There is no room on the disk.
        """
        scalars = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name, sink in list(self._open.items()):
            try:
                sink.write(step, scalars)
            except Exception as error:
                if no_room(error):
                    raise
                del self._open[name]
                print(
                    f'warning: the sink {name} failed ({type(error).__name__}: {error}) and gets nothing '
                    'more; the files have all numbers',
                    file=sys.stderr,
                )

    def close(self) -> None:
        """Closes all of them; again does nothing."""
        for name in list(self._open):
            self._open.pop(name).close()


def name_of(folder: Path) -> str:
    """What a run in this folder is called: the last two parts of its path."""
    parts: Sequence[str] = folder.resolve().parts[-2:]
    return '-'.join(part.strip('/') for part in parts)
