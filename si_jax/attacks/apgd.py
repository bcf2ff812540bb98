"""APGD: projected gradient ascent with momentum that chooses its own step size.

`rule` is a rule of the engine of `ascent`, and `apgd` the search that AutoAttack makes of it. The step starts
at 2 eps. At fixed checkpoints APGD asks whether the loss still rises, for each image by itself; where it does
not, APGD halves the step and goes on from the best point.

Source: Croce and Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", algorithm 1; details as in repository fra31/auto-attack, autopgd_base.py. In L1 it is
another algorithm: `apgd_l1`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks import rows
from si_jax.attacks.ascent import Project, Rule, higher
from si_jax.attacks.search import Search, TargetedObjective, gradient_search
from si_jax.errors import InputError
from si_jax.objectives import Objective
from si_jax.outputs import Score, logits
from si_jax.threat import Threat

Array = jax.Array

MOMENTUM = 0.75  # alpha of the paper: the share of the gradient step
RHO = 0.75  # the share of a window's steps that must raise the loss


class State(NamedTuple):
    """What the rule remembers; every leaf has a leading batch axis.

    Attributes:
        previous: [B, H, W, C], the point before the present one.
        previous_loss: [B], the loss of the point evaluated before; 0 before the first step (see `rule`).
        best: [B, H, W, C], the point of highest loss.
        best_gradient: [B, H, W, C], the gradient there.
        best_loss: [B], its loss.
        checkpoint_loss: [B], `best_loss` at the last checkpoint.
        increases: [B] int32, steps since the last checkpoint that raised the loss.
        step_size: [B].
        halved: [B] bool, whether the step was halved at the last checkpoint.
    """

    previous: Array
    previous_loss: Array
    best: Array
    best_gradient: Array
    best_loss: Array
    checkpoint_loss: Array
    increases: Array
    step_size: Array
    halved: Array


def windows(steps: int) -> np.ndarray:
    """For each number of steps made, 0..steps: the length of the window that ends there, 0 if none does.

    The first window is 22 % of the steps, each further one 3 % shorter, down to 6 %.
    """
    ends = np.zeros(steps + 1, np.int32)
    length, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    end = length
    while end <= steps:
        ends[end] = length
        length = max(length - shrink, least)
        end += length
    return ends


def rule(threat: Threat, steps: int) -> Rule:
    """The rule of APGD for a run of `steps` steps.

    APGD moves from x to P(x + a (v - x) + (1 - a) (x - x_previous)) with v = P(x + step_size * direction),
    where a is 1 in the first step and then 0.75. At the end of each of the `windows` an image halves its step
    and goes back to its best point (with the gradient there, and without forgetting x_previous) if at most
    0.75 of the window's steps raised the loss, or if its best loss is what it was at the last checkpoint and
    the step was not halved then. In the first window the first comparison is with 0 in place of the start's
    loss, as in the reference code.

    Args:
        threat: The ball; `eps` sets the first step, 2 eps.
        steps: Number of steps; `update` also takes i = steps, for the evaluation of the last point.

    Raises:
        InputError: An unknown norm, L1, or fewer than one step.
    """
    if threat.ball.sparse:
        raise InputError(f'the APGD of {threat.norm} is another algorithm: use apgd_l1 in place of apgd')
    if steps < 1:
        raise InputError(f'APGD needs at least one step, not steps={steps}')
    direction = threat.ball.steepest
    table = windows(steps)

    def init(x: Array) -> State:
        zeros = jnp.zeros(x.shape[:1], x.dtype)
        return State(
            previous=x,
            previous_loss=zeros,
            best=x,
            best_gradient=jnp.zeros_like(x),
            best_loss=zeros - jnp.inf,
            checkpoint_loss=zeros - jnp.inf,
            increases=jnp.zeros(x.shape[:1], jnp.int32),
            step_size=zeros + 2 * threat.eps,
            # So that an unchanged best loss does not count at the first checkpoint.
            halved=jnp.ones(x.shape[:1], bool),
        )

    def update(
        i: Array, x: Array, loss: Array, gradient: Array, state: State, project: Project
    ) -> tuple[Array, State]:
        better = higher(loss, state.best_loss)
        best = rows.where(better, x, state.best)
        best_gradient = rows.where(better, gradient, state.best_gradient)
        best_loss = jnp.where(better, loss, state.best_loss)
        increases = state.increases + ((loss > state.previous_loss) & (i > 0))

        window = jnp.asarray(table)[i]
        at_checkpoint = window > 0
        stalled = ~state.halved & (state.checkpoint_loss >= best_loss)
        halve = at_checkpoint & ((increases <= RHO * window) | stalled)
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        x = rows.where(halve, best, x)
        gradient = rows.where(halve, best_gradient, gradient)

        share = jnp.where(i > 0, MOMENTUM, 1.0).astype(x.dtype)
        target = project(x + step_size[:, None, None, None] * direction(gradient))
        moved = project(x + share * (target - x) + (1 - share) * (x - state.previous))
        return moved, State(
            previous=x,
            previous_loss=jnp.where(i > 0, loss, state.previous_loss),
            best=best,
            best_gradient=best_gradient,
            best_loss=best_loss,
            checkpoint_loss=jnp.where(at_checkpoint, best_loss, state.checkpoint_loss),
            increases=jnp.where(at_checkpoint, 0, increases),
            step_size=step_size,
            halved=jnp.where(at_checkpoint, halve, state.halved),
        )

    return Rule(init, update)


def random_start(threat: Threat, keys: Array, images: Array) -> Array:
    """A random start on the surface of the ball, clipped to [0, 1].

    Linf: x + eps t / max|t| with t uniform in [-1, 1]; L2: x + eps t / |t|_2 with t normal.

    Args:
        threat: The ball.
        keys: [B] typed PRNG keys, one an image.
        images: [B, H, W, C].
    """
    t, length = threat.random_direction(keys, images)
    return jnp.clip(images + threat.eps * (t / (length + 1e-12)), 0.0, 1.0)


def apgd(
    objective: Objective | TargetedObjective,
    score: Score = logits,
    *,
    steps: int = 100,
    eot_samples: int = 1,
    aimed: bool = False,
) -> Search:
    """APGD as a search, from a random start.

    An image keeps its first misclassified point and is done (the reference code goes on and returns the
    latest, as `ascend` with the `rule` above does); which images are fooled does not depend on it. For
    iterations and queries see `search.gradient_search`.

    Args:
        objective: What to raise, a loss of the adversarial score. A function from target classes [B] to it
            (`objectives.targeted_dlr`) makes the search a targeted one, toward `Problem.targets`.
        score: What the objective is computed from.
        steps: Number of steps.
        eot_samples: Gradients averaged per step, for randomised classifiers; 20 in AutoAttack's "rand".
        aimed: As in `gradient_search`.
    """
    return gradient_search(
        objective,
        score,
        start=random_start,
        rule=lambda threat, images: rule(threat, steps),
        steps=steps,
        eot_samples=eot_samples,
        aimed=aimed,
        worst=lambda last, state: state.best,
    )
