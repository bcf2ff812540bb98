"""Rules: how a point moves in one step of an ascent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from si_jax.attacks.ascent import Project, Rule
from si_jax.errors import unknown

Array = jax.Array


def sign_step(step_size: float, drops: tuple[int, ...] = (), period: int = 0) -> Rule:
    """x <- P(x + a sign(gradient)): steepest ascent in Linf (eq. 3 of the paper).

    Args:
        step_size: a, as a fraction of the pixel range.
        drops: Steps from which a is a tenth of what it was before.
        period: a falls along half a cosine over so many steps, and then anew from `step_size`; 0: it stays.
    """

    def update(
        i: Array, x: Array, loss: Array, gradient: Array, state: Any, project: Project
    ) -> tuple[Array, Any]:
        del loss
        return project(x + _size(step_size, drops, period, i, x) * jnp.sign(gradient)), state

    return Rule(lambda x: (), update)


def l2_direction(gradient: Array) -> Array:
    """gradient / |gradient|_2 of each image, [B, H, W, C]; a zero gradient stays zero."""
    # Scaled by the largest entry first: squares of gradients below 1e-19 vanish in float32.
    largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
    return gradient / jnp.where(norm > 0, norm, 1.0)


# The direction of steepest ascent in each norm.
DIRECTIONS: dict[str, Callable[[Array], Array]] = {'linf': jnp.sign, 'l2': l2_direction}


def l2_step(step_size: float, drops: tuple[int, ...] = (), period: int = 0) -> Rule:
    """x <- P(x + a gradient / |gradient|_2): steepest ascent in L2. A zero gradient stays where it is.

    Args:
        step_size: a, in the L2 norm of the whole image.
        drops: Steps from which a is a tenth of what it was before.
        period: As for `sign_step`.
    """

    def update(
        i: Array, x: Array, loss: Array, gradient: Array, state: Any, project: Project
    ) -> tuple[Array, Any]:
        del loss
        return project(x + _size(step_size, drops, period, i, x) * l2_direction(gradient)), state

    return Rule(lambda x: (), update)


def _size(step_size: float | Array, drops: tuple[int, ...], period: int, i: Array, x: Array) -> float | Array:
    if period:
        share = jnp.asarray(i % period, x.dtype) / period
        step_size = step_size * (1 + jnp.cos(jnp.pi * share)) / 2
    if not drops:
        return step_size
    passed = jnp.sum(jnp.asarray(drops) <= i)
    return jnp.asarray([step_size / 10**n for n in range(len(drops) + 1)], x.dtype)[passed]


def steepest_step(norm: str, step_size: float, drops: tuple[int, ...] = (), period: int = 0) -> Rule:
    """The steepest-ascent rule of a norm: `sign_step` for 'linf', `l2_step` for 'l2'."""
    steps = {'linf': sign_step, 'l2': l2_step}
    if norm not in steps:
        raise unknown('norm', norm, steps)
    return steps[norm](step_size, drops, period)
