"""The PGD family in an evaluation: on all images, in restarts, and the final images count."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import attacks
from si_jax.attacks import rows as rows_of
from si_jax.attacks.facts import facts, for_classes
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack, Start, starting_points, value_function
from si_jax.errors import InputError
from si_jax.evaluation.gates import NO_GRADIENT, Part
from si_jax.evaluation.network import Network, vote
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import AttackRecord, GradientCounts
from si_jax.evaluation.state import Arrays, Work, remember_all
from si_jax.runtime import progress
from si_jax.runtime.devices import compile_rows, map_rows
from si_jax.runtime.progress import GRADIENT
from si_jax.threat import IMAGE, Threat

Array = jax.Array


ADVISED = (
    'dlr',
    'cw',
    'sipgd',
)  # in place of attacks without a gradient: no scale of the logits hides theirs
MOST_LOOKED_AT = 512  # images


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an attack did.

    Attributes:
        images: [N, H, W, C], the adversarial images; empty unless they are kept.
        seconds: The time of each stage, of an attack that has several.
    """

    record: AttackRecord
    images: np.ndarray
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class OnAllImages(abc.ABC):
    """An attack on all images in restarts, of which the final images count."""

    name: str
    unit: str  # what its finished parts are called on disk

    @abc.abstractmethod
    def attacker(self, network: Network, request: Request) -> Callable[[np.ndarray, int], Arrays]:
        """(rows [M], restart) -> what `judged` says of the images that the attack made of them."""

    @abc.abstractmethod
    def restarts(self, request: Request) -> int:
        """How often it runs."""

    @abc.abstractmethod
    def cost_of_run(self, request: Request) -> int:
        """The forward passes that a restart makes of an image."""

    @abc.abstractmethod
    def settings(self, request: Request) -> dict[str, Any]:
        """Fields of its record."""

    def cost(self, request: Request) -> int:
        """The forward passes that it makes of an image."""
        return self.restarts(request) * self.cost_of_run(request)

    def judged(
        self, network: Network, request: Request, rows: np.ndarray, restart: int, found: Arrays
    ) -> Arrays:
        """What the images do that the attack made of these rows; with them if they are kept.

        `found` has `images` [M, H, W, C], and the flags [M] of `Gradients` where they are known.
        """
        images, keys = found['images'], network.keys(restart)[rows]
        try:
            correct, largest = network.judge(rows, images, keys, request.threat, self.name)
        except AssertionError as error:
            if not self.settings(request).get('protocol'):
                raise
            # An attack of the user's, whose start or bounds may lead out of the ball.
            raise InputError(f"{error}: give it bounds='ball' and a start in the ball") from error
        # A copy, as a view would keep all of them.
        kept = images if request.keep else images[:0].copy()
        if request.aims is not None:
            judged = network.judged(images, rows, request.threat)
            found['reached'] = np.argmax(network.logits(judged, keys), axis=1) == request.aims[rows]
        return found | {'correct': correct, 'largest': np.float64(largest), 'images': kept}

    def run(self, network: Network, request: Request) -> Outcome:
        """Attacks all images in each restart; what the final images do is the record.

        The image that is kept is that of the first restart that fooled the classifier, with targets the first
        that reached its own, else of the first; of a random classifier that of the first with the smallest
        share of right draws.
        """
        attack, cost = self.attacker(network, request), self.cost_of_run(request)
        runs: list[np.ndarray] = []
        zero, not_finite, known = network.clean, np.zeros(len(network.clean), bool), False
        success: Any = None if request.aims is None else np.zeros(len(network.clean), bool)
        largest, kept = 0.0, np.zeros((0, *network.images.shape[1:]), network.images.dtype)
        groups = network.groups(np.arange(len(network.images)))
        for restart in range(self.restarts(request)):
            parts = remember_all(
                [
                    Work(
                        f'{self.unit}-{restart}-{number}',
                        len(rows) * cost,
                        functools.partial(attack, rows, restart),
                    )
                    for number, rows in enumerate(groups)
                ]
            )
            arrays = {key: np.concatenate([np.atleast_1d(one[key]) for one in parts]) for key in parts[0]}
            correct, images = arrays['correct'], arrays['images']
            largest = max(largest, float(arrays['largest'].max()))
            if known := 'zero' in arrays:
                zero, not_finite = zero & arrays['zero'], not_finite | arrays['not_finite']
            if request.keep and not runs:
                kept = images
            elif request.keep:
                new = correct < np.minimum.reduce(runs)
                if success is not None:
                    new = arrays['reached'] & ~success
                kept[new] = images[new]
            if success is not None:
                success = success | arrays['reached']
            runs.append(correct)
        counts = (count_gradients(network.clean, zero, not_finite),) if known else ()
        found = np.stack(runs)
        record = AttackRecord(vote(found), None, None, None, largest, gradients=counts, success=success)
        if network.request.decisions is not None:
            record = dataclasses.replace(record, shares=found)
        return Outcome(dataclasses.replace(record, **self.settings(request)), kept)


