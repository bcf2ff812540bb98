"""Files of a figure: its numbers as JSON, the picture as PNG and PDF."""

import io
import json
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from si_jax.errors import InputError
from si_jax.evaluation.result import check_output
from si_jax.files import write_atomic

SCHEMA = 1
DIGITS = 6  # significant ones, of what is written


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
    """Writes FILE.png and FILE.pdf, drawn from the numbers as they are written, then FILE.json.

    Args:
        path: FILE.json. Its folder must exist.
        numbers: Of JSON's types and arrays.
        draw: Numbers -> picture.
    """
    text = json.dumps({'schema': SCHEMA} | plain(numbers), indent=2, allow_nan=False)
    # A list of numbers on one line: a surface has thousands.
    text = re.sub(r'\[[^\[\]{}"]*\]', lambda match: re.sub(r'\s+', ' ', match[0]), text)
    picture = draw(json.loads(text))
    for suffix, settings in (('.png', {'dpi': 150}), ('.pdf', {'metadata': {'CreationDate': None}})):
        buffer = io.BytesIO()
        picture.savefig(buffer, format=suffix[1:], **settings)  # type: ignore[arg-type]
        write_atomic(path.with_suffix(suffix), buffer.getvalue())
    write_atomic(path, text + '\n')


def read_numbers(path: str, figures: Container[str]) -> dict[str, Any]:
    """The numbers in a file that `write` wrote.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    try:
        numbers = json.loads(check_output(path).read_text())
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{path} cannot be read as JSON ({error}): give a file of report.py --figure'
        ) from error
    schema = numbers.get('schema') if isinstance(numbers, dict) else None
    if schema != SCHEMA or numbers.get('figure') not in figures:
        raise InputError(
            f'{path} has schema {schema} and no numbers of a figure: give a file of report.py --figure'
        )
    return numbers
