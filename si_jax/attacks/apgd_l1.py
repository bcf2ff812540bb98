"""APGD in L1: sparse steps, as many pixels at once as the best point found so far calls for.

In L1 a good perturbation moves few pixels, and nobody knows beforehand how few. So APGD steps along the signs
of the largest entries of the gradient, and takes two thirds as many entries as the best point has moved.
Where that number falls, it goes back to the best point with the longest step; where it does not, the step
gets shorter. APGD in Linf and L2 (`apgd`) has none of this, and this one has no momentum.

The protocol begins in larger balls ("largereps"): 30 % of the steps in three times the radius, 30 % in twice
the radius, the rest in the ball itself. The best point of each part, projected, starts the next.

Source: Croce and Hein (2021), "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
algorithm 1 and section 3; details as in repository fra31/auto-attack, autopgd_base.py.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import l1
from si_jax.attacks import rows
from si_jax.attacks.ascent import Project, Rule, higher
from si_jax.attacks.search import Search, TargetedObjective, gradient_search
from si_jax.errors import InputError
from si_jax.objectives import Objective
from si_jax.outputs import Score, logits
from si_jax.threat import IMAGE, Threat

Array = jax.Array

RADII = (3.0, 2.0, 1.0)  # of the balls, as multiples of eps
EARLY = 0.3  # the share of the steps in each of the larger balls
FIRST_SHARE = 0.2  # of the pixels in the first steps from a start that is not sparse
FEWER = 1.5  # a step takes so many times fewer pixels than the best point has moved, and shrinks by as much
SHORTEST = 0.1  # step, as a multiple of the radius
SPARSER = 0.95  # the number of moved pixels has fallen if it is below so much of what it was
CHECK = 0.04  # of a ball's steps lie between two checks


class Ball(NamedTuple):
    """A part of a run.

    Attributes:
        radius: As a multiple of eps.
        steps: Made in it; one evaluation more, of the last point, ends it.
    """

    radius: float
    steps: int


def balls(steps: int, largereps: bool) -> tuple[Ball, ...]:
    """The parts of a run of `steps` steps.

    Raises:
        InputError: Too few steps.
    """
    early = math.ceil(EARLY * steps)
    least = 2 if largereps else 1
    if steps < least:
        raise InputError(f'APGD in L1 needs at least {least} steps, not steps={steps}')
    if not largereps:
        return (Ball(1.0, steps),)
    return tuple(map(Ball, RADII, (early, early, steps - 2 * early)))


class State(NamedTuple):
    """What the rule remembers; every leaf has a leading batch axis.

    Attributes:
        best: [B, H, W, C], the point of highest loss in the present ball.
        best_gradient: [B, H, W, C], the gradient there.
        best_loss: [B], its loss; -inf before the first evaluation in a ball.
        step_size: [B].
        share: [B], of the pixels that a step takes.
        moved: [B], how many pixels the best point had moved at the last check.
    """

    best: Array
    best_gradient: Array
    best_loss: Array
    step_size: Array
    share: Array
    moved: Array


def rule(
    threat: Threat,
    images: Array,
    steps: int,
    *,
    largereps: bool = True,
    first_share: float = FIRST_SHARE,
) -> Rule:
    """The rule of APGD in L1 for a run of `steps` steps around the images [B, H, W, C].

    It projects into the ball that it is in, not by the engine's projection, and so takes one iteration more
    than steps for each ball. Without `largereps` the first steps take `first_share` of the pixels.

    Raises:
        InputError: Too few steps.
    """
    parts = balls(steps, largereps)
    count = images[0].size
    # For each iteration: the radius of its ball, that of the point it moves to, whether the two differ, and
    # whether the sparsity is checked.
    radius = np.concatenate([np.full(part.steps + 1, part.radius) for part in parts])
    ends = np.concatenate([np.arange(part.steps + 1) == part.steps for part in parts])
    following = np.append(radius[1:], radius[-1])
    checks = np.concatenate([_checks(part.steps) for part in parts])

    def moved(points: Array) -> Array:
        return jnp.sum(points != images, axis=IMAGE).astype(points.dtype)

    def init(x: Array) -> State:
        fill = jnp.zeros(x.shape[:1], x.dtype)
        if largereps:
            begun = moved(x)
            share = begun / count / FEWER
        else:
            begun, share = fill + count, fill + first_share
        return State(x, jnp.zeros_like(x), fill - jnp.inf, fill + parts[0].radius * threat.eps, share, begun)

    def update(
        i: Array, x: Array, loss: Array, gradient: Array, state: State, project: Project
    ) -> tuple[Array, State]:
        del project
        better = higher(loss, state.best_loss)
        best = rows.where(better, x, state.best)
        best_gradient = rows.where(better, gradient, state.best_gradient)
        best_loss = jnp.where(better, loss, state.best_loss)

        eps = (jnp.asarray(radius, x.dtype) * threat.eps)[i]
        check = jnp.asarray(checks)[i]
        now = moved(best)
        sparser = check & (now / state.moved < SPARSER)
        shorter = jnp.clip(jnp.where(sparser, eps, state.step_size / FEWER), SHORTEST * eps, eps)
        step_size = jnp.where(check, shorter, state.step_size)
        share = jnp.where(check, now / count / FEWER, state.share)
        now = jnp.where(check, now, state.moved)

        point = rows.where(sparser, best, x)
        direction = l1.largest(rows.where(sparser, best_gradient, gradient), share)
        end = jnp.asarray(ends)[i]
        target = jnp.where(end, best, point + step_size[:, None, None, None] * direction)
        next_eps = (jnp.asarray(following, x.dtype) * threat.eps)[i]
        x = dataclasses.replace(threat, eps=next_eps).project(target, images)  # type: ignore[arg-type]

        begun = moved(x)
        return x, State(
            best=jnp.where(end, x, best),
            best_gradient=best_gradient,
            best_loss=jnp.where(end, -jnp.inf, best_loss),
            step_size=jnp.where(end, next_eps, step_size),
            share=jnp.where(end, begun / count / FEWER, share),
            moved=jnp.where(end, begun, now),
        )

    return Rule(init, update)


def _checks(steps: int) -> np.ndarray:
    """After which of the steps 0..steps the sparsity is checked; after the last one it changes nothing."""
    numbers = np.arange(steps + 1)
    return (numbers > 0) & (numbers < steps) & (numbers % max(int(CHECK * steps), 1) == 0)


def random_start(threat: Threat, keys: Array, images: Array) -> Array:
    """A random start: the image plus t, projected, with t normal in every entry."""
    return threat.project(images + threat.random_direction(keys, images)[0], images)


def apgd_l1(
    objective: Objective | TargetedObjective,
    score: Score = logits,
    *,
    steps: int = 100,
    eot_samples: int = 1,
    largereps: bool = True,
    aimed: bool = False,
) -> Search:
    """APGD in L1 as a search; the arguments are those of `apgd.apgd`.

    Args:
        objective: What to raise.
        score: What the objective is computed from.
        steps: Number of steps in all balls together.
        eot_samples: Gradients averaged per step.
        largereps: Whether to begin in larger balls, whose points do not count as found.
        aimed: As in `gradient_search`.

    Raises:
        InputError: Too few steps.
    """
    parts = balls(steps, largereps)

    def start(threat: Threat, keys: Array, images: Array) -> Array:
        wide = dataclasses.replace(threat, eps=parts[0].radius * threat.eps)
        return random_start(wide, keys, images)

    return gradient_search(
        objective,
        score,
        start=start,
        rule=lambda threat, images: rule(threat, images, steps, largereps=largereps),
        steps=steps,
        eot_samples=eot_samples,
        idle=len(parts),
        aimed=aimed,
        counted_from=steps + len(parts) - 1 - parts[-1].steps,
    )
