"""The processes of one run: how they find each other, agree, and share what each of them made.

Several processes run the same program side by side, one or more on each machine. What they compute together
goes over their devices (`si_jax.runtime.devices`); what is said here goes through the coordination service of
`jax.distributed`, which process 0 serves, so that it works while the devices are busy. Every function but
`start`, `run` and `fail` must be called by all processes in the same order; in a run of one they do no more
than call what they are given.
"""

import contextlib
import io
import itertools
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # the store of the coordination service has no public name
from jax.experimental import multihost_utils

from si_jax.errors import InputError
from si_jax.runtime import terminal, watchdog
from si_jax.runtime.terminal import Flag

Value = TypeVar('Value')
Arrays = Mapping[str, Any]


# What train.py and evaluate.py have for this.
FLAGS = {
    'distributed': Flag(
        'auto|off',
        'join the processes that a TPU pod, SLURM, Open MPI or Kubernetes started',
        default='auto',
    ),
    'coordinator_address': Flag('HOST:PORT', 'of process 0, where nothing else tells the processes'),
    'num_processes': Flag('N', 'how many there are, with --coordinator_address', int),
    'process_id': Flag('N', 'which of them this is, from 0, with --coordinator_address', int),
    'peer_timeout': Flag(
        'SECONDS', 'without a sign of life of a process, after which the others stop', float, 60.0
    ),
}
START_SECONDS = 300
# In what JAX, Orbax and gloo raise where another process is gone.
_LOST = ('Gloo', 'oordination', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'arrier')
_FOREVER = 10**9  # milliseconds: who waits for a dead peer is ended by the watchdog
_calls = itertools.count()


def start(
    *,
    distributed: str = 'auto',
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    peer_timeout: float = 60.0,
) -> None:
    """Joins the other processes; call it before anything looks at the devices.

    With all three of the address, the number and the rank these are taken. Without them JAX looks whether a
    TPU pod, SLURM (srun), Open MPI or Kubernetes started the processes; a machine where none did does not
    wait for anything.

    The arguments are the values of `FLAGS`, whose help says what they are. After `peer_timeout` the others
    stop with exit status `si_jax.runtime.watchdog.STATUS`.

    Raises:
        InputError: A value is wrong, or the others are not there after five minutes.
    """
    given = {
        'coordinator_address': coordinator_address,
        'num_processes': num_processes,
        'process_id': process_id,
    }
    if distributed not in ('auto', 'off'):
        raise InputError(f"distributed={distributed!r} is unknown: use 'auto' or 'off'")
    if not 2 <= peer_timeout < 1e6:
        raise InputError(f'peer_timeout={peer_timeout:g} is not in [2, 1e6): give seconds, for example 60')
    missing = [f'--{name}' for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(
            f'{" and ".join(missing)} must be given too: name all three of --coordinator_address, '
            '--num_processes and --process_id, or none where a TPU pod or SLURM starts the processes'
        )
    if not missing:
        _check(distributed, coordinator_address, num_processes, process_id)
    if distributed == 'off':
        return
    try:
        # The watchdog names a lost peer; JAX, which ends this process without a word of ours, comes after it.
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=None if missing else 'deactivate',
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=int(3 * peer_timeout) + 10,
        )
    except ValueError as error:
        if missing and 'coordinator_address' in str(error):
            return  # nothing started several processes
        raise _unable(error) from error
    except RuntimeError as error:
        if missing and 'must be called before' in str(error):
            return  # inside a program that uses the devices already
        raise _unable(error) from error
    except OSError as error:
        raise _unable(error) from error
    if count() > 1:
        watchdog.start(index(), count(), peer_timeout)


def _check(distributed: str, address: Any, number: Any, rank: Any) -> None:
    host, _, port = str(address).rpartition(':')
    if distributed == 'off':
        raise InputError(f"distributed='off' and coordinator_address={address!r}: leave out one of them")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f'coordinator_address={address!r} is not HOST:PORT, for example node0:8476')
    if number < 1 or not 0 <= rank < number:
        raise InputError(
            f'process_id={rank} is not in [0, num_processes={number}): the processes count from 0'
        )


def _unable(error: Exception) -> InputError:
    return InputError(
        f'the processes could not be joined ({" ".join(str(error).split())[:300]}): start all of them within '
        f'{START_SECONDS} s, see that HOST:PORT of process 0 can be reached from each, or give '
        '--coordinator_address, --num_processes and --process_id; --distributed=off runs this one alone'
    )


def index() -> int:
    """The rank of this process."""
    return jax.process_index() if distributed.global_state.client is not None else 0


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if distributed.global_state.client is not None else 1


def is_first() -> bool:
    """Whether this is the process that writes logs, metrics and results."""
    return index() == 0


