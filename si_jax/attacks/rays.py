"""RayS: the nearest misclassified image along sign vectors, from predicted classes only.

A ray is a sign vector v in {-1, 1}^d. RayS flips one block of signs at a time, from the whole vector down to
single entries, and keeps a flip if the decision boundary is nearer along the new ray. One query tells whether
it can be; only then a binary search finds how near. Each image goes through this at its own pace, with one
query an iteration.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks import rows
from si_jax.attacks.pgd import KeyedClassifier
from si_jax.attacks.search import Problem, Search, SearchState, decided, edge, nothing_found
from si_jax.threat import Threat

Array = jax.Array


class RaysState(NamedTuple):
    """What RayS remembers; distances along a ray are in L2, as multiples of v / |v|.

    Attributes:
        signs: [B, H, W, C] int8, v.
        radius: [B], the least distance along v known to be misclassified; inf without one.
        size: [B] int32, entries in a block.
        block: [B] int32, the first entry of the current block, in channel, row, column order.
        searching: [B] bool, in a binary search along v with the current block flipped.
        low: [B], largest distance in this binary search known to be classified correctly.
        high: [B], least known to be misclassified.
        distance: [B], the distance of `nearest` in the norm of the threat model; without a misclassified
            image that of the all-white one, which the search starts from.
        queries: [B] int32, queries spent when that distance first was within eps; without success all.
    """

    signs: Array
    radius: Array
    size: Array
    block: Array
    searching: Array
    low: Array
    high: Array
    distance: Array
    queries: Array

    @property
    def known(self) -> Array:
        """[B] bool, whether a misclassified image was found."""
        return jnp.isfinite(self.radius) | self.searching

    @property
    def displacement(self) -> Array:
        """[B, H, W, C], from the image to the nearest misclassified point, which is clipped to [0, 1]."""
        along = jnp.where(jnp.isfinite(self.radius), self.radius, self.high)
        step = along / math.sqrt(math.prod(self.signs.shape[1:]))
        return step.reshape(-1, 1, 1, 1) * self.signs


def rays(*, query_limit: int = 10_000, tolerance: float = 1e-3, eot_samples: int = 1) -> Search:
    """RayS: one iteration of the search is one query of each image.

    All images spend all their queries: the smaller distance is a result in itself (`average_distance`). So
    `fooled` stays false until the last query, lest a caller drop the image before.

    Args:
        query_limit: Queries per image, never exceeded. 10,000 in the public code, 40,000 on its leaderboard.
        tolerance: A binary search ends when its interval is this short, in L2 along the ray.
        eot_samples: Draws of a random classifier in each query: their vote is its answer.

    Source: Chen and Gu (2020), RayS: a ray searching method for hard-label adversarial attack; repository
    uclaml/RayS, RayS.py. There a binary search may run beyond the limit; here it is cut, its best point kept.
    """

    def init(classifier: KeyedClassifier, problem: Problem, threat: Threat) -> SearchState:
        del classifier
        images = problem.images
        batch, dtype = images.shape[0], images.dtype
        nothing = jnp.zeros(batch, dtype)
        inner = RaysState(
            signs=jnp.ones(images.shape, jnp.int8),
            radius=jnp.full(batch, jnp.inf, dtype),
            size=jnp.full(batch, math.prod(images.shape[1:]), jnp.int32),
            block=jnp.zeros(batch, jnp.int32),
            searching=jnp.zeros(batch, bool),
            low=nothing,
            high=nothing,
            distance=threat.distance(jnp.ones_like(images), images),
            queries=jnp.zeros(batch, jnp.int32),
        )
        return nothing_found(problem, inner)

    def advance(
        classifier: KeyedClassifier,
        problem: Problem,
        threat: Threat,
        state: SearchState,
        first: Array,
        count: int,
    ) -> SearchState:
        images = problem.images

        def body(offset: Array, state: SearchState) -> SearchState:
            s, queries = state.inner, state.queries + 1
            along = jnp.where(s.searching, (s.low + s.high) / 2, s.radius)
            candidate = _point(images, _attempt(s), along)
            keys = rows.fold_in(problem.keys, first + offset)
            _, hit = decided(classifier, candidate, problem.labels, keys, eot_samples)
            inner = _answer(s, hit, along, images.shape[1:], tolerance)

            improved = hit & (s.searching | jnp.isinf(s.radius))
            distance = jnp.where(improved, threat.distance(candidate, images), s.distance)
            within = s.known & (s.distance <= threat.eps)
            inner = inner._replace(distance=distance, queries=jnp.where(within, s.queries, queries))
            return SearchState(state.found, state.fooled, queries, inner)

        state = jax.lax.fori_loop(0, count, body, state)
        inner = state.inner
        fooled = (first + count >= query_limit) & inner.known & (inner.distance <= threat.eps)
        return state._replace(found=rows.where(fooled, nearest(images, inner), images), fooled=fooled)

    def worst(problem: Problem, threat: Threat, inner: RaysState) -> Array:
        better = inner.searching & (inner.high < inner.radius)
        signs = rows.where(better, _attempt(inner), inner.signs.astype(problem.images.dtype))
        return edge(threat, problem.images, signs)

    return Search(init, advance, query_limit, worst=worst)


def nearest(images: Array, state: RaysState) -> Array:
    """The nearest misclassified images found so far, [B, H, W, C]; all-white without one."""
    better = state.searching & (state.high < state.radius)
    return rows.where(
        better,
        _point(images, _attempt(state), state.high),
        _point(images, state.signs.astype(images.dtype), state.radius),
    )


def average_distance(distances: np.ndarray) -> float:
    """ADB: the mean distance to the decision boundary over all images, misclassified ones included.

    Args:
        distances: [N], `RaysState.distance` after the last query. An image that is misclassified without any
            attack contributes about tolerance / sqrt(d), as in the public code.
    """
    return float(np.mean(np.asarray(distances, np.float64)))


def _answer(s: RaysState, hit: Array, along: Array, shape: tuple[int, ...], tolerance: float) -> RaysState:
    """The state after the answer to the query at `along`."""
    entries = math.prod(shape)
    # The first query of a block asks whether the flipped ray is as good as the best.
    opened = hit & ~s.searching
    low = jnp.where(s.searching & ~hit, along, jnp.where(opened, 0, s.low))
    # Beyond sqrt(d) every entry has reached its bound.
    high = jnp.where(
        s.searching & hit, along, jnp.where(opened, jnp.minimum(along, math.sqrt(entries)), s.high)
    )
    # A binary search makes at least one step.
    closed = s.searching & (high - low <= tolerance)
    left = closed | (~hit & ~s.searching)
    kept = closed & (high < s.radius)

    last = s.block + s.size >= entries
    return s._replace(
        signs=rows.where(kept, _attempt(s).astype(s.signs.dtype), s.signs),
        radius=jnp.where(kept, high, s.radius),
        size=jnp.where(left & last, (s.size + 1) // 2, s.size),
        block=jnp.where(left, jnp.where(last, 0, s.block + s.size), s.block),
        searching=opened | (s.searching & ~closed),
        low=low,
        high=high,
    )


def _attempt(s: RaysState) -> Array:
    """v with the signs of the current block flipped, as floats."""
    height, width, channels = s.signs.shape[1:]
    order = np.arange(channels * height * width).reshape(channels, height, width).transpose(1, 2, 0)
    start, end = (a.reshape(-1, 1, 1, 1) for a in (s.block, s.block + s.size))
    flipped = (order >= start) & (order < end)
    return jnp.where(flipped, -s.signs, s.signs).astype(s.radius.dtype)


def _point(images: Array, signs: Array, along: Array) -> Array:
    """clip(x + along v / |v|); an infinite distance is the corner of [0, 1]^d that v points to."""
    step = along / math.sqrt(math.prod(images.shape[1:]))
    return jnp.clip(images + step.reshape(-1, 1, 1, 1) * signs, 0, 1)
