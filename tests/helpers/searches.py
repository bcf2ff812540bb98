"""Searches for tests: quick versions of the real ones, and one that does as it is told."""

from typing import Any

import jax
import jax.numpy as jnp

from si_jax.attacks import rows
from si_jax.attacks.apgd import apgd
from si_jax.attacks.ascent import none_seen
from si_jax.attacks.fab import fab
from si_jax.attacks.rays import rays
from si_jax.attacks.registry import SEARCHES, SearchAttack
from si_jax.attacks.search import Search, SearchState
from si_jax.attacks.spsa import spsa
from si_jax.attacks.square import square
from si_jax.objectives import adversarial_ce, dlr, margin, targeted_dlr, targeted_margin

QUICK = {
    'apgd-ce': lambda k, r, eot: apgd(adversarial_ce, steps=10, eot_samples=eot),
    'apgd-cal': lambda k, r, eot: apgd(adversarial_ce, steps=10, eot_samples=eot),
    'apgd-dlr': lambda k, r, eot: apgd(dlr if k > 2 else margin, steps=10, eot_samples=eot),
    'apgd-t': lambda k, r, eot: apgd(targeted_dlr if k > 3 else targeted_margin, steps=10, eot_samples=eot),
    'fab': lambda k, r, eot: fab(targeted=False, random_start=r > 0, iterations=10),
    'fab-t': lambda k, r, eot: fab(targeted=True, random_start=r > 0, iterations=10),
    'square': lambda k, r, eot: square(120),
    'spsa': lambda k, r, eot: spsa(evaluations=8, iterations=10),
    'rays': lambda k, r, eot: rays(query_limit=200),
}
PARTS = {'square': 40, 'spsa': 5, 'rays': 50}


def quicken(monkeypatch: Any) -> None:
    """Cuts the iterations of the catalogue's searches; their code and their schedules stay."""
    for name, make in QUICK.items():
        quick = SEARCHES[name]._replace(make=make, part=PARTS.get(name, 4))
        monkeypatch.setitem(SEARCHES, name, quick)


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
    return SearchAttack(lambda classes, restart, eot: search, part, lambda classes: gradients)
