"""Attacks of the user's beside those of the library: run, audited and verified alike.

A custom attack is an `Attack` record, which runs as the PGD family does (`pgd.Pgd`), or any callable
(classifier, images, labels, threat, key) -> images.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from si_jax.attacks.pgd import Attack
from si_jax.errors import InputError
from si_jax.evaluation.gates import Part
from si_jax.evaluation.network import Network
from si_jax.evaluation.pgd import OnAllImages
from si_jax.evaluation.request import Request
from si_jax.evaluation.settings import AttackFunction
from si_jax.evaluation.state import Arrays
from si_jax.runtime import progress
from si_jax.runtime.fingerprint import fingerprint
from si_jax.runtime.progress import GRADIENT
from si_jax.threat import Threat

COST = 20 * GRADIENT  # in forward passes, for the progress: nobody knows
UNIT = 'own.'  # before the names of finished parts on disk, where no other attack has a dot


@dataclasses.dataclass(frozen=True)
class CustomAttack(OnAllImages):
    """A callable of the user's: (classifier, images, labels, threat, key) -> images.

    It is called with `request.chunk` images at once, the last batch filled up with copies of its first image,
    and with one key for each batch and restart. The first batch is attacked twice, with the same key.
    """

    name: str
    function: AttackFunction

    @property
    def unit(self) -> str:  # type: ignore[override]
        return f'{UNIT}{self.name}'

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the gates ask about it: nothing is known of it."""
        return (Part(self.name, None, None),)

    def restarts(self, request: Request) -> int:
        return request.restarts

    def cost_of_run(self, request: Request) -> int:
        return COST

    def settings(self, request: Request) -> dict[str, Any]:
        return {'protocol': protocol(self.name, self.function)}

    def attacker(self, network: Network, request: Request) -> Callable[[np.ndarray, int], Arrays]:
        """Calls the function.

        Raises:
            InputError: It returned something else than images inside the ball of the shape and dtype it was
                given, or something else when called again.
        """
        classifier, name, threat = network.eager(), self.name, request.threat

        def call(rows: np.ndarray, restart: int) -> np.ndarray:
            found = self.function(
                classifier,
                jnp.asarray(request.as_given(network.images[rows])),
                jnp.asarray(network.labels[rows]),
                threat,
                network.batch_key(int(rows[0]), restart, name),
            )
            if request.layout == 'nchw' and getattr(found, 'ndim', 0) == 4:
                found = jnp.moveaxis(found, 1, 3)
            return _checked(name, found, network.images[rows], threat, network.request.indices[rows])

        def attack(rows: np.ndarray, restart: int) -> Arrays:
            parts = []
            for first in range(0, len(rows), request.chunk):
                some = rows[first : first + request.chunk]
                padded = np.concatenate([some, np.full(request.chunk - len(some), some[0])])
                found = call(padded, restart)
                if restart == 0 and some[0] == 0:
                    _check_again(name, found, call(padded, 0))
                parts.append(found[: len(some)])
                progress.done((first + len(some)) / len(rows))
            made = {'images': np.concatenate(parts)}
            return self.judged(network, request, rows, restart, made)

        return attack


def protocol(name: str, attack: Attack | AttackFunction) -> dict[str, Any]:
    """The stamp by which a reader knows what ran."""
    kind = 'Attack' if isinstance(attack, Attack) else 'callable'
    return {'name': name, 'own': kind, 'source': fingerprint(attack)}


def _checked(name: str, found: Any, images: np.ndarray, threat: Threat, indices: np.ndarray) -> np.ndarray:
    """What an attack of the user's returned, as an array, if it is what it must be."""
    shape, dtype = getattr(found, 'shape', None), getattr(found, 'dtype', None)
    if shape is None or dtype is None:
        raise InputError(
            f'attack {name!r} returned {type(found).__name__}: it must return the adversarial images'
        )
    wrong = f'attack {name!r} returned'
    if tuple(shape) != images.shape:
        raise InputError(
            f'{wrong} images of shape {tuple(shape)}, and was given {images.shape}: it must keep the shape'
        )
    if dtype != images.dtype:
        raise InputError(f'{wrong} {dtype} images, and was given {images.dtype}: it must keep the dtype')
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
