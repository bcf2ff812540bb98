"""An evaluation on disk, so that one that was interrupted goes on where it was.

The folder holds one file for each finished unit of work (a run of an attack, or a part of the images in it)
with its digest, and says which evaluation they belong to. The evaluation is the same program after a restart:
it asks for its units in the same order and gets the finished ones from the folder, so the result is
identical.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.tolerances import FLOAT32, disagreement
from si_jax.runtime import processes
from si_jax.runtime.progress import part
from si_jax.storage import lock, npz
from si_jax.storage.files import is_leftover, read_json, remove_leftovers, write_atomic, write_json
from si_jax.storage.lock import locked
from si_jax.storage.trees import digest

Arrays = dict[str, Any]  # NumPy arrays and numbers
DIGEST = 'digest'  # of a unit, among its arrays
CLEAN = 'clean'  # the unit by which the model is known again


class Work(NamedTuple):
    """A unit of work.

    Attributes:
        cost: In the units of the progress; None for a unit that is no part of its own.
        compute: Makes its arrays, on the devices of one process; `progress.done` says how far it is.
    """

    name: str
    cost: int | None
    compute: Callable[[], Arrays]


def is_one(folder: Path) -> bool:
    """Whether a folder is the state of an evaluation, or of a sweep, which has a folder for each radius.

    An empty one is, and so is one that has the clean logits alone: a command that was killed as it began, or
    at its end, leaves that.
    """
    if not folder.is_dir():
        return False
    found = {path for path in folder.iterdir() if not is_leftover(path)}
    if folder / 'identity.json' in found:
        return True
    return all(is_one(path) for path in found if path.name not in (lock.NAME, f'{CLEAN}.npz'))


def begun(folder: str | os.PathLike | None) -> dict[str, Any]:
    """What the evaluation in a folder is made of; empty if there is none that can be read."""

    def read() -> dict[str, Any]:
        try:
            before = read_json(Path(folder or '') / 'identity.json')
        except (OSError, ValueError):
            return {}
        return before if isinstance(before, dict) else {}

    return processes.from_first(read) if folder is not None else {}


# The states that this command, or this thread of it, has locked.
_locked: ContextVar[frozenset[Path]] = ContextVar('si_jax_locked', default=frozenset())


@contextlib.contextmanager
def alone(folder: str | os.PathLike | None) -> Iterator[None]:
    """Within it no other command can work on the state in this folder; the first process holds the lock.

    Raises:
        InputError: One does; the message says who, and since when.
    """
    place = None if folder is None else Path(folder).resolve()
    if place is None or place in _locked.get():
        yield
        return
    with contextlib.ExitStack() as stack:
        remedy = 'wait for it, stop it, or give another place for the state: state_path, --output=FILE.json'
        processes.from_first(lambda: stack.enter_context(locked(place, remedy)))
        token = _locked.set(_locked.get() | {place})
        stack.callback(_locked.reset, token)
        yield


class Saved:
    """The finished units of an evaluation; without a folder it remembers nothing.

    with Saved(folder, identity, logits):
        arrays = remember('unit', compute)

    Several processes share the units. The first one alone reads and writes them.

    Args:
        folder: Where they lie. Made when the first one is written.
        identity: What the evaluation is made of, in JSON's types: it must be the same to go on.
        logits: [N, K], of the clean images: the same model gives them again, to rounding.
        coarse: The resolution of the model's program.

    Raises:
        InputError: The folder holds the units of another evaluation; the message names the differences.
            Later, as one is asked for: a unit is whole, but not what this evaluation wrote.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        identity: dict[str, Any],
        logits: np.ndarray,
        coarse: float = FLOAT32,
    ):
        self._coarse = coarse
        self._folder = place = None if folder is None else Path(folder)
        # Without the digests of programs, which are others in another version of JAX.
        lasting = {name: value for name, value in identity.items() if _version(value) is None}
        self._identity = json.dumps(lasting, sort_keys=True)
        self._tokens: list[Any] = []
        if place is not None:
            processes.from_first(lambda: self._open(place, identity, logits))

    def _open(self, folder: Path, identity: dict[str, Any], logits: np.ndarray) -> None:
        path = folder / 'identity.json'
        try:
            before = read_json(path)
            if not isinstance(before, dict):
                raise ValueError('it is no table of settings')
        except FileNotFoundError:
            if folder.exists() and (not is_one(folder) or any(folder.glob('*/'))):
                raise InputError(
                    f'{str(folder)!r} is no state of an evaluation: give another place'
                ) from None
            remove_leftovers(folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._write(CLEAN, {'logits': logits})
            write_json(path, identity)
            return
        except ValueError as error:
            raise InputError(f'{path} is damaged ({error}): remove {str(folder)!r} to begin anew') from None
        identity = json.loads(json.dumps(identity))
        names = [name for name in sorted(before.keys() | identity.keys()) if _differ(before, identity, name)]
        differences = [f'{name} was {before.get(name)!r} and is {identity.get(name)!r}' for name in names]
        # The logits tell more than the digest of a program does.
        if not any(_version(identity.get(name)) is None for name in names):
            there = self._read(CLEAN)
            if there is None or there['logits'].shape != logits.shape:
                differences.append('the logits of the clean images cannot be compared')
            elif difference := disagreement(logits, there['logits'], self._coarse):
                differences.append(f'the model differs, by {difference} on the clean images')
        if differences:
            raise InputError(
                f'{str(folder)!r} holds the state of another evaluation: {"; ".join(differences)}. Go on '
                'with that one, choose another output, or remove the folder'
            )

    def __enter__(self) -> 'Saved':
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    def _read(self, unit: str) -> Arrays | None:
        if self._folder is None:
            return None
        path = self._folder / f'{unit}.npz'
        try:
            arrays = npz.read(path)
        except (FileNotFoundError, npz.ArchiveError):
            return None  # not there yet, or damaged: it is computed again
        if str(arrays.pop(DIGEST, '')) != self._digest(unit, arrays):
            remedy = f'Remove {str(self._folder)!r} to begin anew'
            if unit != CLEAN:
                remedy = 'Remove that file to have this part computed again'
            raise InputError(
                f'{path} is not what this evaluation wrote there: its digest is missing, as in older '
                f'versions, or is that of other arrays, another part or another evaluation. {remedy}'
            )
        return arrays

    def _digest(self, unit: str, arrays: Arrays) -> str:
        """Of what a unit holds, and of the evaluation and the unit that it is of. It tells no intention."""
        names = sorted(arrays)
        return digest(*(arrays[name] for name in names), np.array(json.dumps([self._identity, unit, names])))

    def _write(self, unit: str, arrays: Arrays) -> None:
        if self._folder is not None:
            content = io.BytesIO()
            # As NumPy reads them back: 0-dimensional numbers become arrays.
            arrays = {name: np.asarray(array) for name, array in arrays.items()}
            np.savez(content, **arrays | {DIGEST: np.array(self._digest(unit, arrays))})
            try:
                write_atomic(self._folder / f'{unit}.npz', content.getvalue())
            except OSError as error:
                raise OSError(
                    error.errno,
                    f'could not keep {unit} in {self._folder}: {error.strerror}. What was finished before '
                    'it is there: free some space and run the same command again',
                ) from error


def _differ(before: dict[str, Any], identity: dict[str, Any], name: str) -> bool:
    """Whether two evaluations are not the same in one respect.

    What has a digest beside the versions that it holds for can be compared within one version only; a state
    from before there were such digests says nothing of them.
    """
    old, new = before.get(name), identity.get(name)
    if _version(new) is not None and (old is None or _version(old) != _version(new)):
        return False
    return old != new


def _version(value: Any) -> dict[str, Any] | None:
    """What a digest holds for; None for what is no digest of that kind."""
    if not isinstance(value, dict) or 'digest' not in value:
        return None
    return {key: one for key, one in value.items() if key != 'digest'}


# Where the evaluation that is under way keeps what is finished, so that no attack takes it as an argument.
_current: ContextVar[Saved] = ContextVar('si_jax_saved', default=Saved(None, {}, np.zeros(0)))  # noqa: B039


def unsaved() -> Saved:
    """Within `with unsaved():` nothing is kept, and nothing that was kept is found."""
    return Saved(None, {}, np.zeros(0))


def remember(unit: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays of a unit: from the folder, or computed and written there.

    What `compute` says of its progress counts for the part of the work that is under way.
    """
    return remember_all([Work(unit, None, compute)])[0]


def remember_all(work: Sequence[Work]) -> list[Arrays]:
    """The arrays of units that need nothing of each other, in order.

    Each process computes some, and all get all.
    """
    saved, found = _current.get(), []
    for first in range(0, len(work), processes.count()):
        some = work[first : first + processes.count()]
        given: dict[str, Arrays] = {}

        def look(some: Sequence[Work] = some, given: dict[str, Arrays] = given) -> list[str]:
            found = {unit.name: saved._read(unit.name) for unit in some}
            given |= {name: arrays for name, arrays in found.items() if arrays is not None}
            return [name for name, arrays in found.items() if arrays is None]

        missing = processes.from_first(look)
        # The units of a round take about as long as each other: this process's stands for all.
        costs = [unit.cost for unit in some if unit.cost is not None]
        with part(sum(costs)) if costs else contextlib.nullcontext(), processes.all_or_none():
            for unit in some[processes.index() : processes.index() + 1]:
                if unit.name in missing:
                    given[unit.name] = unit.compute()
        arrays = _from_all(given)
        if processes.is_first():
            for name in missing:
                saved._write(name, arrays[name])
        found += [arrays[unit.name] for unit in some]
    return found


def _from_all(units: dict[str, Arrays]) -> dict[str, Arrays]:
    """The units that the processes have, each with its arrays, in all of them."""
    if processes.count() == 1:
        return units
    flat = {f'{name}/{key}': array for name, arrays in units.items() for key, array in arrays.items()}
    whole: dict[str, Arrays] = {}
    for given in processes.gather_arrays(flat):
        for path, array in given.items():
            name, _, key = path.rpartition('/')
            whole.setdefault(name, {})[key] = array
    return whole


def remove(folder: str | os.PathLike) -> None:
    """Removes the state, once the result is safe; the folder stays if something else lies in it.

    In an order in which what is left at any time can be gone on with, or begun anew.
    """
    place, clean = Path(folder), Path(folder) / f'{CLEAN}.npz'
    remove_leftovers(place)
    units = [path for path in place.glob('*.npz') if path != clean]
    for path in (*units, place / 'identity.json', clean, place / lock.NAME):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.rmdir()