@dataclasses.dataclass(frozen=True)
class Pgd(OnAllImages):
    """An attack of the PGD family: a row of `ATTACKS`, or an `Attack` record of the user's.

    Attributes:
        starts: [N, H, W, C], where to start; None for the attack's own start.
        protocol: The stamp of a record of the user's.
        given: Settings in its name, which stand in place of the request's.
    """

    name: str
    row: Attack
    unit: str
    eot_samples: int = 1
    starts: np.ndarray | None = None
    protocol: dict[str, Any] | None = None
    given: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the gates ask about it."""
        return (Part(self.name, facts(self.row), self.eot_samples),)

    @property
    def beginning(self) -> 'Pgd':
        """Its first run alone, for a profile."""
        return dataclasses.replace(self, given={**self.given, 'restarts': 1})

    def restarts(self, request: Request) -> int:
        return self.given.get('restarts', request.restarts if self.row.steps is None else 1)

    def cost_of_run(self, request: Request) -> int:
        return GRADIENT * self.eot_samples * self._steps(request)

    def settings(self, request: Request) -> dict[str, Any]:
        size = self.row.step_size
        return {
            'steps': self._steps(request),
            'step_size': self._step_size(request) if size is None else size * request.threat.eps,
            'eot_samples': self.eot_samples,
            'protocol': self.protocol,
        }

    def _steps(self, request: Request) -> int:
        return self.given.get('steps', request.steps) if self.row.steps is None else self.row.steps

    def _step_size(self, request: Request) -> float:
        return self.given.get('step_size', request.step_size)

    def attacker(self, network: Network, request: Request) -> Callable[[np.ndarray, int], Arrays]:
        row, steps = for_classes(self.row, request.classes), self._steps(request)
        own_size = self.given.get('step_size')
        apply, weights = network.surrogate(row.calibrated)

        def compiled(row: Attack) -> Callable[..., Arrays]:
            def search(
                shared: Any, images: Array, labels: Array, keys: Array, start: Array, aims: Array | None
            ) -> Arrays:
                weights, handed = shared
                threat, step_size = handed or (request.threat, request.step_size)
                step_size = step_size if own_size is None else own_size
                ascent = attacks.run(
                    row,
                    lambda x, keys: apply(weights, x, keys),
                    images,
                    labels,
                    network.typed(keys),
                    threat=threat,
                    steps=steps,
                    step_size=step_size,
                    eot_samples=self.eot_samples,
                    start=start,
                    targets=aims,
                )
                final = ascent.last
                # Of a random classifier any draw may be wrong, and the last point is judged.
                if row.any_iterate and network.request.decisions is None:
                    final = rows_of.where(ascent.fooled, ascent.fooled_image, final)
                return {'images': final, **ascent.gradients._asdict()}

            return compile_rows(search, network.devices)

        def attack(rows: np.ndarray, restart: int) -> Arrays:
            images, labels, keys = network.images[rows], network.labels[rows], network.keys(restart)[rows]
            # By way of the host, as the images came: arrays laid out otherwise would compile again.
            if self.starts is None:
                start = network.map(begin, request.handed[:1], (images, keys))
            else:
                start = self.starts[rows]
            now = row.in_restart(restart)
            about = now, request.built_in, steps, own_size, self.eot_samples
            program, size = network.program(about, lambda: (compiled(now), network.pack_sizes(attacked)[0]))
            given = images, labels, keys, start, None if request.aims is None else request.aims[rows]
            shared = weights, request.handed
            found = map_rows(program, shared, given, size, network.devices, progress.done)
            return self.judged(network, request, rows, restart, found)

        attacked = int(network.clean.sum())
        begin = _starting_points(row.start, request.built_in[0], network.key_impl, tuple(network.devices))
        return attack


def count_gradients(attacked: np.ndarray, zero: np.ndarray, not_finite: np.ndarray) -> GradientCounts:
    """The counts over the attacked images, from flags [N] of all."""
    return GradientCounts(int(attacked.sum()), int(zero[attacked].sum()), int(not_finite[attacked].sum()))


def with_gradient(network: Network) -> list[str]:
    """The attacks of `ADVISED` whose gradient is there, and finite, at the correctly classified images."""
    rows, (apply, shared) = np.flatnonzero(network.clean)[:MOST_LOOKED_AT], network.surrogate()
    rows = rows[: network.group]
    arrays = network.images[rows], network.labels[rows], network.keys(0)[rows]

    def share_of_zero(row: Attack) -> float:
        def zero(weights: Any, images: Array, labels: Array, keys: Array) -> Array:
            classifier = functools.partial(apply, weights)
            value = value_function(row.objective, row.score, classifier, labels, None, network.typed(keys))
            gradient = value(jnp.asarray(0), images)[1]
            return ((gradient == 0) | ~jnp.isfinite(gradient)).all(axis=IMAGE)

        return float(np.mean(network.map(compile_rows(zero, network.devices), shared, arrays)))

    return [
        name
        for name, known in ((name, facts(ATTACKS[name])) for name in ADVISED)
        if known.loss_classes <= network.request.classes
        and (network.outputs.features is not None or not known.reads_features)
        and share_of_zero(ATTACKS[name]) <= NO_GRADIENT
    ]


@functools.lru_cache(maxsize=16)
def _starting_points(
    start: Start, built_in: Threat | str, key_impl: Any, devices: tuple[jax.Device, ...]
) -> Callable[..., Array]:
    """Compiles ((), images, keys) -> starts: once for all attacks, as it takes longer than they do.

    `built_in` is the threat model, or its norm; then the first argument is (threat model,).
    """

    def points(handed: Any, images: Array, keys: Array) -> Array:
        threat: Any = handed[0] if handed else built_in
        return starting_points(start, threat, images, jax.random.wrap_key_data(keys, impl=key_impl))

    return compile_rows(points, list(devices))
