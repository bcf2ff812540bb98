"""Attacks of the user's own beside those of the catalogue: run, audited and verified alike.

An own attack is an `Attack` record, which runs as the PGD family does, or any callable
(classifier, images, labels, threat, key) -> images.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.pgd import Attack
from si_jax.attacks.registry import ATTACKS, PRESETS, SEARCHES, stages
from si_jax.attacks.registry import parse as parse_names
from si_jax.errors import InputError
from si_jax.evaluation.network import Program
from si_jax.evaluation.pgd import restarts_of
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.state import Arrays, Saved
from si_jax.outputs import Outputs
from si_jax.runtime.progress import GRADIENT, Part, Progress
from si_jax.threat import Threat

Array = jax.Array
Own = Callable[[Any, Array, Array, Threat, Array], Any]
# Names that the files of a result use for something else.
TAKEN = ('clean', 'worst_case', 'labels', 'indices')
TAKEN_PREFIXES = ('transfer-', 'broken_by_', 'queries_', 'distances_')
UNNAMED = 'own'
COST = 20 * GRADIENT  # in forward passes, for the progress: nobody knows
UNIT = 'own.'  # before the names of finished parts on disk, where no other attack has a dot


def parse(attacks: Any) -> tuple[tuple[str, ...], dict[str, Attack | Own]]:
    """The names of the attacks in order, and by name those that are the user's own.

    Args:
        attacks: A comma string, an attack of the user's own, or a sequence of names, own attacks and pairs
            (name, own attack). A function is named after itself; `Attack` records and functions without a
            name are called 'own'.

    Raises:
        InputError: An unknown name, one given twice, one that is taken, or something that is no attack.
    """
    if isinstance(attacks, str | Attack) or callable(attacks):
        attacks = [attacks]
    names: list[str] = []
    own: dict[str, Attack | Own] = {}
    for attack in attacks:
        if isinstance(attack, str):
            names += parse_names(attack)
            continue
        name, attack = attack if _is_pair(attack) else (_name_of(attack), attack)
        _check(name, attack)
        names.append(name)
        own[name] = attack
    for name in names:
        if names.count(name) > 1:
            advice = "give pairs ('name', attack)" if name in own else 'give it once'
            raise InputError(f'attack {name!r} is given {names.count(name)} times: {advice}')
    return (tuple(names) if names else parse_names(())), own


def _is_pair(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and isinstance(value[0], str)


def _name_of(attack: Any) -> str:
    name = getattr(getattr(attack, 'func', attack), '__name__', UNNAMED)  # functools.partial has .func
    return UNNAMED if name == '<lambda>' else name


def _check(name: str, attack: Any) -> None:
    if not isinstance(attack, Attack) and not callable(attack):
        raise InputError(
            f'{attack!r} is no attack: give a name, an Attack record, or a callable (classifier, images, '
            'labels, threat, key) -> images'
        )
    if name in (*ATTACKS, *SEARCHES, *PRESETS, *TAKEN) or name.startswith(TAKEN_PREFIXES):
        raise InputError(
            f'an attack of your own cannot be called {name!r}, which is taken: rename it, or give a pair '
            "('name', attack)"
        )
    check_name(name)


def check_name(name: Any) -> None:
    """Raises InputError unless a row of the result, and its files, can be called this."""
    if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9][\w.-]*', name):
        raise InputError(f'{name!r} cannot be a name: use letters, digits and . - _')


def needs_features(attack: Attack | Own) -> bool:
    """Whether an `Attack` record's score cannot be computed from logits alone."""
    if not isinstance(attack, Attack):
        return False
    try:
        jax.eval_shape(
            lambda logits: attack.score(Outputs(logits)), jax.ShapeDtypeStruct((1, 4), jnp.float32)
        )
    except InputError:
        return True
    return False


def any_calibrated(names: Iterable[str], own: dict[str, Attack | Own]) -> bool:
    """Whether any of the attacks needs logits on one scale."""
    rows: list[Any] = [own.get(name, ATTACKS.get(name)) for name in names]
    rows += [
        SEARCHES[stage.attack] for name in names if name in (*SEARCHES, *PRESETS) for stage in stages(name, 1)
    ]
    return any(getattr(row, 'calibrated', False) for row in rows)


def fingerprint(value: Any) -> str:
    """A short hash of an own attack's source, to tell a changed one from that of a result or a state.

    It covers the text of the functions and the values they were made with as far as these are plain; what
    they call is not looked at.
    """
    return hashlib.sha256('\n'.join(_text(value)).encode()).hexdigest()[:16]


def protocol(name: str, attack: Attack | Own) -> dict[str, Any]:
    """The stamp by which a reader knows what ran."""
    kind = 'Attack' if isinstance(attack, Attack) else 'callable'
    return {'name': name, 'own': kind, 'source': fingerprint(attack)}


