"""FAB, the fast adaptive boundary attack: the nearest misclassified image, by linearising boundaries.

In each iteration FAB takes the decision boundary between the label and one other class as a plane: its
tangent at the current point. FAB projects both the current point and the original image on this plane, inside
[0, 1] (`hyperplane`), and goes a little beyond a mixture of the two. Where the result is misclassified, FAB
steps back towards the original.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from si_jax.attacks import rows
from si_jax.attacks.ascent import none_seen, usable
from si_jax.attacks.hyperplane import displacement
from si_jax.attacks.pgd import KeyedClassifier
from si_jax.attacks.search import Problem, Search, SearchState, edge, nothing_found
from si_jax.outputs import misclassified, reached
from si_jax.threat import Ball, Threat

Array = jax.Array
Logits = Callable[[Array], Array]


class FabState(NamedTuple):
    """What FAB remembers.

    Attributes:
        point: [B, H, W, C], the current point.
        nearest: [B, H, W, C], the nearest misclassified image, at any distance; the original without one.
        distance: [B], its distance from the original in the norm of the threat model; inf without one.
    """

    point: Array
    nearest: Array
    distance: Array


def fab(
    *,
    targeted: bool,
    random_start: bool = False,
    iterations: int = 100,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    aimed: bool = False,
) -> Search:
    """FAB (untargeted) or FAB-T (one target class a run), for every norm.

    To be run on images that are correctly classified. Any other class counts, also for FAB-T. An image is
    fooled once a misclassified point is found within eps; one that is found further away is no success. An
    iteration costs two forward passes and one backward pass, K - 1 of them without a target.

    Args:
        targeted: Linearise the boundary to `Problem.targets`; else, in each iteration, the boundary that is
            nearest by |g_k - g_y| / |gradient| in the dual norm.
        random_start: Start at distance eps / 2 in a random direction, as all restarts but the first do; else
            at the original.
        iterations: In AutoAttack 100.
        alpha_max: Largest weight of the original image's projection.
        eta: Factor on both projections, to pass the boundary.
        beta: Step back, x0 + beta (x - x0).
        aimed: Of FAB-T: whether only an image of the target class is a success. The boundary is then that to
            the highest other class, in place of the label.

    Source: Croce and Hein (2020), Minimally distorted adversarial examples with a fast adaptive boundary
    attack; repository fra31/auto-attack, autoattack/fab_base.py. Restarts there know nothing of each other:
    run one search at the original and the others with `random_start`, each with its own keys.
    """

    def init(classifier: KeyedClassifier, problem: Problem, threat: Threat) -> SearchState:
        del classifier
        start = images = problem.images
        if random_start:
            start = _half_way(threat, rows.split(problem.keys)[0], images)
        inner = FabState(start, images, jnp.full(len(images), jnp.inf, images.dtype))
        return nothing_found(problem, inner, none_seen(len(images)))

    def advance(
        classifier: KeyedClassifier,
        problem: Problem,
        threat: Threat,
        state: SearchState,
        first: Array,
        count: int,
    ) -> SearchState:
        images, labels = problem.images, problem.labels
        keys = rows.split(problem.keys)[1]
        linearise: Callable[..., tuple[Array, Array]] = _to_nearest_boundary
        if targeted:
            linearise = functools.partial(_to_target, aimed=aimed)

        def body(offset: Array, state: SearchState) -> SearchState:
            i, x, inner = first + offset, state.inner.point, state.inner
            keyed = rows.fold_in(keys, 2 * i)
            gap, normal = linearise(
                lambda x: classifier(x, keyed).logits.astype(x.dtype), x, problem, threat.ball
            )
            assert state.gradients is not None
            normal, gradients = usable(normal, state.gradients, i)
            # Where a logit is NaN there is no boundary to go to: the point stays, to be seen.
            x = rows.where(jnp.isfinite(gap), step(x, images, gap, normal, threat), x)

            found = classifier(x, rows.fold_in(keys, 2 * i + 1)).logits
            fooled = reached(found, problem.targets) if aimed else misclassified(found, labels)
            distance = threat.distance(x, images)
            nearer = fooled & (distance < inner.distance)
            new = fooled & (distance <= threat.eps) & ~state.fooled
            inner = FabState(
                rows.where(fooled, images + beta * (x - images), x),
                rows.where(nearer, x, inner.nearest),
                jnp.where(nearer, distance, inner.distance),
            )
            queries = state.queries + 2 * (~state.fooled).astype(jnp.int32)
            return SearchState(rows.where(new, x, state.found), state.fooled | new, queries, inner, gradients)

        return jax.lax.fori_loop(0, count, body, state)

    def step(x: Array, images: Array, gap: Array, normal: Array, threat: Threat) -> Array:
        flat, centre, w = (a.reshape(len(images), -1) for a in (x, images, normal))
        # <w, x0> - b from the difference of the points: both products are far larger than the gap itself.
        gaps = jnp.stack([gap, gap + jnp.sum(w * (centre - flat), axis=1)])
        # In a loop, for which XLA computes w once: outside of one it does so again wherever w is used.
        from_x, from_centre = jax.lax.map(
            lambda of_point: displacement(of_point[0], w, of_point[1], threat.norm),
            (jnp.stack([flat, centre]), gaps),
        )
        size, centre_size = (jnp.maximum(threat.ball.length(d), 1e-8) for d in (from_x, from_centre))
        alpha = jnp.clip(size / (size + centre_size), 0.0, alpha_max)[:, None]
        mixed = (1 - alpha) * (flat + eta * from_x) + alpha * (centre + eta * from_centre)
        return jnp.clip(mixed, 0.0, 1.0).reshape(images.shape)

    def worst(problem: Problem, threat: Threat, inner: FabState) -> Array:
        # Beyond the nearest boundary, as the ball allows: there more draws are wrong than at the boundary.
        point = rows.where(jnp.isfinite(inner.distance), inner.nearest, inner.point)
        return edge(threat, problem.images, point - problem.images)

    return Search(init, advance, iterations, targeted, worst=worst)


def _to_target(logits: Logits, x: Array, problem: Problem, ball: Ball, *, aimed: bool) -> tuple[Array, Array]:
    """g_t - g_y [B] and its gradient; if `aimed`, with the highest class but t in place of y."""
    del ball
    index = jnp.arange(len(x))

    def difference(x: Array) -> tuple[Array, Array]:
        g, rivals = logits(x), problem.labels
        if aimed:
            rivals = jnp.argmax(g.at[index, problem.targets].set(-jnp.inf), axis=1)
        gap = g[index, problem.targets] - g[index, rivals]
        return jnp.sum(gap), gap

    gradient, gap = jax.grad(difference, has_aux=True)(x)
    return gap, gradient


def _to_nearest_boundary(logits: Logits, x: Array, problem: Problem, ball: Ball) -> tuple[Array, Array]:
    """g_k - g_y [B] and its gradient, of the class k whose linearised boundary is nearest."""
    g, pull = jax.vjp(logits, x)
    index, classes = jnp.arange(len(x)), g.shape[1]

    # One class after the other: all gradients at once would need K times the memory.
    def closer(k: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        other = (problem.labels + k) % classes
        gap = g[index, other] - g[index, problem.labels]
        onehot = jax.nn.one_hot(other, classes, dtype=g.dtype)
        (gradient,) = pull(onehot - jax.nn.one_hot(problem.labels, classes, dtype=g.dtype))
        # As in the step, where entries that are not finite count as 0; there they are counted, too.
        finite = jnp.where(jnp.isfinite(gradient), gradient, 0)
        away = jnp.abs(gap) / (ball.dual_length(finite.reshape(len(x), -1)) + 1e-12)
        return rows.where(away < best[0], (away, gap, gradient), best)

    nowhere = jnp.full(len(x), jnp.inf, g.dtype), jnp.zeros(len(x), g.dtype), jnp.zeros_like(x)
    _, gap, gradient = jax.lax.fori_loop(1, classes, closer, nowhere)
    return gap, gradient


def _half_way(threat: Threat, keys: Array, images: Array) -> Array:
    """A point at distance eps / 2 from each image, clipped to [0, 1]."""
    noise, length = threat.random_direction(keys, images)
    return jnp.clip(images + 0.5 * threat.eps * noise / jnp.maximum(length, 1e-12), 0.0, 1.0)
