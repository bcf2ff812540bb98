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


def fingerprint(value: Any) -> str:
    """A short hash of the source of what a user wrote, to tell a changed one from an older one.

    It covers the text of the functions, the values they were made with, their defaults, and what they name in
    their module: plain values, arrays and functions. What other modules do is not looked at.
    """
    return hashlib.sha256('\n'.join(_text(value, set())).encode()).hexdigest()[:16]


def _program(code: types.CodeType) -> str:
    """What a function does: its instructions, the names and the constants in them."""
    constants = [_program(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return f'{code.co_code.hex()} {code.co_names} {constants}'


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
    elif inspect.isfunction(value):
        seen.add(id(value))
        try:
            yield inspect.getsource(value)
        except (OSError, SyntaxError, tokenize.TokenError):  # no file, or one that was changed since
            yield f'{value.__qualname__} {_program(value.__code__)}'
        named = {
            name: value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__
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
    if inspect.isfunction(value):
        return value.__module__ == module
    return isinstance(value, str | int | float | bool | tuple | list | np.ndarray | np.generic | jax.Array)
