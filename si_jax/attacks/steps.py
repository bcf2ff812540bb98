"""Steps: how a point moves in one step of an ascent, as rules of the engine in `ascent`.

`steepest_step` is the step of PGD, for every norm: which direction is the steepest is the ball's to say
(`si_jax.threat.Ball`). `sparse_step` is another one for L1. APGD, which chooses its own step size, has its
rules in `apgd` and `apgd_l1`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from si_jax import l1
from si_jax.attacks.ascent import Project, Rule
from si_jax.errors import InputError
from si_jax.threat import ball_of

Array = jax.Array


def steepest_step(norm: str, step_size: float, drops: tuple[int, ...] = (), period: int = 0) -> Rule:
    """Steepest ascent: x <- P(x + a d), with d the direction of length 1 in which the loss rises fastest.

    In Linf d is the sign of the gradient (eq. 3 of the paper), in L2 the gradient divided by its length. In
    L1 pixels of large gradient are moved first, each as far as 0 or 1. Where the gradient is zero the image
    stays.

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
        return project(ball.ascend(x, gradient, _size(step_size, drops, period, i, x))), state

    return Rule(lambda x: (), update)


def sparse_step(step_size: float, share: float = 0.05) -> Rule:
    """A step in L1 that moves a fixed share of the pixels, those of largest gradient, all by as much.

    It is the step of APGD in L1 (`apgd_l1`), which chooses the share itself. To run PGD with it, give
    `Attack(rule=sparse_step)`, or `functools.partial(sparse_step, share=...)`.

    Args:
        step_size: Length of the step in L1.
        share: Of the pixels, in (0, 1]; by default that with which E-AT (fra31/robust-finetuning) begins.

    Raises:
        InputError: `share` is out of range.

    Source: Tramer and Boneh (2019), Adversarial training and robustness for multiple perturbations, sec. 3.3
    (SLIDE), with a share of 0.01.
    """
    if not 0 < share <= 1:
        raise InputError(f'share={share:g} is not in (0, 1]: it is the share of the pixels in a step')

    def update(
        i: Array, x: Array, loss: Array, gradient: Array, state: Any, project: Project
    ) -> tuple[Array, Any]:
        del i, loss
        return project(x + step_size * l1.largest(gradient, share)), state

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
