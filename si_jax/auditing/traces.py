"""The audited attack, observed step by step.

One compiled program serves all radii, numbers of steps and restarts: they are arguments. A long run holds the
shorter ones, as long as the step size does not depend on the number of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import losses
from si_jax.attacks import rows as rows_of
from si_jax.attacks.ascent import none_seen, usable
from si_jax.attacks.facts import facts, for_classes
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack, starting_points, value_function
from si_jax.attacks.settings import taken_apart
from si_jax.attacks.steps import steepest_step
from si_jax.errors import InputError
from si_jax.evaluation.network import Network
from si_jax.outputs import Outputs, scaled_by_gap
from si_jax.runtime import devices, progress
from si_jax.threat import Threat

Array = jax.Array

# Steps and step size are the caller's, and the logits the classifier's own.
AUDITED = tuple(
    name
    for name, attack in ATTACKS.items()
    if attack.steps is None and attack.step_size is None and not attack.calibrated
)


class Settings(NamedTuple):
    """One run: radius and step size as fractions of the pixel range, and its number of steps.

    The iterate after the step `marked`, at most `steps`, is returned besides the last one.
    """

    eps: float
    step_size: float
    steps: int
    marked: int


class Trace(NamedTuple):
    """What a run of the attack went through, for N images.

    Attributes:
        losses: [N, T + 1], the attack's loss before each of the T steps and after the last.
        fooled: [N, T + 1] bool, whether that iterate was misclassified.
        start: [N, H, W, C], where it began.
        marked: [N, H, W, C], the iterate after the marked step.
        last: [N, H, W, C], the iterate after the last step.
        not_finite: [N] bool, whether a gradient had entries that are not finite; they counted as 0.
    """

    losses: Any
    fooled: Any
    start: Any
    marked: Any
    last: Any
    not_finite: Any


def check_attack(name: str) -> Attack:
    """The row of the attack, if it can be audited.

    Raises:
        InputError: It takes steps of its own, or scales the logits by what it measured, or is none of the PGD
            family.
    """
    base, settings = taken_apart(name)
    if base in AUDITED and settings:
        raise InputError(
            f'the audit of {name!r} would change its settings: give {base} alone, and steps, step_size and '
            'restarts beside it, from which the audit varies them'
        )
    if name not in AUDITED:
        raise InputError(
            f'attack {name!r} cannot be audited: the audit follows an attack of the PGD family step by step, '
            f'one of {", ".join(AUDITED)}'
        )
    return ATTACKS[name]


def for_two_classes(name: str) -> Attack:
    """The attack for a classifier of two classes that gives logits only."""
    attack = for_classes(ATTACKS[name], 2)
    return attack._replace(score=scaled_by_gap) if facts(attack).reads_features else attack


class Follower:
    """The attack on a classifier, compiled once for all its runs.

    Args:
        network: The classifier with its data.
        attack: A row of the PGD family that compares nothing with the original images.
        length: The largest number of steps of a run.
        classifier: (weights, images, keys, about) -> `Outputs`, where `about` are the rows of what `run` is
            given; the network's own if None.
    """

    def __init__(
        self,
        network: Network,
        attack: Attack,
        length: int,
        classifier: Callable[[Any, Array, Array, Any], Outputs] | None = None,
    ):
        self._network, self._attack, self._length = network, attack, length
        self._classifier = classifier or (
            lambda weights, images, keys, _: network.apply(weights, images, keys)
        )
        self._compiled = devices.compile_rows(self._trace, network.devices)

    def _trace(self, shared: Any, images: Array, labels: Array, keys: Array, about: Any) -> Trace:
        """Runs the attack on a batch as `pgd.run` does; arrays hold zeros after the steps of the run."""
        attack, request, keys = self._attack, self._network.request, self._network.typed(keys)
        weights, (eps, step_size, steps, marked) = shared
        threat = Threat(request.threat.norm, eps)
        start = starting_points(attack.start, threat, images, keys)
        value = value_function(
            attack.objective,
            attack.score,
            lambda x, keys: self._classifier(weights, x, keys, about),
            labels,
            None,
            jax.vmap(jax.random.split)(keys)[:, 1],
            eot_samples=request.eot_samples,
        )
        rule = attack.rule(step_size) if attack.rule else steepest_step(threat.norm, step_size)

        def record(i: Array, seen: Trace) -> tuple[Trace, Array, Array]:
            loss, gradient, fooled = value(i, seen.last)
            gradient, gradients = usable(gradient, none_seen(len(labels)), i)
            seen = seen._replace(
                not_finite=seen.not_finite | gradients.not_finite,
                losses=seen.losses.at[:, i].set(loss),
                fooled=seen.fooled.at[:, i].set(fooled),
                marked=jnp.where(i == marked, seen.last, seen.marked),
            )
            return seen, loss, gradient

        def body(i: Array, carry: tuple[Trace, Any]) -> tuple[Trace, Any]:
            seen, state = carry
            seen, loss, gradient = record(i, seen)
            x, state = rule.update(i, seen.last, loss, gradient, state, lambda x: threat.project(x, images))
            # As in an evaluation, an image whose loss is NaN stays where it is, so that the point is seen.
            return seen._replace(last=rows_of.where(jnp.isnan(loss), seen.last, x)), state

        shape = len(labels), self._length + 1
        never = jnp.zeros(shape[:1], bool)
        empty = Trace(jnp.zeros(shape, images.dtype), jnp.zeros(shape, bool), start, start, start, never)
        seen, _ = jax.lax.fori_loop(0, steps, body, (empty, rule.init(start)))
        return record(jnp.asarray(steps), seen)[0]

    def run(
        self,
        settings: Settings,
        rows: np.ndarray,
        restart: int,
        labels: np.ndarray | None = None,
        about: Any = (),
    ) -> Trace:
        """The trace of these rows [M], as host arrays, from the starting points that `evaluate` takes too.

        The labels [M] are those of the images if None.
        """
        network, dtype = self._network, self._network.images.dtype
        labels = network.labels[rows] if labels is None else labels
        eps, step_size = dtype.type(settings.eps), dtype.type(settings.step_size)
        scalars = eps, step_size, np.int32(settings.steps), np.int32(settings.marked)
        arrays = network.images[rows], labels, network.keys(restart)[rows], about
        done = network.map(self._compiled, (network.weights, scalars), arrays, progress.done)
        end = settings.steps + 1
        return done._replace(losses=done.losses[:, :end], fooled=done.fooled[:, :end])

    def follow(
        self, settings: Settings, rows: np.ndarray, restart: int, source: str
    ) -> dict[str, np.ndarray]:
        """A run whose images are audited and classified again, as those of an evaluation are.

        Returns:
            `losses` and `fooled` [M, T + 1] as in `Trace`; `marked` and `last` [M] bool, whether the image is
            still classified correctly after the marked step and after the last one; `margin` [M], the margin
            max_{k != y} g_k - g_y after the marked step; `moved` [M] bool, whether that step's iterate is
            another image than the start; `not_finite` [M] bool, as in `Trace`.
        """
        network, done = self._network, self.run(settings, rows, restart)
        threat, keys = Threat(network.request.threat.norm, settings.eps), network.keys(restart)[rows]
        last, _ = network.confirm(rows, done.last, keys, threat, source)
        marked = last
        if settings.marked != settings.steps:
            marked, _ = network.confirm(rows, done.marked, keys, threat, source)
        margins = losses.margin(
            jnp.asarray(network.logits(done.marked, keys)), jnp.asarray(network.labels[rows])
        )
        return {
            'losses': done.losses,
            'fooled': done.fooled,
            'marked': marked,
            'last': last,
            'margin': np.asarray(margins),
            'moved': np.any(done.marked != done.start, axis=(1, 2, 3)),
            'not_finite': done.not_finite,
        }
