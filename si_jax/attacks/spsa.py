"""SPSA: an attack that reads only the logits.

SPSA (simultaneous perturbation stochastic approximation) estimates the gradient of the margin from the logits
at random pairs of points, and follows the estimate with Adam.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from si_jax.attacks import rows
from si_jax.attacks.pgd import KeyedClassifier
from si_jax.attacks.search import Problem, Search, SearchState
from si_jax.errors import InputError
from si_jax.losses import margin
from si_jax.outputs import misclassified
from si_jax.threat import Threat

Array = jax.Array
# (images [M, H, W, C], labels [M], keys [M]) -> [M]
KeyedLoss = Callable[[Array, Array, Array], Array]
# Several pairs share a forward pass as long as it has no more rows than this: enough to fill an accelerator.
ROWS_AT_ONCE = 256


class SpsaState(NamedTuple):
    """What SPSA remembers.

    Attributes:
        point: [B, H, W, C], where it is.
        optimiser: Adam's state; its step count is [B] like everything else.
        nan: [B] bool, whether a logit is NaN at the point, which then stays there to be seen.
    """

    point: Array
    optimiser: optax.OptState
    nan: Array


def spsa(
    *,
    evaluations: int,
    iterations: int = 100,
    learning_rate: float = 0.01,
    radius: float = 0.001,
    stops: bool = True,
) -> Search:
    """SPSA, for every threat model that can be projected on.

    SPSA starts at a uniformly random point of the ball, raises the margin max_{k != y} g_k - g_y with Adam
    (b1 = 0.9, b2 = 0.999) and projects after each step. The point is classified at the start and after each
    step. An image is done with its first misclassified point, or after 1 + iterations (evaluations + 1)
    queries at most.

    Args:
        evaluations: N, forward evaluations per estimate: N / 2 antithetic pairs. The paper's "batch size".
        iterations: Number of estimates.
        learning_rate: Of Adam, as a fraction of the pixel range.
        radius: c, the distance at which the loss is evaluated, per pixel.
        stops: Whether an image is done with its first misclassified point; else it goes on.

    Raises:
        InputError: `evaluations` is not a positive even number.

    Source: Uesato et al. (2018), Adversarial risk and the dangers of evaluating against weak attacks;
    repository cleverhans-lab/cleverhans, the TensorFlow version (its PyTorch version evaluates elsewhere, see
    its issue 1249).
    """
    if evaluations < 2 or evaluations % 2:
        raise InputError(f'evaluations={evaluations} is not a positive even number: SPSA evaluates in pairs')
    adam = optax.adam(learning_rate, b1=0.9, b2=0.999)

    def init(classifier: KeyedClassifier, problem: Problem, threat: Threat) -> SearchState:
        start_key, _, classifier_key = rows.split(problem.keys, 3)
        point = threat.uniform_start(start_key, problem.images)
        fooled, nan = _decided(classifier, rows.fold_in(classifier_key, 0), point, problem.labels)
        found = rows.where(fooled, point, problem.images)
        queries = jnp.ones(len(point), jnp.int32)
        return SearchState(found, fooled, queries, SpsaState(point, jax.vmap(adam.init)(point), nan))

    def advance(
        classifier: KeyedClassifier,
        problem: Problem,
        threat: Threat,
        state: SearchState,
        first: Array,
        count: int,
    ) -> SearchState:
        _, direction_key, classifier_key = rows.split(problem.keys, 3)

        def body(offset: Array, state: SearchState) -> SearchState:
            i, inner = first + offset, state.inner
            keyed = rows.fold_in(classifier_key, i + 1)
            gradient = estimate_gradient(
                lambda x, labels, keys: margin(classifier(x, keys).logits, labels),
                inner.point,
                problem.labels,
                rows.fold_in(direction_key, i),
                evaluations=evaluations,
                radius=radius,
            )
            updates, optimiser = jax.vmap(adam.update)(-gradient, inner.optimiser)
            point = threat.project(inner.point + updates, problem.images)
            fooled, nan = _decided(classifier, keyed, point, problem.labels)
            following = SearchState(
                rows.where(fooled, point, problem.images),
                fooled,
                state.queries + evaluations + 1,
                SpsaState(point, optimiser, nan),
            )
            return rows.where(state.fooled if stops else inner.nan, state, following)

        return jax.lax.fori_loop(0, count, body, state)

    return Search(init, advance, iterations)


def estimate_gradient(
    loss: KeyedLoss, images: Array, labels: Array, keys: Array, *, evaluations: int, radius: float
) -> Array:
    """The SPSA estimate of the gradient of `loss`, [B, H, W, C].

    The mean over N / 2 sign vectors v of [L(x + c v) - L(x - c v)] / (2 c) v. Its expectation is the gradient
    of L up to terms in c^2; its variance falls with 1 / N.

    Args:
        loss: L, see `KeyedLoss`.
        images: [B, H, W, C], x; x + c v is not clipped.
        labels: [B].
        keys: [B], from which each image draws its own sign vectors.
        evaluations: N, even.
        radius: c.
    """
    batch, shape = images.shape[0], images.shape[1:]
    pairs = evaluations // 2
    width = math.gcd(pairs, 4)
    while width > 1 and 2 * width * batch > ROWS_AT_ONCE:
        width //= 2

    # Both points of a pair meet the same draw of a random classifier: the difference of two draws, divided by
    # a small radius, would drown the slope.
    # Signs and sums go pair by pair: the estimate is the same however many pairs share a forward pass.
    def group(g: Array, total: Array) -> Array:
        signs, points, loss_keys = [], [], []
        for j in range(width):
            sign_keys, draw, _ = rows.split(rows.fold_in(keys, g * width + j), 3)
            signs.append(jax.vmap(lambda key: _signs(key, shape, images.dtype))(sign_keys))
            points += [images + radius * signs[-1], images - radius * signs[-1]]
            loss_keys += [draw, draw]
        values = loss(jnp.concatenate(points), jnp.tile(labels, 2 * width), jnp.concatenate(loss_keys))
        above, below = values.reshape(width, 2, batch).swapaxes(0, 1)
        for j in range(width):
            slope = (above[j] - below[j]) / (2 * radius)
            slope = jnp.where(jnp.isfinite(slope), slope, 0)
            total = total + slope.reshape(-1, 1, 1, 1) * signs[j]
        return total

    return jax.lax.fori_loop(0, pairs // width, group, jnp.zeros_like(images)) / pairs


def _signs(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Uniform in {-1, 1}; 32 signs from each word, as drawing the words takes longer than a small network."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return (2 * bits.astype(dtype) - 1).reshape(-1)[:size].reshape(shape)


def _decided(classifier: KeyedClassifier, keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    """Which images are misclassified, and which have a logit that is NaN."""
    found = classifier(images, keys).logits
    return misclassified(found, labels), jnp.isnan(found).any(axis=1)
