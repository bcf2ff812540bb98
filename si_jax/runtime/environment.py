"""What a result was made with: versions, devices, commit, command line."""

import functools
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def environment() -> dict[str, Any]:
    """Describes where a run or an evaluation takes place, in JSON's types.

    It looks at the devices, and so must come after `jax.distributed.initialize`.

    Returns:
        Versions of Python and of the packages that results depend on, backend, kind and number of devices,
        number of processes, the git commit of the source and whether it was changed since (None outside a
        checkout), and the command line.
    """
    commit, dirty = _commit()
    return {
        'python': platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        'backend': jax.default_backend(),
        'device_kind': jax.devices()[0].device_kind,
        'device_count': jax.device_count(),
        'process_count': jax.process_count(),
        'git_commit': commit,
        'git_dirty': dirty,
        # As typed, not as resolved: where the interpreter lies on this machine says nothing.
        'command': ['python', *sys.orig_argv[1:]],
    }


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; (None, None) where the source is in no checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    found = _git(root, 'rev-parse', '--show-toplevel', 'HEAD')
    top, _, commit = (found or '').partition('\n')
    if found is None or Path(top) != root:  # an installed package may lie inside someone else's checkout
        return None, None
    changes = _git(root, 'status', '--porcelain', '--untracked-files=no')
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ['git', '-C', str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, UnicodeError, subprocess.SubprocessError):
        return None
