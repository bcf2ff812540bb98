"""The PGD family in an evaluation: on all images, in restarts, and the final images count."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import attacks
from si_jax.attacks import rows as rows_of
from si_jax.attacks.ascent import Gradients
from si_jax.attacks.facts import facts
from si_jax.attacks.pgd import Attack, Start, starting_points, value_function
from si_jax.attacks.registry import ATTACKS
from si_jax.evaluation.gates import NO_GRADIENT, Part
from si_jax.evaluation.network import Network
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import AttackRecord, GradientCounts
from si_jax.evaluation.state import Arrays, Work, remember_all
from si_jax.runtime import progress
from si_jax.runtime.devices import compile_rows
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
        record: Its part of the result.
        images: [N, H, W, C], the adversarial images; empty unless they are kept.
        seconds: The time of each stage, of an attack that has several.
    """

    record: AttackRecord
    images: np.ndarray
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Pgd:
    """An attack of the PGD family: a row of `ATTACKS`, or an `Attack` record of the user's.

    Attributes:
        name: The attack.
        row: What it is.
        unit: What its finished parts are called on disk.
        eot_samples: Gradients averaged in each step.
        starts: [N, H, W, C], where to start; None for the attack's own start.
        protocol: The stamp of a record of the user's.
    """

    name: str
    row: Attack
    unit: str
    eot_samples: int = 1
    starts: np.ndarray | None = None
    protocol: dict[str, Any] | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the gates ask about it."""
        return (Part(self.name, facts(self.row), self.eot_samples),)

    def cost(self, request: Request) -> int:
        """The forward passes that it makes of an image."""
        return self._restarts(request) * self._cost_of_run(request)

    def run(self, network: Network, request: Request) -> Outcome:
        """Attacks all images; the final images count."""
        row, threat = self.row, request.threat
        apply, shared = network.surrogate(row.calibrated)

        def compiled(row: Attack) -> Callable[..., Arrays]:
            def search(weights: Any, images: Array, labels: Array, keys: Array, start: Array) -> Arrays:
                ascent = attacks.run(
                    row,
                    lambda x, keys: apply(weights, x, keys),
                    images,
                    labels,
                    network.typed(keys),
                    threat=threat,
                    steps=request.steps,
                    step_size=request.step_size,
                    eot_samples=self.eot_samples,
                    start=start,
                )
                final = ascent.last
                if row.any_iterate:
                    final = rows_of.where(ascent.fooled, ascent.fooled_image, final)
                return {'images': final, **ascent.gradients._asdict()}

            return compile_rows(search, network.devices)

        def attack(rows: np.ndarray, restart: int) -> Arrays:
            images, labels, keys = network.images[rows], network.labels[rows], network.keys(restart)[rows]
            # By way of the host, as the images came: arrays laid out otherwise would compile again.
            if self.starts is None:
                start = network.map(begin, (), (images, keys))
            else:
                start = self.starts[rows]
            now = row.in_restart(restart)
            about = now, threat, request.steps, request.step_size, self.eot_samples
            program = network.program(about, lambda: compiled(now))
            found = network.map(program, shared, (images, labels, keys, start), progress.done)
            correct, largest = network.confirm(rows, found['images'], keys, threat, self.name)
            return found | {
                'correct': correct,
                'largest': np.float64(largest),
                'images': found['images'][: len(rows) * request.keep],
            }

        begin = _starting_points(row.start, threat, network.key_impl, tuple(network.devices))
        finished = []
        for units in units_of(
            network, self.unit, attack, self._restarts(request), self._cost_of_run(request)
        ):
            finished.append(remember_all(units))
        record, images = restarts_of(network, request, finished)
        return Outcome(
            dataclasses.replace(
                record,
                steps=self._steps(request),
                step_size=request.step_size if row.step_size is None else row.step_size * threat.eps,
                eot_samples=self.eot_samples,
                protocol=self.protocol,
            ),
            images,
        )

    def _restarts(self, request: Request) -> int:
        return request.restarts if self.row.steps is None else 1

    def _steps(self, request: Request) -> int:
        return request.steps if self.row.steps is None else self.row.steps

    def _cost_of_run(self, request: Request) -> int:
        return GRADIENT * self.eot_samples * self._steps(request)


def units_of(
    network: Network, name: str, attack: Callable[[np.ndarray, int], Arrays], restarts: int, cost: int
) -> list[list[Work]]:
    """The units of work of each restart of (rows, restart) -> {correct, largest, images}, on all images."""
    groups = network.groups(np.arange(len(network.images)))
    return [
        [
            Work(f'{name}-{restart}-{number}', len(rows) * cost, functools.partial(attack, rows, restart))
            for number, rows in enumerate(groups)
        ]
        for restart in range(restarts)
    ]


def restarts_of(
    network: Network, request: Request, finished: list[list[Arrays]]
) -> tuple[AttackRecord, np.ndarray]:
    """The record of what the restarts did, and the images if they are kept.

    The image is that of the first restart that fooled the classifier, else of the first restart.
    """
    runs: list[np.ndarray] = []
    largest = 0.0
    kept = np.zeros((0, *network.images.shape[1:]), network.images.dtype)
    for parts in finished:
        correct, images = (np.concatenate([one[key] for one in parts]) for key in ('correct', 'images'))
        largest = max(largest, *(float(one['largest']) for one in parts))
        if request.keep and not runs:
            kept = images
        elif request.keep:
            new = np.logical_and.reduce(runs) & ~correct
            kept[new] = images[new]
        runs.append(correct)
    record = AttackRecord(np.stack(runs), None, None, 1, largest)
    if 'zero' in finished[0][0]:
        seen = {
            key: [np.concatenate([one[key] for one in parts]) for parts in finished]
            for key in Gradients._fields
        }
        counts = count_gradients(
            network.clean, np.all(seen['zero'], axis=0), np.any(seen['not_finite'], axis=0)
        )
        record = dataclasses.replace(record, gradients=(counts,))
    return record, kept


def count_gradients(attacked: np.ndarray, zero: np.ndarray, not_finite: np.ndarray) -> GradientCounts:
    """The counts over the attacked images, from flags [N] of all."""
    return GradientCounts(int(attacked.sum()), int(zero[attacked].sum()), int(not_finite[attacked].sum()))


def with_gradient(network: Network) -> list[str]:
    """The attacks of `ADVISED` whose gradient is not zero at the correctly classified images."""
    rows, (apply, shared) = np.flatnonzero(network.clean)[:MOST_LOOKED_AT], network.surrogate()
    arrays = network.images[rows], network.labels[rows], network.keys(0)[rows]

    def share_of_zero(row: Attack) -> float:
        def zero(weights: Any, images: Array, labels: Array, keys: Array) -> Array:
            classifier = functools.partial(apply, weights)
            value = value_function(row.objective, row.score, classifier, labels, None, network.typed(keys))
            return (value(jnp.asarray(0), images)[1] == 0).all(axis=IMAGE)

        return float(np.mean(network.map(compile_rows(zero, network.devices), shared, arrays)))

    return [
        name
        for name, known in ((name, facts(ATTACKS[name])) for name in ADVISED)
        if known.least_classes <= network.request.classes
        and (network.outputs.features is not None or not known.reads_features)
        and share_of_zero(ATTACKS[name]) <= NO_GRADIENT
    ]


@functools.lru_cache(maxsize=16)
def _starting_points(
    start: Start, threat: Threat, key_impl: Any, devices: tuple[jax.Device, ...]
) -> Callable[..., Array]:
    """Compiles ((), images, keys) -> starts: once for all attacks, as it takes longer than they do."""

    def points(_: Any, images: Array, keys: Array) -> Array:
        return starting_points(start, threat, images, jax.random.wrap_key_data(keys, impl=key_impl))

    return compile_rows(points, list(devices))
