"""MALT: the classes to aim at, in the order in which their boundaries look near.

A targeted attack on a classifier of many classes cannot try all of them. AutoAttack takes those of the
highest logits. But a class with a lower logit is nearer if its logit rises faster: to first order the
boundary between the label y and a class k is at the distance (g_y - g_k) / |gradient of g_k - g_y|, in the
dual norm. MALT orders the classes by it.

Source: Melamed, Yehudai and Shamir (2024), MALT Powers Up Adversarial Attacks (NeurIPS).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from si_jax.threat import Ball

Array = jax.Array

CANDIDATES = 100  # the classes of highest logits but the label, among which MALT chooses


def distances(
    logits: Callable[[Array], Array], images: Array, labels: Array, candidates: Array, ball: Ball
) -> Array:
    """How far the boundary to each candidate looks, [B, T]; inf where the gradient is zero.

    Entries of a gradient that are not finite count as 0.

    It takes one forward pass and T backward passes.

    Args:
        logits: images -> [B, K].
        images: [B, H, W, C].
        labels: [B].
        candidates: [B, T], other classes than the label.
        ball: Of the threat model; its dual norm is the length of gradients.
    """
    g, pull = jax.vjp(logits, images)
    index, classes = jnp.arange(len(images)), g.shape[1]

    # One class after the other: all gradients at once would need T times the memory.
    def distance(others: Array) -> Array:
        sides = (jax.nn.one_hot(one, classes, dtype=g.dtype) for one in (others, labels))
        (gradient,) = pull(next(sides) - next(sides))
        finite = jnp.where(jnp.isfinite(gradient), gradient, 0)  # as attacks take it
        length = ball.dual_length(finite.reshape(len(images), -1))
        usable = jnp.isfinite(length) & (length > 0)
        return jnp.where(
            usable, (g[index, labels] - g[index, others]) / jnp.where(usable, length, 1), jnp.inf
        )

    return jax.lax.map(distance, candidates.T).T
