"""Whether all processes of a run do the same: one that does not would spoil it, or be waited for for ever."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from si_jax.errors import InputError
from si_jax.runtime import processes
from si_jax.runtime.environment import environment
from si_jax.storage.trees import differences

# Of the environment: the code itself is compared.
_NOT_COMPARED = ('git_commit', 'git_dirty', 'command')


def check_identical(described: dict[str, Any]) -> None:
    """Compares this process with process 0: versions, devices, this package's source, and what is given.

    `described` is the run, in JSON's types. Fields of dictionaries in it are named one by one.

    Raises:
        InputError: A process differs; the message names it, what differs and both values. All raise it.
    """
    if processes.count() == 1:
        return
    common = {name: value for name, value in environment().items() if name not in _NOT_COMPARED}
    common |= {'devices of each process': jax.local_device_count(), 'source of si_jax': source()}
    first, *others = processes.gather(json.loads(json.dumps(common | described)))
    for rank, other in enumerate(others, 1):
        for name, (expected, found) in differences(first, other).items():
            raise InputError(
                f'process {rank} is not like process 0: {name} is {found!r} instead of {expected!r}. '
                'Start all processes with the same command, on the same code, data and versions'
            )


def source() -> str:
    """A hash of this package's source."""
    total, root = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(root.rglob('*.py')):
        total.update(f'{path.relative_to(root)} '.encode() + path.read_bytes())
    return total.hexdigest()[:16]
