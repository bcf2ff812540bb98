"""The shortest way from a point onto a hyperplane without leaving [0, 1]^d, for Linf and L2.

Let w and the gap be flipped so that gap = <w, t> - b >= 0. Coordinate i moves against w_i and has room r_i
until it meets its bound. Both norms move it by min(lambda s_i, r_i), with s_i = 1 for Linf and s_i = |w_i|
for L2, and lambda is the root of

    h(lambda) = sum_i |w_i| min(lambda s_i, r_i) = gap.

h increases, is concave and piecewise linear, so Newton's method from lambda = 0 rises to the root and reaches
it exactly after finitely many steps: each one extends the set of coordinates that have met their bounds, or
is the last. No sort is needed.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from si_jax.errors import unknown

Array = jax.Array
# s of each norm, from |w|. Another norm is another algorithm if h is not concave: Newton is wrong for L1.
SPEEDS: dict[str, Callable[[Array], Array]] = {'linf': jnp.ones_like, 'l2': lambda weight: weight}


def displacement(points: Array, normal: Array, gap: Array, norm: str) -> Array:
    """The displacement of least norm that puts points of [0, 1]^d on a hyperplane and keeps them in [0, 1]^d.

    Where the box does not reach the hyperplane, the way to the corner of the box that is nearest to it.

    Args:
        points: t, [B, d] in [0, 1].
        normal: w, [B, d].
        gap: <w, t> - b, [B], of either sign.
        norm: A row of `SPEEDS`, the norm that is made least.

    Returns:
        [B, d]; zero where w is.

    Raises:
        InputError: Unknown norm.

    Source: Croce and Hein (2020), Minimally distorted adversarial examples with a fast adaptive boundary
    attack, which sorts the coordinates.
    """
    if norm not in SPEEDS:
        raise unknown('norm', norm, SPEEDS)
    chex.assert_rank([points, gap], [2, 1])
    chex.assert_equal_shape([points, normal])
    # Scaled to a largest entry of 1: squares of gradients below 1e-19 vanish in float32.
    largest = jnp.max(jnp.abs(normal), axis=1)
    scale = jnp.where(gap < 0, -1.0, 1.0) / jnp.where(largest > 0, largest, 1.0)
    normal, gap = normal * scale[:, None].astype(normal.dtype), jnp.abs(gap * scale.astype(gap.dtype))

    weight = jnp.abs(normal)
    room = jnp.where(normal > 0, points, jnp.where(normal < 0, 1 - points, 0))
    speed = SPEEDS[norm](weight)

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
    return -jnp.sign(normal) * jnp.minimum(length[:, None] * speed, room)