def _text(value: Any) -> Iterable[str]:
    if isinstance(value, tuple | list | frozenset | set):
        items = value if isinstance(value, Sequence) else sorted(value, key=repr)
        for item in items:
            yield from _text(item)
    elif hasattr(value, 'func') and hasattr(value, 'keywords'):  # functools.partial
        yield from _text((value.func, value.args, sorted(value.keywords.items())))
    elif inspect.isfunction(value):
        try:
            yield inspect.getsource(value)
        except OSError:
            yield value.__qualname__
        yield from _text([cell.cell_contents for cell in value.__closure__ or ()])
    elif isinstance(value, str | int | float | bool | None):
        yield repr(value)
    else:
        yield type(value).__qualname__


def run(
    program: Program,
    name: str,
    attack: Own,
    threat: Threat,
    restarts: int,
    *,
    keep: bool,
    bar: Progress,
    saved: Saved,
) -> tuple[AttackRecord, np.ndarray]:
    """Runs a callable on all images; what it returns counts, as in the PGD family.

    It is called with `program.chunk` images at once, the last batch filled up with copies of its first image,
    and with one key for each batch and restart. The first batch is attacked twice, with the same key.

    Args:
        program: The classifier with its data.
        name: Of the attack.
        attack: (classifier, images, labels, threat, key) -> images.
        threat: The ball.
        restarts: Number of runs, each with other keys.
        keep: Whether to return the adversarial images; an empty array is returned instead.
        bar: Is told of each image.
        saved: What is finished already.

    Raises:
        InputError: The attack returned something else than images inside the ball of the shape and dtype it
            was given, or something else when called again.
    """
    classifier = program.eager()

    def call(rows: np.ndarray, restart: int) -> Any:
        return attack(
            classifier,
            jnp.asarray(program.images[rows]),
            jnp.asarray(program.labels[rows]),
            threat,
            program.batch_key(int(rows[0]), restart, name),
        )

    def unit(rows: np.ndarray, restart: int, done: Part) -> Arrays:
        parts = []
        for first in range(0, len(rows), program.chunk):
            some = rows[first : first + program.chunk]
            padded = np.concatenate([some, np.full(program.chunk - len(some), some[0])])
            images = program.images[padded]
            found = _checked(name, call(padded, restart), images, threat, program.indices[padded])
            if restart == 0 and some[0] == 0:
                _check_again(
                    name, found, _checked(name, call(padded, 0), images, threat, program.indices[padded])
                )
            parts.append(found[: len(some)])
            done.to((first + len(some)) / len(rows))
        found = np.concatenate(parts)
        correct, largest = program.confirm(rows, found, program.keys(restart)[rows], threat, name)
        return {'correct': correct, 'largest': np.float64(largest), 'images': found[: len(found) * keep]}

    runs, largest, kept = restarts_of(
        program, f'{UNIT}{name}', unit, restarts, cost=COST, keep=keep, bar=bar, saved=saved
    )
    return AttackRecord(runs, None, None, 1, largest, protocol=protocol(name, attack)), kept


def _checked(name: str, found: Any, images: np.ndarray, threat: Threat, indices: np.ndarray) -> np.ndarray:
    """What an own attack returned, as an array, if it is what it must be."""
    shape, dtype = getattr(found, 'shape', None), getattr(found, 'dtype', None)
    if shape is None or dtype is None:
        raise InputError(
            f'attack {name!r} returned {type(found).__name__}: it must return the adversarial images'
        )
    if tuple(shape) != images.shape:
        raise InputError(
            f'attack {name!r} returned images of shape {tuple(shape)}, and was given {images.shape}: it must '
            'keep the shape'
        )
    if dtype != images.dtype:
        raise InputError(
            f'attack {name!r} returned {dtype} images, and was given {images.dtype}: it must keep the dtype'
        )
    found = np.asarray(found)
    finite = np.isfinite(found).all(axis=(1, 2, 3))
    if not finite.all():
        raise InputError(
            f'attack {name!r} returned NaN or infinite pixels for image {indices[np.argmin(finite)]}: look '
            'for a division by zero, as in a gradient divided by its norm'
        )
    try:
        threat.audit(found, images, source=f'attack {name!r}', indices=indices)
    except AssertionError as error:
        raise InputError(f'{error}: end it with threat.project(adversarial, images)') from error
    return found


def _check_again(name: str, found: np.ndarray, again: np.ndarray) -> None:
    if not np.array_equal(found, again):
        raise InputError(
            f'attack {name!r} is not deterministic: called again with the same key its images differ by up '
            f'to {np.abs(found - again).max():.3g}. Draw all random numbers from the key (jax.random)'
        )
