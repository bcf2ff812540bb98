"""Python files of the user's, imported by their path."""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from si_jax.errors import InputError
from si_jax.runtime import terminal

_imported: set[str] = set()  # what `import_file` put among the modules


@contextlib.contextmanager
def unended(what: str) -> Iterator[None]:
    """Code of the user's cannot end the command from within it: that would look as if all were done."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop, terminal.Stopped):
            raise
        raise InputError(
            f'{what} called sys.exit({"" if stop.code is None else repr(stop.code)}), and nothing is there '
            "to go on with: put what a script does of its own under `if __name__ == '__main__':`"
        ) from stop


def import_file(file: str, what: str) -> ModuleType:
    """The module of a file, run anew; `what` names it in errors.

    Raises:
        InputError: There is no such file, or it ends the program.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f'{what}: there is no file {file}')
    name = path.stem
    if name in sys.modules and name not in _imported:  # a file may be called torch.py
        name = f'{name}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}'
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours, as a script can
    # Data classes, flax and pickle look the module of a class up there.
    before, sys.modules[name] = sys.modules.get(name), module
    _imported.add(name)
    try:
        with unended(what):
            spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
        raise
    return module
