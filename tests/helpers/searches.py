"""Searches for tests: quick versions of the real ones, and one that does as it is told."""

from typing import Any

import jax
import jax.numpy as jnp

from si_jax.attacks import rows
from si_jax.attacks.apgd import apgd
from si_jax.attacks.apgd_l1 import apgd_l1
from si_jax.attacks.ascent import none_seen
from si_jax.attacks.fab import fab
from si_jax.attacks.fmn import fmn
from si_jax.attacks.rays import rays
from si_jax.attacks.search import Search, SearchState
from si_jax.attacks.searches import SEARCHES, SearchAttack, Setup
from si_jax.attacks.spsa import spsa
from si_jax.attacks.square import square
from si_jax.objectives import adversarial_ce, dlr, margin, targeted_dlr, targeted_margin


def quick_apgd(setup: Setup, objective: Any) -> Search:
    """APGD of ten steps, in L1 its own."""
    return (apgd_l1 if setup.norm == 'l1' else apgd)(objective, steps=10, eot_samples=setup.eot_samples)


QUICK = {
    'apgd-ce': lambda s: quick_apgd(s, adversarial_ce),
    'apgd-cal': lambda s: quick_apgd(s, adversarial_ce),
    'apgd-dlr': lambda s: quick_apgd(s, dlr if s.classes > 2 else margin),
    'apgd-t': lambda s: quick_apgd(s, targeted_dlr if s.classes > 3 else targeted_margin),
    'fab': lambda s: fab(targeted=False, random_start=s.restart > 0, iterations=10),
    'fab-t': lambda s: fab(targeted=True, random_start=s.restart > 0, iterations=10),
    'fmn': lambda s: fmn(s.norm, steps=60),
    'square': lambda s: square(120, eot_samples=s.eot_samples, stops=s.stops),
    'spsa': lambda s: spsa(evaluations=8, iterations=10, stops=s.stops),
    'rays': lambda s: rays(query_limit=200, eot_samples=s.eot_samples),
}
PARTS = {'fmn': 30, 'square': 40, 'spsa': 5, 'rays': 50}


def quicken(monkeypatch: Any) -> None:
    """Cuts the iterations of the catalogue's searches; their code and their schedules stay."""
    for name, make in QUICK.items():
        quick = SEARCHES[name]._replace(make=make, part=PARTS.get(name, 4))
        monkeypatch.setitem(SEARCHES, name, quick)


def _advance(
    search: Search, classifier: Any, where: Any, threat: Any, state: Any, first: Any, count: Any
) -> SearchState:
    return search.advance(classifier, where, threat, state, first, count)


# Compiled once for a search and a classifier, whatever the images, eps and length of a part.
init = jax.jit(
    lambda search, classifier, where, threat: search.init(classifier, where, threat), static_argnums=(0, 1)
)
advance = jax.jit(_advance, static_argnums=(0, 1))
_whole = jax.jit(_advance, static_argnums=(0, 1, 6))


def run_search(
    search: Search, where: Any, threat: Any, chunks: Any = None, classifier: Any = None
) -> SearchState:
    """The state of a search after all its iterations, on the host; so many in each of the chunks.

    As in an evaluation a single one has a static length, and that of several is an argument.
    """
    chunks = chunks or [search.iterations]
    part = _whole if len(chunks) == 1 else advance
    state, done = init(search, classifier, where, threat), 0
    for count in chunks:
        state, done = part(search, classifier, where, threat, state, done, count), done + count
    assert done == search.iterations
    return jax.device_get(state)


def told(iterations: int = 12, targeted: bool = False, answer: Any = None) -> Search:
    """A search that claims success in iteration answer(images, targets) [B], with the images moved by eps.

    Without an answer that is the iteration given by the first pixel, in hundredths.
    """

    def when(problem: Any) -> jax.Array:
        if answer is not None:
            return answer(problem.images, problem.targets)
        return jnp.round(100 * problem.images[:, 0, 0, 0]).astype(jnp.int32)

    def init(classifier: Any, problem: Any, threat: Any) -> SearchState:
        nothing = jnp.zeros(len(problem.images), jnp.int32)
        return SearchState(problem.images, nothing > 0, nothing, problem.images, none_seen(len(nothing)))

    def advance(
        classifier: Any, problem: Any, threat: Any, state: SearchState, first: Any, count: Any
    ) -> SearchState:
        def body(offset: jax.Array, state: SearchState) -> SearchState:
            now = (when(problem) <= first + offset) & ~state.fooled
            moved = jnp.clip(problem.images + threat.eps, 0, 1)
            return SearchState(
                rows.where(now, moved, state.found),
                state.fooled | now,
                state.queries + ~state.fooled,
                state.inner,
                state.gradients,
            )

        return jax.lax.fori_loop(0, count, body, state)

    return Search(init, advance, iterations, targeted)


def row(search: Search, part: int = 4, gradients: float = 1.0) -> SearchAttack:
    return SearchAttack(lambda setup: search, part, lambda classes: gradients)
