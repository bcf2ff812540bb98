"""Results read back from their files, and whether two of them were measured alike."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax import archives, files
from si_jax.errors import InputError
from si_jax.evaluation.result import SCHEMA

# What both must have measured alike, apart from the images: field of the attack in the JSON.
PROTOCOL = ('steps', 'step_size', 'restarts', 'eot_samples', 'protocol')
# What every result has, and of which kind it is.
FIELDS: dict[tuple[str, ...], type] = {
    ('dataset',): dict,
    ('dataset', 'examples'): int,
    ('threat_model',): dict,
    ('threat_model', 'norm'): str,
    ('threat_model', 'eps'): float,
    ('seed',): int,
    ('precision',): dict,
    ('warnings',): list,
    ('attacks',): dict,
    ('clean',): dict,
    ('clean', 'accuracy'): float,
    ('worst_case',): dict,
    ('worst_case', 'accuracy'): float,
}


class Measured(NamedTuple):
    """A result read back from its files.

    Attributes:
        path: The JSON file.
        about: Its content.
        correct: [N] bool by name: 'clean', each attack and 'worst_case'.
        labels: [N].
        indices: [N].
    """

    path: Path
    about: dict[str, Any]
    correct: dict[str, np.ndarray]
    labels: np.ndarray
    indices: np.ndarray


def read(path: Path) -> Measured:
    """Reads a result's JSON file and the flags beside it.

    Raises:
        InputError: A file is missing, cannot be read, is damaged or something else than a result, or the two
            do not belong together.
    """
    about = read_json(path)
    flags = path.with_suffix('.npz')
    names = ['clean', *about['attacks'], 'worst_case']
    arrays = _read_flags(path, flags, (*names, 'labels', 'indices'))
    labels, indices = arrays.pop('labels'), arrays.pop('indices')
    shape = (about['dataset']['examples'],)
    for name, array in {'labels': labels, 'indices': indices}.items():
        if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f'{name!r} in {flags} is {array.dtype} {array.shape}, where {path} speaks of {shape[0]} '
                'images: the two files come from different evaluations; evaluate again'
            )
    for name, flag in arrays.items():
        accuracy = (about['attacks'] if name in about['attacks'] else about)[name]['accuracy']
        if flag.dtype != bool or flag.shape != shape or not np.isclose(flag.mean(), accuracy):
            raise InputError(
                f'{name!r} in {flags} does not belong to the accuracy in {path}: the two files come from '
                'different evaluations; evaluate again'
            )
    return Measured(path, about, arrays, labels, indices)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a result's JSON file, with everything in it that a comparison needs.

    Raises:
        InputError: It is missing, damaged, or something else than a result.
    """
    try:
        about = files.read_json(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f'{path} is not JSON, or damaged ({error}): give what evaluate.py wrote') from None
    if not isinstance(about, dict) or 'schema' not in about:
        raise InputError(f'{path} is no result of evaluate.py: it has no schema')
    if about['schema'] != SCHEMA:
        raise InputError(
            f'{path} has schema {about["schema"]!r}, known is {SCHEMA}: evaluate again with this version'
        )
    try:
        files.check_fields(about, FIELDS)
        for name in about['attacks']:
            files.check_fields(about, {('attacks', name): dict, ('attacks', name, 'accuracy'): float})
    except ValueError as error:
        raise InputError(
            f'{path} is JSON, but no result of evaluate.py ({error}): give the file of an evaluation, not '
            'that of a comparison or an audit'
        ) from None
    return about


def _read_flags(path: Path, flags: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        return archives.read(flags, names)
    except OSError as error:
        raise _unreadable(flags, error) from error
    except ValueError as error:
        raise InputError(
            f'{flags} does not hold the flags of {path}, or is damaged ({error}): evaluate again'
        ) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(
            f'there is no file {path}: a comparison needs the JSON file that evaluate.py wrote, and the '
            'flags of each image beside it as .npz'
        )
    return InputError(f'{path} cannot be read ({error.strerror}): give a JSON file of evaluate.py')


def check_alike(first: Measured, other: Measured) -> None:
    """Raises InputError unless both were measured alike: on the same images, in the same way."""

    def refuse(what: str, mine: Any, others: Any, remedy: str) -> None:
        raise InputError(
            f'{first.path} and {other.path} cannot be compared, {what}: {mine} and {others}; {remedy}'
        )

    mine, others = first.about, other.about
    for key in ('name', 'split', 'classes'):
        if mine['dataset'].get(key) != others['dataset'].get(key):
            refuse(
                f'the data sets differ ({key})',
                mine['dataset'].get(key),
                others['dataset'].get(key),
                'evaluate both on the same data set',
            )
    if len(first.indices) != len(other.indices):
        refuse(
            'the numbers of images differ',
            len(first.indices),
            len(other.indices),
            'evaluate both with the same --num_examples',
        )
    for what, x, y in (
        ('images', first.indices, other.indices),
        ('labels', first.labels, other.labels),
    ):
        if not np.array_equal(x, y):
            i = int(np.argmax(x != y))
            refuse(f'the {what} differ, first in row {i}', x[i], y[i], 'evaluate both on the same images')
    x, y = (about['dataset'].get('digest') for about in (mine, others))
    if None not in (x, y) and x != y:
        refuse(
            'the images differ, though numbers and labels are equal (SHA-256)',
            str(x)[:12],
            str(y)[:12],
            'evaluate both on the same pixels: the same preparation of the data set, in the same order',
        )
    for key in ('norm', 'eps'):
        if mine['threat_model'][key] != others['threat_model'][key]:
            refuse(
                f'{key} differs',
                mine['threat_model'][key],
                others['threat_model'][key],
                f'evaluate both with the same --{key}',
            )
    if list(mine['attacks']) != list(others['attacks']):
        refuse(
            'the attacks differ',
            ','.join(mine['attacks']),
            ','.join(others['attacks']),
            'evaluate both with the same --attacks, or their worst cases mean different things',
        )
    for name in mine['attacks']:
        for key in PROTOCOL:
            x, y = (about['attacks'][name].get(key) for about in (mine, others))
            if x != y:
                refuse(f'the protocols of {name} differ in {key}', x, y, 'evaluate both with the same flags')
