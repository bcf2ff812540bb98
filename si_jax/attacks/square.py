"""Square: random search with square windows. It reads the logits only, no gradient.

Every image has its own windows, drawn from its own key and the number of the iteration, so that no result
depends on the batch (the reference code shares one window among the images of a batch). A new point is kept
if its margin, g_y - max_{k != y} g_k, is lower. The windows shrink with the number of the iteration.

Source: Andriushchenko et al. (2020), "Square Attack: a query-efficient black-box adversarial attack via
random search", algorithms 1 to 3; L1: Croce and Hein (2021), "Mind the box"; repository fra31/auto-attack,
square.py, with its schedule not rescaled.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import l1, losses
from si_jax.attacks import rows
from si_jax.attacks.pgd import KeyedClassifier
from si_jax.attacks.search import Problem, Search, SearchState, decided
from si_jax.draws import drawn
from si_jax.errors import InputError, unknown
from si_jax.outputs import reached
from si_jax.threat import Threat

Array = jax.Array

# p, the share of the image that a window covers, is halved after these iterations.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def sides(norm: str, iterations: int, height: int, width: int, p_init: float = 0.8) -> np.ndarray:
    """The side of the windows in each iteration, [iterations] int32.

    The integer next to sqrt(p H W), at least 1; for L2 and L1 made odd and at least 3. Never above min(H, W).

    Raises:
        InputError: Unknown norm.
    """
    if norm not in MOVES:
        raise unknown('norm', norm, MOVES)
    halvings = np.searchsorted(HALVINGS, np.arange(iterations))
    side = np.round(np.sqrt(p_init * 0.5**halvings * height * width)).astype(np.int32)
    return np.clip(SIDES[norm](side), 1, min(height, width))


class Moves(NamedTuple):
    """Random search in one norm, for images [B, H, W, C].

    Attributes:
        start: (keys [B], images) -> the first point.
        words: How many random words an image needs in an iteration.
        propose: (words [B, words] uint32, i, images, best) -> the point to try in iteration i.
    """

    start: Callable[[Array, Array], Array]
    words: int
    propose: Callable[[Array, Array, Array, Array], Array]


def square(
    queries: int = 5000, p_init: float = 0.8, aimed: bool = False, *, eot_samples: int = 1, stops: bool = True
) -> Search:
    """Square as a search, for every norm.

    Args:
        queries: Number of iterations; the start needs one query more, as in the reference code.
        p_init: The share of the image that the first windows cover.
        aimed: Whether only an image of the class `Problem.targets` is a success: the margin is then that of
            the other classes over it.
        eot_samples: Draws of a random classifier in each query: their mean margin counts, and their vote.
        stops: Whether an image is done with its first misclassified point; else its margin falls further.

    Returns:
        The `Search`.

    Raises:
        InputError: A number is out of range; when it is run, an unknown norm.
    """
    if queries < 1:
        raise InputError(f'Square needs at least one query, not queries={queries}')
    if not 0 < p_init <= 1:
        raise InputError(
            f'p_init={p_init:g} is not in (0, 1]: it is the share of the image in the first windows'
        )

    def moves(problem: Problem, threat: Threat) -> Moves:
        shape = problem.images.shape[1:]
        side_of = sides(threat.norm, queries, shape[0], shape[1], p_init)  # refuses an unknown norm
        return MOVES[threat.norm](threat.eps, shape, side_of)

    def evaluate(classifier: KeyedClassifier, problem: Problem, keys: Array, x: Array) -> tuple[Array, Array]:
        if aimed:
            logits = classifier(x, keys).logits
            return losses.margin(logits, problem.targets), reached(logits, problem.targets)
        return decided(classifier, x, problem.labels, keys, eot_samples)

    def init(classifier: KeyedClassifier, problem: Problem, threat: Threat) -> SearchState:
        start_keys, _, classifier_keys = rows.split(problem.keys, 3)
        best = moves(problem, threat).start(start_keys, problem.images)
        margin, fooled = evaluate(classifier, problem, rows.fold_in(classifier_keys, 0), best)
        found = rows.where(fooled, best, problem.images)
        return SearchState(found, fooled, jnp.ones_like(problem.labels), (best, margin))

    def advance(
        classifier: KeyedClassifier,
        problem: Problem,
        threat: Threat,
        state: SearchState,
        first: Array,
        count: int,
    ) -> SearchState:
        _, window_keys, classifier_keys = rows.split(problem.keys, 3)
        how = moves(problem, threat)
        numbers = first + jnp.arange(count, dtype=jnp.int32)

        # All at once: drawn inside the loop they would take longer than the forward pass of a small network.
        def draw(i: Array) -> Array:
            bits = jax.vmap(lambda key: jax.random.bits(key, (how.words,), jnp.uint32))
            return bits(rows.fold_in(window_keys, i))

        def body(carry: tuple, drawn: tuple[Array, Array]) -> tuple[tuple, None]:
            best, margin, fooled, spent = carry
            i, words = drawn
            x = how.propose(words, i, problem.images, best)
            new_margin, wrong = evaluate(classifier, problem, rows.fold_in(classifier_keys, 1 + i), x)
            if queries % count:  # a part may go past the last iteration
                new_margin, wrong = jnp.where(i < queries, new_margin, jnp.inf), wrong & (i < queries)
            # A NaN margin is no decision for the label, and its point is there to be seen: it stays.
            accept = (new_margin < margin) | (jnp.isnan(new_margin) & ~jnp.isnan(margin))
            if stops:
                accept = ~fooled & (accept | (new_margin <= 0) | wrong)
            best = rows.where(accept, x, best)
            margin = jnp.where(accept, new_margin, margin)
            asked = ~fooled & (i < queries) if queries % count else ~fooled
            return (best, margin, fooled | wrong, spent + asked), None

        carry = (*state.inner, state.fooled, state.queries)
        (best, margin, fooled, spent), _ = jax.lax.scan(body, carry, (numbers, jax.vmap(draw)(numbers)))
        return SearchState(rows.where(fooled, best, problem.images), fooled, spent, (best, margin))

    return Search(init, advance, iterations=queries, whole_parts=True)


def _signs(words: Array, dtype: jnp.dtype) -> Array:
    """+1 or -1 by the lowest bit of each word."""
    return 1 - 2 * (words & 1).astype(dtype)


def _corner(words: Array, length: int, side: Array) -> Array:
    """floor(U (length - side)) for the uniform number U in [0, 1) of each word, in integers."""
    return ((words >> 16) * (length - side).astype(jnp.uint32) >> 16).astype(jnp.int32)


def _windows(words: Array, shape: tuple[int, ...], side: Array) -> tuple[Array, Array, Array]:
    """Windows at random places: their first rows [B] and columns [B], and the windows as masks [B, H, W, 1].

    Args:
        words: [B, 2] uint32.
        shape: (H, W, C).
        side: of the windows; may be traced.
    """

    def along(first: Array, length: int) -> Array:
        offset = jnp.arange(length) - first[:, None]
        return (offset >= 0) & (offset < side)

    row, column = (_corner(words[:, axis], shape[axis], side) for axis in (0, 1))
    return row, column, along(row, shape[0])[:, :, None, None] & along(column, shape[1])[:, None, :, None]


def _linf(eps: float, shape: tuple[int, ...], side_of: np.ndarray) -> Moves:
    """Vertical stripes at the start, then windows of one sign per channel, always at distance eps."""

    def start(keys: Array, images: Array) -> Array:
        stripes = jax.vmap(lambda key: drawn(jax.random.rademacher, key, (1, *shape[1:]), images.dtype))
        return jnp.clip(images + eps * stripes(keys), 0.0, 1.0)

    def propose(words: Array, i: Array, images: Array, best: Array) -> Array:
        window = _windows(words, shape, jnp.asarray(side_of)[i])[2]
        signs = _signs(words[:, 2:], images.dtype)[:, None, None, :]
        # What is left of best + 2 eps signs after projection: the old perturbation is at most eps in size.
        return jnp.where(window, jnp.clip(images + eps * signs, 0.0, 1.0), best)

    return Moves(start, 2 + shape[2], propose)


class Patterns(NamedTuple):
    """The form of a perturbation in windows, for the norms where it is not flat.

    Attributes:
        tiles: (keys [B], images) -> tiles of the pattern all over each image.
        window: (words [B, 1 + channels], i, dtype, rows [B], columns [B]) -> the pattern in the window of
            iteration i at this place, turned or not, and with a sign for each channel; 0 around it.
    """

    tiles: Callable[[Array, Array], Array]
    window: Callable[[Array, Array, jnp.dtype, Array, Array], Array]


def _patterns(norm: str, shape: tuple[int, ...], side_of: np.ndarray) -> Patterns:
    """The patterns of a norm for images [H, W, C]."""
    height, width, channels = shape
    distinct, which = np.unique(side_of, return_inverse=True)
    # For each side the pattern and the pattern turned, on a canvas from which an image-sized part is cut.
    canvases = np.zeros((len(distinct), 2, 2 * height, 2 * width))
    for k, side in enumerate(distinct):
        form = pattern(side, norm)
        canvases[k, :, height : height + side, width : width + side] = form, form.T

    def tiles(keys: Array, images: Array) -> Array:
        # Each turned or not, and with a sign for each channel.
        side = max(min(height, width) // 5, 1)
        tile = jnp.asarray(pattern(side, norm), images.dtype)
        down, across = height // side, width // side
        edges = [(length - side * (length // side)) for length in (height, width)]

        def draw(key: Array) -> Array:
            for_signs, for_turns = jax.random.split(key)
            signs = drawn(jax.random.rademacher, for_signs, (down, 1, across, 1, channels), images.dtype)
            turned = jax.random.bernoulli(for_turns, 0.5, (down, 1, across, 1, 1))
            tiles = jnp.where(turned, tile.T[:, None, :, None], tile[:, None, :, None]) * signs
            return tiles.reshape(down * side, across * side, channels)

        inner = jax.vmap(draw)(keys)
        around = [(0, 0), *((edge // 2, edge - edge // 2) for edge in edges), (0, 0)]
        return jnp.pad(inner, around)

    def window(words: Array, i: Array, dtype: jnp.dtype, row: Array, column: Array) -> Array:
        canvas = jnp.asarray(canvases, dtype)[jnp.asarray(which)[i]]
        turned = (words[:, 0] & 1).astype(jnp.int32)
        cut = jax.vmap(
            lambda t, r, c: jax.lax.dynamic_slice(canvas, (t, height - r, width - c), (1, height, width))
        )
        signs = _signs(words[:, 1:], dtype)[:, None, None, :]
        return cut(turned, row, column)[:, 0, :, :, None] * signs

    return Patterns(tiles, window)


def _l2(eps: float, shape: tuple[int, ...], side_of: np.ndarray) -> Moves:
    """Moves the mass of the perturbation in one window into another, where it takes the form of `pattern`."""
    channels, patterns = shape[2], _patterns('l2', shape, side_of)

    def norm(delta: Array, axis: tuple[int, ...]) -> Array:
        return jnp.sqrt(jnp.sum(delta**2, axis=axis, keepdims=True))

    def on_sphere(images: Array, delta: Array) -> Array:
        return jnp.clip(images + eps * delta / (norm(delta, (1, 2, 3)) + 1e-12), 0.0, 1.0)

    def start(keys: Array, images: Array) -> Array:
        return on_sphere(images, patterns.tiles(keys, images))

    def propose(words: Array, i: Array, images: Array, best: Array) -> Array:
        side = jnp.asarray(side_of)[i]
        row, column, into = _windows(words[:, :2], shape, side)
        out_of = _windows(words[:, 2:4], shape, side)[2]
        delta = best - images
        old = jnp.where(into, delta, 0)

        # What a channel has to spend: its mass in both windows, and its share of what the ball leaves over.
        unused = jnp.maximum(eps**2 - norm(delta, (1, 2, 3)) ** 2, 0.0)
        mass = norm(old, (1, 2)) ** 2
        budget = jnp.sqrt(unused / channels + mass + norm(jnp.where(out_of & ~into, delta, 0), (1, 2)) ** 2)

        fresh = patterns.window(words[:, 4:], i, images.dtype, row, column)
        # |fresh + scale old| from products, as |fresh| = 1: the sum need not be made for it.
        scale = 1 / (jnp.sqrt(mass) + 1e-12)
        product = jnp.sum(fresh * delta, axis=(1, 2), keepdims=True)
        length = jnp.sqrt(jnp.maximum(1 + 2 * scale * product + scale**2 * mass, 1e-12))
        new = (fresh + scale * old) * (budget / length)
        return on_sphere(images, jnp.where(into, new, jnp.where(out_of, 0, delta)))

    return Moves(start, 5 + channels, propose)


def _l1(eps: float, shape: tuple[int, ...], side_of: np.ndarray) -> Moves:
    """As in L2 the mass of one window moves into another; then the sum is above eps, and is projected."""
    channels, patterns = shape[2], _patterns('l1', shape, side_of)
    radius = eps * (1 - 1e-6)  # as in the reference code

    def mass(delta: Array) -> Array:
        return jnp.sum(jnp.abs(delta), axis=(1, 2), keepdims=True)

    def projected(images: Array, delta: Array) -> Array:
        return jnp.clip(l1.project(images + delta, images, radius), 0.0, 1.0)

    def start(keys: Array, images: Array) -> Array:
        return projected(images, patterns.tiles(keys, images))

    def propose(words: Array, i: Array, images: Array, best: Array) -> Array:
        side = jnp.asarray(side_of)[i]
        row, column, into = _windows(words[:, :2], shape, side)
        out_of = _windows(words[:, 2:4], shape, side)[2]
        delta = best - images
        old = jnp.where(into, delta, 0)

        new = patterns.window(words[:, 4:], i, images.dtype, row, column) + old / (mass(old) + 1e-12)
        unused = jnp.maximum(eps - jnp.sum(mass(delta), axis=3, keepdims=True), 0)
        # What a channel has to spend, times the number of channels: the projection decides which one gets it.
        budget = (unused / channels + mass(jnp.where(into | out_of, delta, 0))) * channels
        new = new / (mass(new) + 1e-12) * budget
        return projected(images, jnp.where(into, new, jnp.where(out_of, 0, delta)))

    return Moves(start, 5 + channels, propose)


# In each norm Square is another random search: how it moves, and which sides its windows may have.
MOVES: dict[str, Callable[[float, tuple[int, ...], np.ndarray], Moves]] = {
    'linf': _linf,
    'l2': _l2,
    'l1': _l1,
}
SIDES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'linf': lambda side: side,
    'l2': lambda side: np.maximum(side, 3) | 1,
    'l1': lambda side: np.maximum(side, 3) | 1,
}
# How steep the hills of a pattern are, and what their size is.
STEEPNESS = {'l2': 2, 'l1': 4}
SIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'l2': lambda values: np.sqrt(np.sum(values**2)),
    'l1': lambda values: np.sum(np.abs(values)),
}


def pattern(side: int, norm: str = 'l2') -> np.ndarray:
    """The update of L2 or L1 in a window, [side, side], of norm 1: a positive hill above a negative one.

    A hill in h x w pixels is sum_r 1 / (r + 1)^p over all r not smaller than the distance (the larger one of
    rows and columns) from its centre (h // 2, w // 2); p is 2 in L2 and 4 in L1.
    """
    size = SIZES[norm]

    def hill(height: int, width: int) -> np.ndarray:
        rows_away = np.abs(np.arange(height) - height // 2)[:, None]
        columns_away = np.abs(np.arange(width) - width // 2)[None, :]
        terms = 1.0 / np.arange(1, max(height // 2, width // 2) + 2) ** STEEPNESS[norm]
        tail = np.cumsum(terms[::-1])[::-1]
        values = tail[np.maximum(rows_away, columns_away)]
        return values / size(values) if values.size else values

    both = np.concatenate([hill(side // 2, side), -hill(side - side // 2, side)])
    return both / size(both)
