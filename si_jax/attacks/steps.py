"""Steps: how a point moves in one step of an ascent, as rules of the engine in `ascent`.

`steepest_step` is the step of PGD, for every norm: which direction is the steepest is the ball's to say
(`si_jax.threat.Ball`). APGD, which chooses its own step size, has its rule in `apgd`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from si_jax.attacks.ascent import Project, Rule
from si_jax.threat import ball_of

Array = jax.Array


def steepest_step(norm: str, step_size: float, drops: tuple[int, ...] = (), period: int = 0) -> Rule:
    """Steepest ascent: x <- P(x + a d), with d the direction of length 1 in which the loss rises fastest.

    In Linf d is the sign of the gradient (eq. 3 of the paper), in L2 the gradient divided by its length.
    Where the gradient is zero the image stays.

    Args:
        norm: A row of `si_jax.threat.BALLS`.
        step_size: a, in that norm: for Linf a fraction of the pixel range.
        drops: Steps from which a is a tenth of what it was before.
        period: a falls along half a cosine over so many steps, and then anew from `step_size`; 0: it stays.

    Raises:
        InputError: Unknown norm.
    """
    ball = ball_of(norm)

    def update(
        i: Array, x: Array, loss: Array, gradient: Array, state: Any, project: Project
    ) -> tuple[Array, Any]:
        del loss
        return project(x + _size(step_size, drops, period, i, x) * ball.steepest(gradient)), state

    return Rule(lambda x: (), update)


def _size(step_size: float | Array, drops: tuple[int, ...], period: int, i: Array, x: Array) -> float | Array:
    """The step size in step `i`."""
    if period:
        share = jnp.asarray(i % period, x.dtype) / period
        step_size = step_size * (1 + jnp.cos(jnp.pi * share)) / 2
    if not drops:
        return step_size
    passed = jnp.sum(jnp.asarray(drops) <= i)
    return jnp.asarray([step_size / 10**n for n in range(len(drops) + 1)], x.dtype)[passed]
