"""PGD and its variants: gradient attacks that are one `Attack` record each, run by one function.

Projected gradient descent (PGD, Madry et al. 2018) raises a loss by steps along its gradient and moves the
image back into the threat model after each step. Its variants exchange a part: the loss (`objective`), what
the loss is computed from (`score`), where the steps begin (`start`), how long they are (`rule`). An `Attack`
names these parts and `run` runs it on a batch, in evaluation and inside training alike.

To write an attack of your own, make an `Attack`; `family.ATTACKS` holds the named ones. Attacks that look
for one misclassified point and then stop are searches: see `search`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from si_jax import objectives
from si_jax.attacks import rows
from si_jax.attacks.ascent import Ascent, Rule, Value, advance, begin, evaluate_last
from si_jax.attacks.settings import Setting
from si_jax.attacks.steps import steepest_step
from si_jax.draws import drawn
from si_jax.objectives import Objective, adversarial_ce
from si_jax.outputs import Outputs, Score, logits, misclassified, reached
from si_jax.threat import Threat

Array = jax.Array
# images [B, H, W, C] in [0, 1], keys [B] -> Outputs. Deterministic classifiers ignore the keys.
KeyedClassifier = Callable[[Array, Array], Outputs]
# (threat, keys [B], images) -> images in the ball
Start = Callable[[Threat, Array, Array], Array]


def from_original(threat: Threat, keys: Array, images: Array) -> Array:
    """Start at the original image."""
    del threat, keys
    return images


def from_uniform(threat: Threat, keys: Array, images: Array) -> Array:
    """Start at a uniformly random point of the ball, clipped to [0, 1] (eq. 2 of the paper)."""
    return threat.uniform_start(keys, images)


def from_gaussian(threat: Threat, keys: Array, images: Array, scale: float = 0.001) -> Array:
    """Start at x + 0.001 N(0, 1), not projected, as the training code of TRADES, MART and AT_HE does."""
    del threat
    noise = jax.vmap(lambda key: drawn(jax.random.normal, key, images.shape[1:], images.dtype))
    return images + scale * noise(keys)


def from_signs(threat: Threat, keys: Array, images: Array, scale: float = 1.0) -> Array:
    """Start at x + scale eps r, projected, with r = 1 or -1 for each entry (Bernoulli noise).

    Source: repository val-iisc/GAMA-GAT: half of eps in GAT, all of it in GAMA-PGD.
    """
    signs = jax.vmap(lambda key: drawn(jax.random.rademacher, key, images.shape[1:], images.dtype))
    return threat.project(images + scale * threat.eps * signs(keys), images)


STARTS: dict[str, Start] = {
    'original': from_original,
    'uniform': from_uniform,
    'gaussian': from_gaussian,
    'half_signs': partial(from_signs, scale=0.5),
}

# Where a step may lead, by name: (threat, moved images, original images) -> images.
BOUNDS: dict[str, Callable[[Threat, Array, Array], Array]] = {
    'ball': lambda threat, moved, images: threat.project(moved, images),
    'pixels': lambda threat, moved, images: jnp.clip(moved, 0, 1),
    'none': lambda threat, moved, images: moved,
}


def widened(start: Start, factor: float) -> Start:
    """The start in a ball of `factor` times the radius."""
    if factor == 1:
        return start

    def wide(threat: Threat, keys: Array, images: Array) -> Array:
        return start(dataclasses.replace(threat, eps=factor * threat.eps), keys, images)

    return wide


class Attack(NamedTuple):
    """A gradient attack.

    Attributes:
        objective: The loss that the attack raises.
        score: What the objective is computed from.
        start: Where the attack starts, one of `STARTS`.
        rule: step size -> Rule; None for the steepest ascent of the threat model's norm.
        steps: Number of steps; None for the caller's.
        step_size: As a multiple of eps; None for the caller's.
        drops: Steps from which the step size is a tenth of what it was before.
        reference: What the adversarial images are compared with, where the objective does so: 'natural' for
            the original images, 'start' for the attack's own start.
        then: The objective of the second half of the steps; None for `objective` all along.
        odd: What stands in place of `objective` in the restarts 1, 3, 5 and so on (see `in_restart`).
        cosines: The step size falls so many times, one after another, along half a cosine; 0: it stays.
        any_iterate: Whether a misclassified iterate counts, not only the last point.
        bounds: Where `run` lets a step lead, a name in `BOUNDS`: into the ball and [0, 1], into [0, 1] alone,
            or anywhere. Only training attacks leave the ball; what evaluation returns is audited.
        calibrated: Whether the score is computed from logits times 2 / (median gap between the two highest
            logits of all clean images); who runs the attack brings a classifier with such logits.
    """

    objective: Objective = adversarial_ce
    score: Score = logits
    start: Start = from_uniform
    rule: Callable[[float], Rule] | None = None
    steps: int | None = None
    step_size: float | None = None
    drops: tuple[int, ...] = ()
    reference: str = 'natural'
    then: Objective | None = None
    odd: Objective | None = None
    cosines: int = 0
    any_iterate: bool = False
    bounds: str = 'ball'
    calibrated: bool = False

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What can stand in its name, in order, in place of the caller's: what it does not fix itself."""
        free = {
            Setting('steps'): self.steps is None,
            Setting('step_size', multiple=0): self.step_size is None,
            Setting('restarts'): self.start is not from_original,
        }
        return tuple(setting for setting, taken in free.items() if taken)

    def in_restart(self, number: int) -> 'Attack':
        """The attack as it is in the restart of this number, counted from 0."""
        return self._replace(objective=self.odd) if self.odd is not None and number % 2 else self


