"""Packing: a search over many images in few static shapes.

A search runs in parts. After each part, images that it has broken leave, and as soon as the others fit into
fewer or smaller packs they are packed again, whichever batch they came from. Packs have a few fixed sizes, so
that each program is compiled a few times; in between they stay on the devices.

On the CPU packs run side by side, one on each core, and a row costs no more in a small pack than in a large
one. There all packs of a stage have one size, with which few rows are filling and no core waits for another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from si_jax.attacks.ascent import Gradients
from si_jax.attacks.search import Problem, Search, SearchState
from si_jax.runtime import progress
from si_jax.runtime.devices import at_once, compile_rows, place_rows, ready, side_by_side
from si_jax.threat import Threat

LEAST_ROWS = 32  # in a pack on each device: smaller ones take as long
LEAST_EVEN = 4  # the same on the CPU, where smaller ones were not measured
MOST_SIZES = 4


def sizes(chunk: int, devices: int) -> tuple[int, ...]:
    """The sizes of packs in rows, largest first: `chunk` and the powers of two (times devices) below it."""
    powers = [devices * 2**k for k in range(32)]
    smaller = [size for size in powers if LEAST_ROWS * devices <= size < chunk]
    return chunk, *smaller[::-1][: MOST_SIZES - 1]


def sizes_for(count: int, chunk: int, devices: list[jax.Device]) -> tuple[int, ...]:
    """The sizes of packs, of at most `chunk` rows each, for a search that begins with so many rows."""
    if devices[0].platform != 'cpu' or not count:
        return sizes(chunk, len(devices))
    return (even(count, chunk, len(devices), at_once(devices)),)


def even(count: int, chunk: int, devices: int, lanes: int) -> int:
    """The size of a pack, if so many rows go into packs that are alike, as many as `lanes` or a multiple."""
    packs = -(-count // chunk)
    packs = -(-packs // lanes) * lanes
    size = -(-count // (packs * devices)) * devices
    return min(chunk, max(size, LEAST_EVEN * devices))


def split(count: int, sizes: tuple[int, ...]) -> list[int]:
    """The sizes of the packs that `count` rows go into."""
    packs: list[int] = []
    while count > 0:
        packs.append(min((size for size in sizes if size >= count), default=sizes[0]))
        count -= packs[-1]
    return packs


class CompiledSearch(NamedTuple):
    """A search, compiled for the devices for each pack size that comes along.

    Attributes:
        search: The search.
        part: Iterations in a part.
        init: (weights, images, labels, keys, targets) -> state.
        advance: (shared, images, labels, keys, targets, state) -> state, from `shared_of`.
        shared_of: (weights, first iteration, number of iterations) -> shared.
        devices: Those it is compiled for.
        sizes: Of the packs that it is run in.
    """

    search: Search
    part: int
    init: Callable[..., SearchState]
    advance: Callable[..., SearchState]
    shared_of: Callable[[Any, int, int], Any]
    devices: list[jax.Device]
    sizes: tuple[int, ...]


def compile_search(
    search: Search,
    part: int,
    apply: Callable[..., Any],
    threat: Threat | None,
    key_impl: Any,
    devices: list[jax.Device],
    sizes: tuple[int, ...],
) -> CompiledSearch:
    """Compiles a search for `apply`, (weights, images, keys) -> Outputs; keys come as their data.

    A part that divides the iterations has a static length. The length of another is an argument, so that the
    last, shorter one needs no program of its own; of a search in `whole_parts` the last one is as long.
    Without a threat model the programs have it as an argument: `weights` is then a pair of these and of it.
    """
    static = search.iterations % part == 0 or search.whole_parts

    def problem(images: Any, labels: Any, keys: Any, targets: Any) -> Problem:
        return Problem(images, labels, jax.random.wrap_key_data(keys, impl=key_impl), targets)

    def pair(weights: Any) -> tuple[Any, Threat]:
        return weights if threat is None else (weights, threat)

    def init(weights: Any, images: Any, labels: Any, keys: Any, targets: Any) -> SearchState:
        weights, ball = pair(weights)
        return search.init(lambda x, k: apply(weights, x, k), problem(images, labels, keys, targets), ball)

    def advance(shared: Any, images: Any, labels: Any, keys: Any, targets: Any, state: Any) -> SearchState:
        both, first, *count = shared
        weights, ball = pair(both)
        return search.advance(
            lambda x, k: apply(weights, x, k),
            problem(images, labels, keys, targets),
            ball,
            state,
            first,
            part if static else count[0],
        )

    return CompiledSearch(
        search,
        part,
        compile_rows(init, devices),
        compile_rows(advance, devices),
        lambda weights, first, count: (weights, np.int32(first), *(() if static else (np.int32(count),))),
        devices,
        sizes,
    )


class Outcome(NamedTuple):
    """What a search did to M images.

    Attributes:
        broken: [M] bool, whether a misclassified image was found and confirmed.
        images: [number of broken, H, W, C], in the order of the rows.
        queries: [M] int64, forward passes spent.
        gradients: What was wrong with the gradients of each image; None for a search that takes none.
        refused: How many claimed successes were not confirmed.
        final: The `inner` state of the search after its last iteration as host arrays [M, ...] for the rows
            that were not broken before it, or None if that is not asked for.
    """

    broken: np.ndarray
    images: np.ndarray
    queries: np.ndarray
    gradients: Gradients | None
    refused: int
    final: Any


class _Pack:
    """Rows searched together: their numbers, which of them still count, and what is on the devices."""

    def __init__(self, rows: np.ndarray, size: int, arrays: Any, devices: list[jax.Device]):
        # Filled up with copies of the first row.
        padded = np.concatenate([np.arange(len(rows)), np.zeros(size - len(rows), int)])
        self.rows = rows[padded]
        self.active = np.arange(size) < len(rows)
        filled = jax.tree.map(lambda leaf: leaf[padded], arrays)
        self.problem, self.state = place_rows(filled, devices)

    def host(self, tree: Any, which: np.ndarray | slice = slice(None)) -> Any:
        """The chosen rows of a tree on the devices, as host arrays."""
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[which], tree)


def run_search(
    compiled: CompiledSearch,
    weights: Any,
    problem: tuple[np.ndarray, ...],
    confirm: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
    *,
    final: bool = False,
) -> Outcome:
    """Runs a search on all rows until they are broken or it has made all its iterations.

    `progress.done` is called with the share of the iterations that were made.

    Args:
        compiled: The search; `weights` are replicated.
        problem: images, labels, keys (their data) and targets, host arrays [M, ...].
        confirm: (rows [B], images [B, H, W, C]) -> [B] bool, whether these images, of which the search says
            that they are misclassified, really are. The search goes on with those that are not. None: it goes
            on with all, as one draw of a random classifier decides nothing.
        final: Whether the final states are returned.
    """
    count, iterations = len(problem[0]), compiled.search.iterations
    devices, sizes = compiled.devices, compiled.sizes
    broken, queries, refused = np.zeros(count, bool), np.zeros(count, np.int64), 0
    images = np.zeros_like(problem[0])
    inner: Any = None
    gradients: Any = None

    def pack(rows: np.ndarray, states: Any) -> list[_Pack]:
        packs, first = [], 0
        for size in split(len(rows), sizes):
            chosen = slice(first, first + size)
            of_rows = tuple(array[rows[chosen]] for array in problem)
            of_states = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], states)
            packs.append(_Pack(rows[chosen], size, (of_rows, of_states), devices))
            first += size
        return packs

    def begin(one: _Pack) -> SearchState:
        return ready(compiled.init(weights, *one.problem), devices)

    packs = pack(np.arange(count), ())
    for one, state in zip(packs, side_by_side(begin, packs, devices), strict=True):
        one.state = state
    for first in range(0, iterations, compiled.part):
        made = min(compiled.part, iterations - first)
        shared = compiled.shared_of(weights, first, made)

        def advance(one: _Pack, shared: Any = shared) -> SearchState:
            return ready(compiled.advance(shared, *one.problem, one.state), devices)

        # All are dispatched before the first is waited for: a device need not wait for the host.
        for one, state in zip(packs, side_by_side(advance, packs, devices), strict=True):
            one.state = state
        claims = []
        for one in packs:
            fooled, spent, seen = one.host((one.state.fooled, one.state.queries, one.state.gradients))
            queries[one.rows[one.active]] = spent[one.active]
            if seen is not None:
                gradients = gradients or Gradients(*np.zeros((2, count), bool))
                for whole, some in zip(gradients, seen, strict=True):
                    whole[one.rows[one.active]] = some[one.active]
            claims.append(np.flatnonzero(fooled & one.active & (confirm is not None)))
        if final and first + made == iterations:
            inner = _put_together(count, [(one.rows, one.active, one.state.inner) for one in packs])
        rows = np.concatenate([one.rows[claim] for one, claim in zip(packs, claims, strict=True)])
        if confirm is not None and len(rows):
            claimed = [(one, claim) for one, claim in zip(packs, claims, strict=True) if len(claim)]
            images[rows] = np.concatenate([one.host(one.state.found, claim) for one, claim in claimed])
            broken[rows] = confirm(rows, images[rows])
            refused += int(np.sum(~broken[rows]))
            for one, claim in zip(packs, claims, strict=True):
                sound = broken[one.rows[claim]]
                one.active[claim[sound]] = False
                if not sound.all():
                    one.state = _without_claims(one.state, claim[~sound])
        progress.done((first + made) / iterations)
        left = sum(int(one.active.sum()) for one in packs)
        if not left or first + made == iterations:
            break
        if sum(split(left, sizes)) < sum(len(one.rows) for one in packs):
            numbers = np.concatenate([one.rows[one.active] for one in packs])
            states = [one.host(one.state, one.active) for one in packs]
            packs = pack(numbers, jax.tree.map(lambda *leaves: np.concatenate(leaves), *states))
    return Outcome(broken, images[broken], queries, gradients, refused, inner)


def _without_claims(state: SearchState, rows: np.ndarray) -> SearchState:
    """The state with `fooled` cleared in these rows, laid out as before."""
    fooled = np.asarray(state.fooled).copy()
    fooled.reshape(-1)[rows] = False
    return state._replace(fooled=jax.device_put(fooled, state.fooled.sharding))


def _put_together(count: int, packs: list[tuple[np.ndarray, np.ndarray, Any]]) -> Any:
    """The active rows of all packs in one tree of host arrays [count, ...]; zero where there is none."""

    def put(*leaves: Any) -> np.ndarray:
        whole = np.zeros((count, *leaves[0].shape[2:]), leaves[0].dtype)
        for (rows, active, _), leaf in zip(packs, leaves, strict=True):
            whole[rows[active]] = np.asarray(leaf).reshape(-1, *leaf.shape[2:])[active]
        return whole

    return jax.tree.map(put, *(inner for *_, inner in packs))
