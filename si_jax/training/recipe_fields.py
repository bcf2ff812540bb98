"""The fields of a config as a table: `python train.py --help`, and the page about configs."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from si_jax.runtime.terminal import wrapped
from si_jax.training import recipes


class Field(NamedTuple):
    """A field of a config."""

    name: str  # as on the command line, without `--config.`
    value: Any
    comment: str  # what si_jax/training/recipes/fields.py says of it; '' if nothing


def fields(config: ConfigDict) -> list[Field]:
    """All fields in order."""
    comments = dict(_comments())
    return [Field(name, value, comments.get(name, '')) for name, value in flat(config.to_dict())]


def flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted names and values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def show(value: Any) -> str:
    """A value as it is typed behind `=`, short."""
    if isinstance(value, tuple | list):
        return f'({", ".join(map(show, value))}{"," if len(value) == 1 else ""})'
    return (
        f'{value:.4g}' if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value)
    )


def text(config: ConfigDict) -> str:
    """The fields in lines of 80 columns."""
    lines = []
    for name, value, comment in fields(config):
        lines += wrapped(f'  {name:<28} {show(value):<10} ', comment or '\0')
    return '\n'.join(line.rstrip('\0 ') for line in lines)


def _comments() -> Iterator[tuple[str, str]]:
    """What stands behind a field, or above it, where the configs are made."""
    for function, pattern in ((recipes.paper, r'config\.([\w.]+) = '), (recipes.defense, r"'(\w+)': ")):
        prefix, above = 'defense.' * (function is recipes.defense), ''
        for line in inspect.getsource(function).splitlines():
            code, _, comment = line.partition('  # ')
            if line.lstrip().startswith('# '):
                above = f'{above} {line.lstrip(" #")}'.strip()
                continue
            if found := re.match(rf'\s*{pattern}', code):
                yield prefix + found[1], (comment or above)
            above = ''