def starting_points(start: Start, threat: Threat, images: Array, keys: Array) -> Array:
    """Where an attack with this start begins, [B, H, W, C]; the other arguments are those of `run`."""
    # One subkey for the start and one for a randomised classifier.
    return start(threat, rows.split(keys)[0], images)


def run(
    attack: Attack,
    classifier: KeyedClassifier,
    images: Array,
    labels: Array,
    keys: Array,
    *,
    threat: Threat,
    steps: int,
    step_size: float,
    eot_samples: int = 1,
    start: Array | None = None,
    natural: Any = None,
    targets: Array | None = None,
    with_last: bool = False,
) -> Ascent:
    """Runs a gradient attack on a batch; pure, to be compiled by the caller.

    Args:
        attack: The attack.
        classifier: (images, keys [B]) -> Outputs.
        images: [B, H, W, C] in [0, 1].
        labels: [B], the true labels.
        keys: [B] typed PRNG keys, one an image: nothing else is random, so no image depends on its batch.
        threat: The ball.
        steps: Number of steps where the attack does not fix it; an array only for an attack without `then`
            and `cosines`.
        step_size: As a fraction of the pixel range, where the attack does not fix it.
        eot_samples: Gradients averaged per step (expectation over transformation, Athalye et al. 2018).
        start: [B, H, W, C], where to start; None for the attack's own `starting_points`.
        natural: The attack's score of the images it is compared with; None to compute it.
        targets: [B], classes to be reached, for an objective of the adversarial images alone; None to be
            anything but the labels. Where they are given, only images of these classes are `fooled`.
        with_last: Whether the last point is evaluated too, so that it can be the best one.

    Returns:
        The `Ascent`; PGD counts its `last` point, a row with `any_iterate` its `fooled_image`.
    """
    steps = steps if attack.steps is None else attack.steps
    objective = objective_of(attack, steps)
    if targets is not None:
        objective = objectives.toward(objective, targets)
    if start is None:
        start = starting_points(attack.start, threat, images, keys)
    _, classifier_keys = rows.split(keys)
    if natural is None and 'nat' in objective.uses:
        # Constant during the attack: computed once, not in every step.
        reference = start if attack.reference == 'start' else images
        natural = attack.score(classifier(reference, rows.fold_in(classifier_keys, 0)))
    value = value_function(
        objective,
        attack.score,
        classifier,
        labels,
        natural,
        classifier_keys,
        eot_samples=eot_samples,
        targets=targets,
    )
    rule = rule_of(attack, threat, steps, step_size)
    made = advance(
        value,
        begin(start, rule),
        first=0,
        steps=steps,
        rule=rule,
        project=lambda x: BOUNDS[attack.bounds](threat, x, images),
    )
    return evaluate_last(value, made, steps=steps) if with_last else made.seen


def objective_of(attack: Attack, steps: int) -> Objective:
    """The objective of an attack of `steps` steps, with the change in their middle where it has one."""
    if attack.then is None:
        return attack.objective
    return objectives.in_turn(attack.objective, attack.then, steps // 2)


def rule_of(attack: Attack, threat: Threat, steps: int, step_size: float) -> Rule:
    """How an attack of `steps` steps moves a point; `step_size` as for `run`."""
    size = step_size if attack.step_size is None else attack.step_size * threat.eps
    if attack.rule is not None:
        return attack.rule(size)
    period = -(-steps // attack.cosines) if attack.cosines else 0
    return steepest_step(threat.norm, size, attack.drops, period)


def value_function(
    objective: Objective,
    score: Score,
    classifier: KeyedClassifier,
    labels: Array,
    natural: Any,
    keys: Array,
    *,
    eot_samples: int = 1,
    targets: Array | None = None,
) -> Value:
    """The value function (i, images) -> (loss, gradient, fooled) of an objective on a classifier.

    The gradient is taken with respect to the images alone (the weights' would add half to the cost), and the
    losses are summed first, so that each image's gradient is its own whatever the batch. Where a logit is
    NaN or infinite the loss is NaN. An image is `fooled` that is not of its label or, with `targets` [B],
    that is of its target.
    """

    def evaluate(i: Array, images: Array, sample: Array) -> tuple[Array, Array, Array]:
        sample_keys = rows.fold_in(keys, 1 + i * eot_samples + sample)

        def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
            outputs = classifier(x, sample_keys)
            loss = objective(score(outputs), natural, labels, i)
            chex.assert_shape(loss, labels.shape)  # one number per image: a mean would mix the gradients
            # The loss need not read what is not finite, and must not hide it.
            seen = jnp.where(jnp.isfinite(outputs.logits).all(axis=1), loss, jnp.nan)
            fooled = misclassified(outputs.logits, labels)
            if targets is not None:
                fooled = reached(outputs.logits, targets)
            return jnp.sum(loss), (seen, fooled)

        gradient, (loss, fooled) = jax.grad(total, has_aux=True)(images)
        return loss, gradient, fooled

    def value(i: Array, images: Array) -> tuple[Array, Array, Array]:
        if eot_samples == 1:
            return evaluate(i, images, jnp.asarray(0))

        def add(sample: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            loss, gradient, fooled = evaluate(i, images, sample)
            return sums[0] + loss, sums[1] + gradient, sums[2] + fooled

        batch = images.shape[0]
        zeros = jnp.zeros(batch, images.dtype), jnp.zeros_like(images), jnp.zeros(batch, jnp.int32)
        loss, gradient, fooled = jax.lax.fori_loop(0, eot_samples, add, zeros)
        return loss / eot_samples, gradient / eot_samples, 2 * fooled > eot_samples

    return value
