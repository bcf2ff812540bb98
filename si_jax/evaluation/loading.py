"""Results read back from the files that `evaluate.py` wrote, and checked.

`read` is behind `Result.load`. Whoever needs a result from a file, be it to compare it, to show it or to
check it, gets it there and nowhere else.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation import cosines
from si_jax.evaluation.table import Tabular
from si_jax.storage import files, npz
from si_jax.threat import ball_of

SCHEMA = 1
LARGEST_EPS = 1e6  # no image has so many pixels
# What an attack's entry may have, and of which kind it is where it is there and not null.
OF_ATTACK: dict[str, type] = {
    **dict.fromkeys(('single_run', 'step_size', 'max_perturbation', 'success', 'reached'), float),
    **dict.fromkeys(('restarts', 'steps', 'eot_samples', 'only'), int),
    'protocol': dict,
    'stages': list,
}
TEXTS = ('name', 'split', 'digest')  # of the data set
SECTIONS = ('model', 'environment', 'timing', 'calibration', 'gradient_of', 'robustbench', 'union', 'eot')
# What every result has, and of which kind it is.
FIELDS: dict[tuple[str, ...], type] = {
    ('dataset', 'examples'): int,
    ('threat_model', 'norm'): str,
    ('threat_model', 'eps'): float,
    ('seed',): int,
    ('precision',): dict,
    ('warnings',): list,
    ('attacks',): dict,
    ('clean', 'accuracy'): float,
    ('worst_case', 'accuracy'): float,
}
SHARE = 'share_'  # before a name, in that of the array with the shares of draws


@dataclasses.dataclass(frozen=True, eq=False)
class SavedResult(Tabular):
    """A result read back from its files.

    Attributes:
        path: The JSON file.
        about: Its content.
        correct: [N] bool by name: 'clean', each attack and 'worst_case'; empty where the flags were not read,
            as the following are None. Of a random classifier the vote.
        labels: [N].
        indices: [N].
        share: [N] by the names of `correct`, what an image counts: of a random classifier the share of right
            draws, else `correct` itself.
    """

    path: Path
    about: dict[str, Any]
    correct: dict[str, np.ndarray]
    labels: Any
    indices: Any
    share: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`about`: what the file holds."""
        return self.about


def read(path: Path, *, flags: bool) -> SavedResult:
    """`Result.load`."""
    with reading(path, 'is not JSON, or damaged', 'give what evaluate.py wrote'):
        content = files.read_json(path)
    about = check_json(path, content)
    return SavedResult(path, about, *(_flags_of(path, about) if flags else ({}, None, None, {})))


def check_json(path: Path, about: Any) -> dict[str, Any]:
    """The content of a result's JSON file at `path`, checked: what every result has is there.

    Raises:
        InputError: It is of another schema, or something else than a result.
    """
    if not isinstance(about, dict) or 'schema' not in about:
        raise InputError(f'{path} is no result of evaluate.py: it has no schema')
    if about['schema'] != SCHEMA:
        raise InputError(
            f'{path} has schema {about["schema"]!r}, known is {SCHEMA}: evaluate again with this version'
        )
    try:
        files.check_fields(about, FIELDS)
        _check_kinds(about)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'{path} is JSON, but no result of evaluate.py ({error}): give the file of an evaluation, not '
            'that of a comparison or an audit'
        ) from None
    return about


def _check_kinds(about: dict[str, Any]) -> None:
    """Raises ValueError unless all that is read of a result is of its kind, where it is there."""
    optional: dict[tuple[str, ...], type] = {('dataset', 'classes'): int, ('overestimation_gap',): float}
    optional['decisions',] = int
    optional.update({('dataset', name): str for name in TEXTS})
    optional.update({(name,): dict for name in SECTIONS} | {('model', 'logit_scale'): float})
    if 'union' in about:
        optional[('union', 'worst_case')] = dict
        files.check_fields(about, {('union', 'accuracy'): float})
    if 'si' in about:
        files.check_fields(about, {('si', name): float for name in cosines.FIELDS})
    for name in about['attacks']:
        files.check_fields(about, {('attacks', name): dict, ('attacks', name, 'accuracy'): float})
        optional.update({('attacks', name, key): kind for key, kind in OF_ATTACK.items()})
        for stage in about['attacks'][name].get('stages') or []:
            files.check_fields(stage, {('attack',): str, ('accuracy',): float})
    there = {path: kind for path, kind in optional.items() if _value(about, path) is not None}
    files.check_fields(about, there)
    shares = [about['clean'], about['worst_case'], *about['attacks'].values()]
    checks: dict[str, bool] = {
        'dataset.examples is below 1': about['dataset']['examples'] >= 1,
        'threat_model.eps is no radius': 0 <= about['threat_model']['eps'] < LARGEST_EPS,
        'an accuracy is not in [0, 1]': all(0 <= one['accuracy'] <= 1 for one in shares),
        'a warning is no text': all(isinstance(one, str) for one in about['warnings']),
        'a precision is no text': all(isinstance(one, str) for one in about['precision'].values()),
    }
    ball_of(about['threat_model']['norm'])
    if wrong := next((words for words, right in checks.items() if not right), ''):
        raise ValueError(wrong)


def _value(content: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _flags_of(
    path: Path, about: dict[str, Any]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Flags by name, labels, indices and shares by name from the npz file of a result."""
    flags = path.with_suffix('.npz')
    names = ['clean', *about['attacks'], 'worst_case']
    with reading(flags, f'does not hold the flags of {path}, or is damaged', 'evaluate again'):
        of_draws = [f'{SHARE}{name}' for name in names] if 'decisions' in about else []
        arrays = npz.read(flags, (*names, *of_draws, 'labels', 'indices'))
    labels, indices = arrays.pop('labels'), arrays.pop('indices')
    shape = (about['dataset']['examples'],)
    for name, array in {'labels': labels, 'indices': indices}.items():
        if array.shape != shape or array.dtype.kind not in 'iu':
            raise InputError(
                f'{name!r} in {flags} is {array.dtype} {array.shape}, where {path} speaks of {shape[0]} '
                'images: the two files come from different evaluations; evaluate again'
            )
    correct = {name: arrays[name] for name in names}
    share = {name: arrays[f'{SHARE}{name}'] for name in names} if of_draws else correct
    for name, flag in correct.items():
        accuracy = (about['attacks'] if name in about['attacks'] else about)[name]['accuracy']
        right = flag.dtype == bool and flag.shape == shape == share[name].shape
        # More than half of the draws make the flag.
        if of_draws and right:
            right = share[name].dtype == np.float64 and np.array_equal(share[name] > 0.5, flag)
        if not right or not np.isclose(share[name].mean(), accuracy):
            raise InputError(
                f'{name!r} in {flags} does not belong to the accuracy in {path}: the two files come from '
                'different evaluations; evaluate again'
            )
    return correct, labels, indices, share


@contextlib.contextmanager
def reading(path: Path, otherwise: str, remedy: str) -> Iterator[None]:
    """Errors of reading a file become input errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f'there is no file {path}: a comparison needs the JSON file that evaluate.py wrote, and the '
            'flags of each image beside it as .npz'
        ) from error
    except OSError as error:
        raise InputError(
            f'{path} cannot be read ({error.strerror}): give a JSON file of evaluate.py'
        ) from error
    except ValueError as error:
        raise InputError(f'{path} {otherwise} ({error}): {remedy}') from error