def say(*words: object) -> None:
    """Prints, in the first process alone."""
    if is_first():
        print(*words, flush=True)


def gather(value: Any) -> list[Any]:
    """The values that all processes gave, by rank, in JSON's types."""
    if count() == 1:
        return [value]
    client: Any = distributed.global_state.client
    number = next(_calls)
    client.key_value_set(f'si_jax/said/{number}/{index()}', json.dumps(value))
    values = [
        client.blocking_key_value_get(f'si_jax/said/{number}/{rank}', _FOREVER) for rank in range(count())
    ]
    if number >= 2:  # all have spoken in the call before this one, so all have read the one before that
        client.key_value_delete(f'si_jax/said/{number - 2}/{index()}')
    return [json.loads(text) for text in values]


def from_first(function: Callable[[], Value]) -> Value:
    """What `function` returns in the first process, which alone calls it, in JSON's types.

    Raises:
        InputError: It raised one there. All raise it, so that they stop together.
    """
    if count() == 1:
        return function()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {'value': function()}
        except InputError as error:
            outcome = {'refused': _told(error)}
    outcome = gather(outcome)[0]
    if 'refused' in outcome:
        raise _as_told(outcome['refused'])
    return outcome['value']


def _told(error: InputError) -> list[Any]:
    """An error in JSON's types, with the point of the ball that it may have."""
    return [str(error), None if error.image is None else np.asarray(error.image).tolist()]


def _as_told(told: list[Any], before: str = '') -> InputError:
    words, image = told
    error = InputError(f'{before}{words}')
    error.image = None if image is None else np.asarray(image, np.float32)
    return error


def agree_on_errors(function: Callable[[], Value]) -> Value:
    """What `function` returns, in every process; one that refuses its input stops all of them.

    Raises:
        InputError: It raised one in this process, or in another, which is then named.
    """
    with all_or_none():
        return function()


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Within this context one process that refuses its input stops all of them, at its end.

    Raises:
        InputError: It was raised in this process, or in another, which is then named.
    """
    if count() == 1:
        yield
        return
    refused = None
    try:
        yield
    except InputError as error:
        refused = _told(error)
    others = gather(refused)
    if refused is not None:
        raise _as_told(refused)
    for rank, told in enumerate(others):
        if told is not None:
            raise _as_told(told, f'process {rank} of {count()}: ')


def gather_arrays(arrays: Arrays) -> list[Arrays]:
    """The host arrays by name that all processes gave, by rank; their shapes may differ."""
    if count() == 1:
        return [arrays]
    content = io.BytesIO()
    np.savez(content, **arrays)
    mine = np.frombuffer(content.getvalue(), np.uint8)
    sizes = gather(len(mine))
    padded = np.zeros(1 << (max(sizes) - 1).bit_length(), np.uint8)  # few sizes: each is compiled once
    padded[: len(mine)] = mine
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(count(), -1)
    return [dict(np.load(io.BytesIO(row[:size].tobytes()))) for row, size in zip(rows, sizes, strict=True)]


def share(number: int) -> slice:
    """This process's part of so many rows: contiguous, in the order of the ranks, of nearly equal sizes."""
    return slice(number * index() // count(), number * (index() + 1) // count())


def run(name: str, command: Callable[[], int | None]) -> int:
    """`terminal.run` for a command that several processes run: they end in order, or each says why not."""
    terminal.quieten()
    try:
        try:
            status = command() or terminal.OK
        except (Exception, KeyboardInterrupt) as error:
            # Of this process's disk, for example: the others need not have it.
            if isinstance(error, OSError) and count() > 1:
                print(f'{name}: {error}', file=sys.stderr)
                watchdog.leave(terminal.FAILED, f'failed: {error}')
            ended = terminal.ended_by(name, error)
            if ended is None:
                raise
            status = ended
        finally:
            if count() > 1:  # it is over: one that a signal still kills leaves the others waiting for it
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except Exception as error:
        fail(error)
    except terminal.Stopped as stop:
        watchdog.leave_in_order(int(stop.code or 0), f'was stopped by {stop.name}')
        raise
    if status:
        watchdog.leave_in_order(status, f'ended with status {status}: see its own log')
    return status


def fail(error: Exception) -> NoReturn:
    """Ends this process for an error that the others need not have; in a run of one it is raised.

    A collective operation also fails in those that were waiting for a process that died. Then that one is
    named instead.
    """
    if count() == 1:
        raise error
    traceback.print_exception(error)
    sys.stderr.flush()
    if isinstance(error, jax.errors.JaxRuntimeError) or any(word in str(error) for word in _LOST):
        watchdog.wait_for_verdict()
    watchdog.leave(1, f'failed with {type(error).__name__}: {str(error)[:300]}')
