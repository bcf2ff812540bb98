"""The engine under every gradient attack: maximise a loss inside a threat model, one step at a time.

An attack is a *value function* (what to climb), a *rule* (how a point moves) and a *projection* (where it may
go). `ascend` knows none of them in particular, so PGD, APGD and the attacks inside training share it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class Ascent(NamedTuple):
    """What an ascent saw.

    Attributes:
        last: [B, H, W, C], the point after the last step.
        best: [B, H, W, C], the point of highest loss among those evaluated (start included, `last` not,
            unless `evaluate_last`).
        best_loss: [B], its loss.
        fooled_image: [B, H, W, C], the latest evaluated point that was misclassified, else the start.
        fooled: [B] bool, whether any evaluated point was misclassified.
    """

    last: Array
    best: Array
    best_loss: Array
    fooled_image: Array
    fooled: Array


def ascend(
    value: Value,
    start: Array,
    *,
    rule: Rule,
    project: Project,
    steps: int,
    evaluate_last: bool = False,
    unroll: bool = False,
) -> Ascent:
    """Climbs `value` from `start` for `steps` steps.

    Args:
        value: (i, images) -> (loss [B], gradient, fooled [B]); i counts from 0.
        start: [B, H, W, C], inside the threat model.
        rule: How a point moves.
        project: Into the threat model.
        steps: A Python integer, so that the loop has a static trip count.
        evaluate_last: Evaluate the last point too (one more forward and backward pass), as APGD does. Without
            it `last` is not among the candidates for `best` and `fooled_image`.
        unroll: Unroll the loop in the compiled program.

    Returns:
        An `Ascent`; parts that the caller does not use cost nothing once compiled.
    """

    def track(i: Array, x: Array, seen: Ascent) -> tuple[Ascent, Array, Array]:
        loss, gradient, fooled = value(i, x)
        better = loss > seen.best_loss
        seen = seen._replace(
            best=_where(better, x, seen.best),
            best_loss=jnp.where(better, loss, seen.best_loss),
            fooled_image=_where(fooled, x, seen.fooled_image),
            fooled=seen.fooled | fooled,
        )
        return seen, loss, gradient

    def body(i: Array, carry: tuple[Ascent, Any]) -> tuple[Ascent, Any]:
        seen, state = carry
        x = seen.last
        seen, loss, gradient = track(i, x, seen)
        x, state = rule.update(i, x, loss, gradient, state, project)
        return seen._replace(last=x), state

    batch = start.shape[:1]
    nothing = Ascent(start, start, jnp.full(batch, -jnp.inf, start.dtype), start, jnp.zeros(batch, bool))
    seen, _ = jax.lax.fori_loop(0, steps, body, (nothing, rule.init(start)), unroll=unroll or None)
    if evaluate_last:
        seen, _, _ = track(jnp.asarray(steps), seen.last, seen)
    return seen


def _where(condition: Array, chosen: Array, other: Array) -> Array:
    return jnp.where(condition.reshape((-1,) + (1,) * (chosen.ndim - 1)), chosen, other)
