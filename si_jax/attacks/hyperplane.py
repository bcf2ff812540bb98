"""The shortest way from a point onto a hyperplane without leaving [0, 1]^d, for Linf, L2 and L1.

Let w and the gap be flipped so that gap = <w, t> - b >= 0. Coordinate i moves against w_i and has room r_i
until it meets its bound. Linf and L2 move it by min(lambda s_i, r_i), with s_i = 1 for Linf and s_i = |w_i|
for L2, and lambda is the root of

    h(lambda) = sum_i |w_i| min(lambda s_i, r_i) = gap.

h increases, is concave and piecewise linear, so Newton's method from lambda = 0 rises to the root and reaches
it exactly after finitely many steps: each one extends the set of coordinates that have met their bounds, or
is the last. No sort is needed.

In L1 a coordinate of large |w_i| closes more of the gap for the same length. So the coordinates move as far
as they can in that order, and the last one as far as it must.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from si_jax import l1
from si_jax.errors import unknown

Array = jax.Array


def displacement(points: Array, normal: Array, gap: Array, norm: str) -> Array:
    """The displacement of least norm that puts points of [0, 1]^d on a hyperplane and keeps them in [0, 1]^d.

    Where the box does not reach the hyperplane, the way to the corner of the box that is nearest to it.

    Args:
        points: t, [B, d] in [0, 1].
        normal: w, [B, d].
        gap: <w, t> - b, [B], of either sign.
        norm: A row of `MOVES`, the norm that is made least.

    Returns:
        [B, d]; zero where w is.

    Raises:
        InputError: Unknown norm.

    Source: Croce and Hein (2020), Minimally distorted adversarial examples with a fast adaptive boundary
    attack, which sorts the coordinates.
    """
    if norm not in MOVES:
        raise unknown('norm', norm, MOVES)
    chex.assert_rank([points, gap], [2, 1])
    chex.assert_equal_shape([points, normal])
    # Scaled to a largest entry of 1: squares of gradients below 1e-19 vanish in float32.
    largest = jnp.max(jnp.abs(normal), axis=1)
    scale = jnp.where(gap < 0, -1.0, 1.0) / jnp.where(largest > 0, largest, 1.0)
    normal, gap = normal * scale[:, None].astype(normal.dtype), jnp.abs(gap * scale.astype(gap.dtype))

    weight = jnp.abs(normal)
    room = jnp.where(normal > 0, points, jnp.where(normal < 0, 1 - points, 0))
    return -jnp.sign(normal) * MOVES[norm](weight, room, gap)


def _at_one_speed(speed_of: Callable[[Array], Array], weight: Array, room: Array, gap: Array) -> Array:
    """How far each coordinate moves, [B, d], in Linf and L2; `speed_of` gives s from |w|."""
    speed = speed_of(weight)

    def newton(length: Array) -> Array:
        stopped = room <= length[:, None] * speed
        done = jnp.sum(jnp.where(stopped, weight * room, 0), axis=1)
        slope = jnp.sum(jnp.where(stopped, 0, weight * speed), axis=1)
        # Without a coordinate left to move there is no root: the corner.
        return jnp.where(slope > 0, (gap - done) / jnp.where(slope > 0, slope, 1), length)

    def step(lengths: tuple[Array, Array]) -> tuple[Array, Array]:
        return lengths[1], jnp.maximum(newton(lengths[1]), lengths[1])

    # Rows that have their root stay there, so that no row depends on the others.
    first = jnp.zeros_like(gap)
    _, length = jax.lax.while_loop(
        lambda lengths: jnp.any(lengths[1] > lengths[0]), step, (first, newton(first))
    )
    return jnp.minimum(length[:, None] * speed, room)


def _largest_first(weight: Array, room: Array, gap: Array) -> Array:
    """How far each coordinate moves, [B, d], in L1; of coordinates of equal weight each by the same share."""
    return room * l1.fill(weight, weight * room, gap[:, None])


# From |w| [B, d], r [B, d] and the gap [B] how far each coordinate moves, [B, d]; in L1 h is not concave.
MOVES: dict[str, Callable[[Array, Array, Array], Array]] = {
    'linf': functools.partial(_at_one_speed, jnp.ones_like),
    'l2': functools.partial(_at_one_speed, lambda weight: weight),
    'l1': _largest_first,
}
