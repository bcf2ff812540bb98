"""FMN, the fast minimum-norm attack: the nearest misclassified image, by a ball that follows the boundary.

FMN raises the margin, max_{k != y} g_k - g_y, by steps along its gradient, inside a ball of its own around
the image. Where the point is misclassified the ball shrinks; where it is not, the ball grows. So the point
ends near the decision boundary, at about the least distance at which FMN can cross it. Steps and changes of
the radius get smaller along half a cosine.

FMN works in L0 too, where the distance is the number of entries that were changed. The L0 ball is no threat
model here (`Threat`): attacks that project on a ball of fixed radius have no L0 version. So FMN has its own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import l1
from si_jax.attacks import rows
from si_jax.attacks.ascent import none_seen, usable
from si_jax.attacks.pgd import KeyedClassifier, value_function
from si_jax.attacks.search import Problem, Search, SearchState, edge, nothing_found
from si_jax.errors import InputError, unknown
from si_jax.objectives import margin
from si_jax.outputs import logits
from si_jax.threat import BALLS, IMAGE, Ball, Threat

Array = jax.Array

STEP = (1.0, 0.01)  # its length, in L2, at the beginning and at the end
CHANGE = (0.05, 0.001)  # of the radius in a step, as a share of it


class Geometry(NamedTuple):
    """What FMN asks of a norm, for perturbations [B, H, W, C] and radii [B].

    Attributes:
        length: delta -> its norm [B].
        project: (points, images, radii) -> the points moved into these balls.
        first: (length of delta, margin [B], gradient) -> the radius while no success is known; None if it
            grows as after one.
        grown: (radius, share) -> the larger radius.
        shrunk: (radius, share) -> the smaller one.
    """

    length: Callable[[Array], Array]
    project: Callable[[Array, Array, Array], Array]
    first: Callable[[Array, Array, Array], Array] | None
    grown: Callable[[Array, Array], Array]
    shrunk: Callable[[Array, Array], Array]


def _of(ball: Ball) -> Geometry:
    """Of a norm that has a ball. L1 is projected within [0, 1], where the authors clip afterwards."""

    def first(length: Array, loss: Array, gradient: Array) -> Array:
        # Where the margin would be 0 if it were linear.
        # However small the logits are: a loss and a gradient of 1e-30 are as good as others.
        return length + jnp.abs(loss) / jnp.maximum(ball.dual_length(gradient), jnp.finfo(loss.dtype).tiny)

    return Geometry(
        ball.length,
        lambda points, images, radii: ball.project(points, images, radii[:, None, None, None]),  # type: ignore[arg-type]
        first,
        lambda radius, share: radius * (1 + share),
        lambda radius, share: radius * (1 - share),
    )


def changed(delta: Array) -> Array:
    """The number of entries, one for each pixel and channel, that are not 0: the L0 norm [B]."""
    return jnp.sum(delta != 0, axis=IMAGE).astype(delta.dtype)


def keep_largest(points: Array, images: Array, radii: Array) -> Array:
    """The points with no more entries changed than the radii [B]: those that were changed most, in order."""
    delta = points - images
    size, most = jnp.abs(delta), radii[:, None, None, None]
    last = l1.level(size, jnp.ones_like(size), most)
    above = jnp.sum(size > last, axis=IMAGE, keepdims=True)
    # Of those that are changed by as much as the last one only the first ones fit in.
    tied = (size == last).reshape(len(size), -1)
    rank = jnp.cumsum(tied, axis=1).reshape(size.shape)
    return jnp.where((size > last) | ((size == last) & (rank <= most - above)), points, images)


GEOMETRIES: dict[str, Geometry] = {name: _of(ball) for name, ball in BALLS.items()} | {
    'l0': Geometry(
        changed,
        keep_largest,
        None,
        lambda radius, share: jnp.maximum(radius + 1, jnp.floor(radius * (1 + share))),
        lambda radius, share: jnp.maximum(jnp.minimum(radius - 1, jnp.floor(radius * (1 - share))), 0),
    )
}


class FmnState(NamedTuple):
    """What FMN remembers.

    Attributes:
        point: [B, H, W, C], the current point.
        nearest: [B, H, W, C], the nearest misclassified point; the original without one.
        distance: [B], its distance from the original; without one that of the furthest image in [0, 1].
        known: [B] bool, whether there is one.
        radius: [B], of the ball that the point is in.
        queries: [B] int32, queries spent when the distance first was within eps; without success all.
    """

    point: Array
    nearest: Array
    distance: Array
    known: Array
    radius: Array
    queries: Array


def fmn(norm: str, *, steps: int = 1000) -> Search:
    """FMN as a search, for L0, L1, L2 and Linf. A query is one forward and one backward pass.

    To be run on images that are correctly classified; any other class counts. All images make all steps: the
    smaller distance is a result in itself. So `fooled` stays false until the last step, as in RayS. Nothing
    depends on the radius of the threat model but whether the distance counts as a success.

    Args:
        norm: 'linf', 'l2', 'l1' or 'l0'.
        steps: Evaluated points, 1,000 as a rule. The first one is the original image.

    Raises:
        InputError: An unknown norm, or fewer than two steps.

    Source: Pintor et al. (2021), Fast minimum-norm adversarial attacks through adaptive norm constraints,
    algorithm 1, in the version of repository jeromerony/adversarial-library, attacks/fast_minimum_norm.py:
    while no success is known the radius is the linear estimate of the distance, and it grows afterwards. Here
    it grows all the while, and the estimate is what it is at least: where pixels meet their bounds, the
    estimates alone would end before the boundary.
    """
    if norm not in GEOMETRIES:
        raise unknown('norm', norm, GEOMETRIES)
    if steps < 2:
        raise InputError(f'FMN needs at least two steps, not steps={steps}: 1,000 are usual')
    space = GEOMETRIES[norm]
    share = (1 + np.cos(math.pi * np.arange(steps) / steps)) / 2
    lengths, changes = (last + (first - last) * share for first, last in (STEP, CHANGE))

    def furthest(images: Array) -> Array:
        return space.length(jnp.maximum(images, 1 - images))

    def init(classifier: KeyedClassifier, problem: Problem, threat: Threat) -> SearchState:
        del classifier, threat
        images = problem.images
        batch, dtype = len(images), images.dtype
        inner = FmnState(
            point=images,
            nearest=images,
            distance=furthest(images),
            known=jnp.zeros(batch, bool),
            radius=jnp.full(batch, 1 if space.first is None else 0, dtype),
            queries=jnp.zeros(batch, jnp.int32),
        )
        return nothing_found(problem, inner, none_seen(batch))

    def advance(
        classifier: KeyedClassifier,
        problem: Problem,
        threat: Threat,
        state: SearchState,
        first: Array,
        count: int,
    ) -> SearchState:
        images, keys, most = problem.images, rows.split(problem.keys)[1], furthest(problem.images)
        value = value_function(margin, logits, classifier, problem.labels, None, keys)

        def body(offset: Array, state: SearchState) -> SearchState:
            i, s = first + offset, state.inner
            step, change = (jnp.asarray(table, images.dtype)[i] for table in (lengths, changes))
            loss, gradient, fooled = value(i, s.point)
            assert state.gradients is not None
            gradient, gradients = usable(gradient, state.gradients, i)

            length = space.length(s.point - images)
            nearer = fooled & (length < s.distance)
            distance = jnp.where(nearer, length, s.distance)
            known = s.known | fooled
            radius = s.radius
            if space.first is not None:
                estimate = space.first(length, loss, gradient)
                radius = jnp.where(known, radius, jnp.maximum(radius, estimate))
            # The estimate too: by rounding, or as pixels meet 0 or 1, its point may stay before the boundary.
            radius = space.grown(radius, change)
            radius = jnp.where(fooled, jnp.minimum(space.shrunk(s.radius, change), distance), radius)
            radius = jnp.minimum(radius, most)

            moved = s.point + step * BALLS['l2'].steepest(gradient)
            point = jnp.clip(space.project(moved, images, radius), 0, 1)
            queries = state.queries + 1
            within = s.known & (s.distance <= threat.eps)
            inner = FmnState(
                # Where a logit is NaN the point stays, to be seen.
                point=rows.where(jnp.isnan(loss), s.point, point),
                nearest=rows.where(nearer, s.point, s.nearest),
                distance=distance,
                known=known,
                radius=jnp.where(jnp.isnan(loss), s.radius, radius),
                queries=jnp.where(within, s.queries, queries),
            )
            return SearchState(state.found, state.fooled, queries, inner, gradients)

        state = jax.lax.fori_loop(0, count, body, state)
        s = state.inner
        fooled = (first + count >= steps) & s.known & (s.distance <= threat.eps)
        return state._replace(found=rows.where(fooled, s.nearest, images), fooled=fooled)

    def worst(problem: Problem, threat: Threat, inner: FmnState) -> Array:
        # As FAB's: beyond the boundary, as the ball allows, and not where the steps ended outside of it.
        point = rows.where(inner.known, inner.nearest, inner.point)
        return edge(threat, problem.images, point - problem.images)

    return Search(init, advance, steps, worst=worst)
