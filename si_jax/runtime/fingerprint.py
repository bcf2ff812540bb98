"""Code of a user's, told from another version of it."""

import hashlib
import inspect
import tokenize
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from si_jax.storage.trees import digest

LIBRARY = __name__.partition('.')[0]


def fingerprint(value: Any) -> str:
    """A short hash of the source of what a user wrote, to tell a changed one from an older one.

    It covers the text of the functions, the values they were made with, their defaults, and what they name in
    their module: plain values, arrays, functions and classes. What other modules do is not looked at.
    """
    return hashlib.sha256('\n'.join(_text(value, set())).encode()).hexdigest()[:16]


def _program(code: types.CodeType) -> str:
    """What a function does: its instructions, the names and the constants in them."""
    constants = [_program(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return f'{code.co_code.hex()} {code.co_names} {constants}'


def _names(code: types.CodeType) -> list[str]:
    """The names that a function and the functions inside it look up, in order."""
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)]
    return sorted({*code.co_names, *inner})


def _text(value: Any, seen: set[int]) -> Iterable[str]:
    """`seen` are the functions and objects that were looked at: they may lead back to themselves."""
    if isinstance(value, str | int | float | bool | None):
        yield repr(value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        yield digest(np.asarray(value))
    elif isinstance(value, tuple | list | frozenset | set):
        items = value if isinstance(value, Sequence) else sorted(value, key=repr)
        for item in items:
            yield from _text(item, seen)
    elif isinstance(value, Mapping):
        yield from _text(sorted(value.items(), key=repr), seen)
    elif id(value) in seen:
        return
    elif hasattr(value, 'func') and hasattr(value, 'keywords'):  # functools.partial
        yield from _text((value.func, value.args, value.keywords), seen)
    elif inspect.isfunction(value) and str(value.__module__).split('.')[0] == LIBRARY:
        seen.add(id(value))
        # The version of the library says what it does; what it was made with is the user's.
        yield f'{value.__module__}.{value.__qualname__}'
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        yield from _text([cells, value.__defaults__, value.__kwdefaults__], seen)
    elif inspect.isfunction(value) or isinstance(value, type):
        seen.add(id(value))
        try:
            yield inspect.getsource(value)
        except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # no file, or one that was changed
            program = '' if isinstance(value, type) else _program(value.__code__)
            yield f'{value.__qualname__} {program}'
        if isinstance(value, type):
            yield from _text([one for one in vars(value).values() if inspect.isfunction(one)], seen)
            return
        named = {
            name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__
        }
        near = {name: one for name, one in named.items() if _is_near(one, value.__module__)}
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        yield from _text([cells, value.__defaults__, value.__kwdefaults__, near], seen)
    elif callable(value) and not isinstance(value, type) and hasattr(value, '__dict__'):
        seen.add(id(value))
        yield from _text([type(value).__call__, vars(value)], seen)
    else:
        yield type(value).__qualname__


def _is_near(value: Any, module: str) -> bool:
    """Whether what a function names belongs to its module: a value, or a function that is written there."""
    if inspect.isfunction(value) or isinstance(value, type):
        return value.__module__ == module
    values = str | int | float | bool | tuple | list | set | frozenset | Mapping
    return isinstance(value, values | np.ndarray | np.generic | jax.Array)
