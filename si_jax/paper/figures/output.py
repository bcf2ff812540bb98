"""Files of a figure: its numbers as JSON, the picture as PNG and PDF."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from si_jax.errors import InputError
from si_jax.evaluation.result import check_output
from si_jax.storage.files import read_json, write_atomic

SCHEMA = 1
DIGITS = 5  # significant ones, of what is written


def plain(value: Any) -> Any:
    """The value in JSON's types; arrays become lists, floats are rounded to `DIGITS` significant digits."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def write(path: Path, numbers: dict[str, Any], draw: Callable[[dict[str, Any]], Picture]) -> None:
    """Writes FILE.json, then FILE.png and FILE.pdf, drawn from the numbers as they are written.

    Args:
        path: FILE.json. Its folder must exist.
        numbers: Of JSON's types and arrays.
        draw: Numbers -> picture.
    """
    text = json.dumps({'schema': SCHEMA} | plain(numbers), indent=2, allow_nan=False)
    # A list of numbers on one line: a surface has thousands.
    text = re.sub(r'\[[^\[\]{}"]*\]', lambda match: re.sub(r'\s+', ' ', match[0]), text)
    # First what took long: the pictures can be drawn again from it, and by it they are known as ours.
    write_atomic(path, text + '\n')
    write_pictures(path, json.loads(text), draw)


def write_pictures(path: Path, numbers: dict[str, Any], draw: Callable[[dict[str, Any]], Picture]) -> None:
    """Draws the numbers of FILE.json into FILE.png and FILE.pdf."""
    picture = draw(numbers)
    settings: dict[str, dict[str, Any]] = {'png': {'dpi': 150}, 'pdf': {'metadata': {'CreationDate': None}}}
    for kind, options in settings.items():
        buffer = io.BytesIO()
        picture.savefig(buffer, format=kind, **options)
        write_atomic(path.with_suffix(f'.{kind}'), buffer.getvalue())


def read_numbers(path: str, figure: str) -> dict[str, Any]:
    """The numbers of a figure in a file that `write` wrote.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    file = check_output(path)
    try:
        numbers = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read ({error}): give a file that --figure wrote') from error
    found = numbers if isinstance(numbers, dict) else {}
    if found.get('schema') != SCHEMA or found.get('figure') != figure:
        raise InputError(
            f'{path} holds schema {found.get("schema")}, figure {found.get("figure")}, not schema {SCHEMA}, '
            f'figure {figure}: give a file that --figure={figure} wrote'
        )
    return found
