"""The audited attack, observed step by step.

One compiled program serves all radii, numbers of steps and restarts: they are arguments. A long run holds the
shorter ones, as long as the step size does not depend on the number of steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import losses
from si_jax.attacks.facts import facts
from si_jax.attacks.pgd import Attack, KeyedClassifier, starting_points, value_function
from si_jax.attacks.registry import ATTACKS
from si_jax.attacks.steps import steepest_step
from si_jax.errors import InputError
from si_jax.evaluation.network import Network
from si_jax.objectives import margin
from si_jax.outputs import scaled_by_gap
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
    """One run of the attack.

    Attributes:
        eps: Radius, as a fraction of the pixel range.
        step_size: Likewise.
        steps: Number of steps.
        marked: The step whose iterate is returned besides the last one, at most `steps`.
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
    """

    losses: Any
    fooled: Any
    start: Any
    marked: Any
    last: Any


def check_attack(name: str) -> Attack:
    """The row of the attack, if it can be audited.

    Raises:
        InputError: It takes steps of its own, or scales the logits by what it measured, or is none of the PGD
            family.
    """
    if name not in AUDITED:
        raise InputError(
            f'attack {name!r} cannot be audited: the audit follows an attack of the PGD family step by step, '
            f'one of {", ".join(AUDITED)}'
        )
    return ATTACKS[name]


def for_two_classes(name: str) -> Attack:
    """The attack for a classifier of two classes that gives logits only."""
    attack = ATTACKS[name]
    if facts(attack).least_classes > 2:
        return attack._replace(objective=margin)
    return attack._replace(score=scaled_by_gap) if facts(attack).reads_features else attack


def trace(
    attack: Attack,
    classifier: KeyedClassifier,
    images: Array,
    labels: Array,
    keys: Array,
    *,
    norm: str,
    settings: Settings,
    length: int,
    eot_samples: int = 1,
) -> Trace:
    """Runs the attack on a batch as `gradient.run` does, and returns all that it went through.

    Args:
        attack: A row that compares nothing with the original images.
        classifier: (images, keys [B]) -> Outputs.
        images: [B, H, W, C] in [0, 1].
        labels: [B].
        keys: [B] typed PRNG keys.
        norm: 'linf' or 'l2'.
        settings: May be traced, all of them.
        length: The largest number of steps that may come: the arrays of the trace are of this length, and
            hold zeros after the run's own.
        eot_samples: Gradients averaged in each step.
    """
    eps, step_size, steps, marked = settings
    threat = Threat(norm, eps)
    start = starting_points(attack.start, threat, images, keys)
    value = value_function(
        attack.objective,
        attack.score,
        classifier,
        labels,
        None,
        jax.vmap(jax.random.split)(keys)[:, 1],
        eot_samples=eot_samples,
    )
    rule = attack.rule(step_size) if attack.rule else steepest_step(norm, step_size)

    def record(i: Array, seen: Trace) -> tuple[Trace, Array, Array]:
        loss, gradient, fooled = value(i, seen.last)
        seen = seen._replace(
            losses=seen.losses.at[:, i].set(loss),
            fooled=seen.fooled.at[:, i].set(fooled),
            marked=jnp.where(i == marked, seen.last, seen.marked),
        )
        return seen, loss, gradient

    def body(i: Array, carry: tuple[Trace, Any]) -> tuple[Trace, Any]:
        seen, state = carry
        seen, loss, gradient = record(i, seen)
        x, state = rule.update(i, seen.last, loss, gradient, state, lambda x: threat.project(x, images))
        return seen._replace(last=x), state

    batch = len(labels)
    empty = Trace(
        jnp.zeros((batch, length + 1), images.dtype),
        jnp.zeros((batch, length + 1), bool),
        start,
        start,
        start,
    )
    seen, _ = jax.lax.fori_loop(0, steps, body, (empty, rule.init(start)))
    return record(jnp.asarray(steps), seen)[0]


class Follower:
    """The attack on a classifier, compiled once for all its runs.

    Args:
        network: The classifier with its data.
        name: The attack.
        norm: 'linf' or 'l2'.
        length: The largest number of steps of a run.
        eot_samples: Gradients averaged in each step.
    """

    def __init__(self, network: Network, name: str, norm: str, length: int, eot_samples: int = 1):
        self._network, self._name, self._norm = network, name, norm
        attack = ATTACKS[name]

        def search(shared: Any, images: Array, labels: Array, keys: Array) -> Trace:
            weights, settings = shared
            return trace(
                attack,
                lambda x, keys: network.apply(weights, x, keys),
                images,
                labels,
                jax.random.wrap_key_data(keys, impl=network.key_impl),
                norm=norm,
                settings=Settings(*settings),
                length=length,
                eot_samples=eot_samples,
            )

        self._compiled = devices.compile_rows(search, network.devices)

    def run(self, settings: Settings, rows: np.ndarray, restart: int) -> Trace:
        """The trace of these rows [M], as host arrays, from the starting points that `evaluate` takes too."""
        network = self._network
        done = devices.map_rows(
            self._compiled,
            (network.weights, scalars(settings, network.images.dtype)),
            (network.images[rows], network.labels[rows], network.keys(restart)[rows]),
            network.chunk,
            network.devices,
            progress.done,
        )
        end = settings.steps + 1
        return done._replace(losses=done.losses[:, :end], fooled=done.fooled[:, :end])

    def follow(self, settings: Settings, rows: np.ndarray, restart: int) -> dict[str, np.ndarray]:
        """A run whose images are audited and classified again, as those of an evaluation are.

        Returns:
            `losses` and `fooled` [M, T + 1] as in `Trace`; `marked` and `last` [M] bool, whether the image is
            still classified correctly after the marked step and after the last one; `margin` [M], the margin
            max_{k != y} g_k - g_y after the marked step; `moved` [M] bool, whether that step's iterate is
            another image than the start.
        """
        done, threat = self.run(settings, rows, restart), Threat(self._norm, settings.eps)
        keys = self._network.keys(restart)[rows]
        last, _ = self._network.confirm(rows, done.last, keys, threat, self._name)
        marked = last
        if settings.marked != settings.steps:
            marked, _ = self._network.confirm(rows, done.marked, keys, threat, self._name)
        margins = losses.margin(
            jnp.asarray(self._network.logits(done.marked, keys)), jnp.asarray(self._network.labels[rows])
        )
        return {
            'losses': done.losses,
            'fooled': done.fooled,
            'marked': marked,
            'last': last,
            'margin': np.asarray(margins),
            'moved': np.any(done.marked != done.start, axis=(1, 2, 3)),
        }


def scalars(settings: Settings, dtype: np.dtype) -> tuple[Any, ...]:
    """The settings as arguments of a compiled network."""
    return (
        dtype.type(settings.eps),
        dtype.type(settings.step_size),
        np.int32(settings.steps),
        np.int32(settings.marked),
    )
