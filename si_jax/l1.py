"""The arithmetic of the L1 ball in the range of pixels: its projection, and how to take the largest entries.

In L1 an attack has one budget for all pixels together, so that it moves few pixels, each by much. Its three
questions are which pixels are the best, how far these can go before they meet 0 or 1, and which point of the
ball is nearest. Nothing here sorts: a sort of 3,072 entries takes longer than a small network.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def project(images: Array, centre: Array, eps: Any) -> Array:
    """The point of {x : |x - centre|_1 <= eps, 0 <= x <= 1} that is nearest in Euclidean distance.

    With y = images - centre and the room b_i = min(|y_i|, the way of pixel i to its bound), the point is at
    d_i = sign(y_i) clip(|y_i| - a, 0, b_i), with the a > 0 at which |d|_1 = eps. That sum falls with a in
    straight pieces, neither convex nor concave, so Newton's method does not find a. Halving an interval finds
    the piece, and an equation in one unknown then gives a. Entries that are cut away are exactly 0.

    Args:
        images: [B, ...]. Those within the ball come back as they are, unless a pixel is not in [0, 1]: the
            caller clips.
        centre: [B, ...] in [0, 1].
        eps: The radius, a number or a scalar array.

    Returns:
        [B, ...]; the distance in L1 exceeds eps by no more than the rounding of a sum.

    Source: Croce and Hein (2021), Mind the box: l1-APGD for sparse adversarial attacks on image classifiers,
    proposition 2.1, which sorts the ends of the pieces.
    """
    y = images - centre
    total = functools.partial(jnp.sum, axis=_inner(y), keepdims=True)
    size = jnp.abs(y)
    room = jnp.minimum(size, jnp.where(y > 0, 1 - centre, centre))

    def kept(a: Array) -> Array:
        # Selections: minima and maxima, which must pass on NaN, take four times as long on a CPU.
        return jnp.where(size - a > room, room, jnp.where(size > a, size - a, 0))

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        small = total(kept(middle)) <= eps
        return jnp.where(small, ends[0], middle), jnp.where(small, middle, ends[1])

    high = jnp.max(size, axis=_inner(y), keepdims=True)
    low, high = jax.lax.fori_loop(0, jnp.finfo(y.dtype).nmant + 7, halve, (jnp.zeros_like(high), high))
    # a is at most `high`, and below it by what is left of eps, shared by the entries that move with it. The
    # small differences are added up: a itself has too few digits to tell them.
    above = size - high
    inside = jnp.minimum(jnp.maximum(above, 0), room)
    count = total(((above > 0) & (above < room)).astype(y.dtype))
    below = jnp.clip((eps - total(inside)) / jnp.maximum(count, 1), 0, high - low)
    below = jnp.where(count > 0, below, 0)
    delta = jnp.sign(y) * jnp.minimum(jnp.maximum(above + below, 0), room)
    # Rounded towards the centre: else equal pixels would all be rounded the same way, and the sum would show.
    moved = centre + delta
    moved = jnp.where(jnp.abs(moved - centre) > jnp.abs(delta), jnp.nextafter(moved, centre), moved)
    return jnp.where(total(room) <= eps, images, moved)


def level(priority: Array, amount: Array, wanted: Array | float) -> Array:
    """The highest t at which the amounts of the entries with priority >= t sum up to `wanted`.

    Args:
        priority: [B, ...], not negative.
        amount: [B, ...], not negative.
        wanted: Positive; a number, or [B, 1, ...].

    Returns:
        [B, 1, ...]: one of the priorities, exactly; 0 where all amounts together are less.
    """
    # The bits of numbers that are not negative, read as integers, are in the order of the numbers.
    integer = jnp.int64 if priority.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(priority, integer)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle, amount, 0), axis=_inner(bits), keepdims=True) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    high = jnp.max(bits, axis=_inner(bits), keepdims=True) + 1
    low, _ = jax.lax.fori_loop(0, jnp.iinfo(integer).bits - 1, halve, (jnp.zeros_like(high), high))
    return jax.lax.bitcast_convert_type(low, priority.dtype)


def fill(priority: Array, amount: Array, wanted: Array | float) -> Array:
    """Which share of each amount is taken, the highest priority first, until `wanted` is reached.

    The arguments are those of `level`. Where several entries have the last priority, each gives the same
    share of its amount.

    Returns:
        [B, ...] in [0, 1].
    """
    last = level(priority, amount, wanted)
    total = functools.partial(jnp.sum, axis=_inner(amount), keepdims=True)
    above = total(jnp.where(priority > last, amount, 0))
    there = total(jnp.where(priority == last, amount, 0))
    share = jnp.clip((wanted - above) / jnp.where(there > 0, there, 1), 0, 1)
    return jnp.where(priority > last, 1, jnp.where(priority == last, share, 0))


def largest(gradient: Array, share: Array | float) -> Array:
    """The direction of APGD in L1: the signs of the largest entries, of length 1 in L1.

    Args:
        gradient: [B, H, W, C].
        share: Of the entries, in [0, 1]: a number, or [B]. At least one entry is taken, and all that equal
            the smallest one taken.

    Returns:
        [B, H, W, C]; zero where the gradient is.
    """
    size = jnp.abs(gradient)
    count = gradient[0].size
    share = jnp.asarray(share, gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1))
    # In the order from the smallest this is the first entry that is taken, as in the reference code.
    first = jnp.floor(jnp.clip((1 - share) * count, 0, count - 1))
    signs = jnp.where(size >= level(size, jnp.ones_like(size), count - first), jnp.sign(gradient), 0)
    return signs / (jnp.sum(jnp.abs(signs), axis=_inner(signs), keepdims=True) + 1e-10)


def _inner(array: Array) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))
