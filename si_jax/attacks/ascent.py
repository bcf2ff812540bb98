"""The engine under every gradient attack: maximise a loss inside a threat model, one step at a time.

An ascent needs three things: a *value function* (the loss and its gradient), a *rule* (how a point moves) and
a *projection* (where it may go). `ascend` knows none of them in particular, so PGD, APGD and the attacks
inside training share it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from si_jax.attacks import rows
from si_jax.threat import IMAGE

Array = jax.Array
# (step i, images [B, H, W, C]) -> (loss [B], gradient [B, H, W, C], fooled [B])
Value = Callable[[Array, Array], tuple[Array, Array, Array]]
Project = Callable[[Array], Array]


class Rule(NamedTuple):
    """How a point moves; like an optax.GradientTransformation, but it projects (APGD does so twice a step).

    Attributes:
        init: images [B, H, W, C] -> state, a pytree.
        update: (i, images, loss [B], gradient, state, project) -> (next images, state).
    """

    init: Callable[[Array], Any]
    update: Callable[[Array, Array, Array, Array, Any, Project], tuple[Array, Any]]


class Gradients(NamedTuple):
    """What was wrong with the gradients of an image.

    Attributes:
        zero: [B] bool, whether the first one was zero in every entry, so that it showed no way.
        not_finite: [B] bool, whether an entry of any of them was NaN or infinite.
    """

    zero: Array
    not_finite: Array


def none_seen(batch: int) -> Gradients:
    """Before the first gradient of so many images."""
    return Gradients(jnp.zeros(batch, bool), jnp.zeros(batch, bool))


def usable(gradient: Array, seen: Gradients, i: Array) -> tuple[Array, Gradients]:
    """The gradient [B, H, W, C] of step `i`, with 0 for entries that are not finite, and what was seen."""
    finite = jnp.isfinite(gradient)
    gradient = jnp.where(finite, gradient, 0)
    flat = (gradient == 0).all(axis=IMAGE)
    return gradient, Gradients(jnp.where(i == 0, flat, seen.zero), seen.not_finite | ~finite.all(axis=IMAGE))


def higher(loss: Array, best: Array) -> Array:
    """Whether a loss [B] takes the place of the best of a search. NaN does, and stays: it is seen."""
    return (loss > best) | jnp.isnan(loss)


class Ascent(NamedTuple):
    """What an ascent saw.

    Attributes:
        last: [B, H, W, C], the point after the last step.
        best: [B, H, W, C], the point of highest loss among those evaluated: the start and all further ones
            but `last`, which `evaluate_last` adds.
        best_loss: [B], its loss.
        fooled_image: [B, H, W, C], the latest evaluated point that was misclassified, else the start.
        fooled: [B] bool, whether any evaluated point was misclassified.
        gradients: What was wrong with the gradients.
    """

    last: Array
    best: Array
    best_loss: Array
    fooled_image: Array
    fooled: Array
    gradients: Gradients


class UnderWay(NamedTuple):
    """An ascent under way: what was seen, and the rule's state. Each leaf has a leading batch axis."""

    seen: Ascent
    rule_state: Any


def begin(start: Array, rule: Rule) -> UnderWay:
    """An ascent of which no step was made, from `start` [B, H, W, C]."""
    batch = start.shape[:1]
    lowest = jnp.full(batch, -jnp.inf, start.dtype)
    return UnderWay(
        Ascent(start, start, lowest, start, jnp.zeros(batch, bool), none_seen(len(start))), rule.init(start)
    )


def step(
    i: Array | int, under_way: UnderWay, *, value: Value, rule: Rule, project: Project, first: Array | int = 0
) -> UnderWay:
    """Step `first + i`: evaluates the last point, then moves on. The arguments are those of `advance`.

    An image whose loss is NaN stays where it is, so that the point is there to be seen.
    """
    x, i = under_way.seen.last, jnp.asarray(first + i)
    loss, gradient, fooled = value(i, x)
    chex.assert_shape([loss, fooled], x.shape[:1])
    chex.assert_equal_shape([x, gradient])
    gradient, gradients = usable(gradient, under_way.seen.gradients, i)
    seen = _track(under_way.seen, x, loss, fooled)
    moved, rule_state = rule.update(i, x, loss, gradient, under_way.rule_state, project)
    last = rows.where(jnp.isnan(loss), x, moved)
    return UnderWay(seen._replace(last=last, gradients=gradients), rule_state)


def advance(
    value: Value,
    under_way: UnderWay,
    *,
    first: Array | int,
    steps: int,
    rule: Rule,
    project: Project,
    unroll: bool = False,
) -> UnderWay:
    """Makes `steps` further steps, numbered from `first`.

    An ascent made in parts equals one made whole; between the parts, finished images can leave the batch.

    Args:
        value: (i, images) -> (loss [B], gradient, fooled [B]).
        under_way: From `begin` or `advance`.
        first: The number of the first step; may be traced.
        steps: A Python integer, so that the loop has a static trip count; an array where it varies.
        rule: How a point moves.
        project: Into the threat model.
        unroll: Unroll the loop in the compiled program.
    """
    body = functools.partial(step, value=value, rule=rule, project=project, first=first)
    if isinstance(steps, int) and steps == 1:
        # JAX makes a loop of one turn, however it is unrolled: XLA would not see that the step begins with a
        # forward pass that was made before (R-FGSM, N-FGSM).
        return body(0, under_way)
    return jax.lax.fori_loop(0, steps, body, under_way, unroll=unroll or None)


def evaluate_last(value: Value, under_way: UnderWay, *, steps: int | Array) -> Ascent:
    """Evaluates the last point too, so that it is a candidate too; `steps` is the number of steps made."""
    loss, _, fooled = value(jnp.asarray(steps), under_way.seen.last)
    return _track(under_way.seen, under_way.seen.last, loss, fooled)


def ascend(
    value: Value, start: Array, *, rule: Rule, project: Project, steps: int, unroll: bool = False
) -> Ascent:
    """Raises `value` from `start` [B, H, W, C] in `steps` steps; the arguments are those of `advance`.

    Returns:
        An `Ascent`; parts that the caller does not use cost nothing once compiled.
    """
    return advance(
        value, begin(start, rule), first=0, steps=steps, rule=rule, project=project, unroll=unroll
    ).seen


def _track(seen: Ascent, x: Array, loss: Array, fooled: Array) -> Ascent:
    better = loss > seen.best_loss
    return seen._replace(
        best=rows.where(better, x, seen.best),
        best_loss=jnp.where(better, loss, seen.best_loss),
        fooled_image=rows.where(fooled, x, seen.fooled_image),
        fooled=seen.fooled | fooled,
    )
