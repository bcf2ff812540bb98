"""Linear ramps: the radius, the attack and weights of the loss that grow over the first part of a run.

A ramp (a, b) multiplies a value by a + (1 - a) min(1, u / (b U)), where u counts the epochs (or steps) from 1
and U is how many the run has: from about a times the value to all of it over the first share b of the run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.cost.flops import first_steps
from si_jax.defenses import Defense, Position, Term
from si_jax.errors import InputError, unknown
from si_jax.threat import Threat

Array = jax.Array
EVERY = ('epoch', 'step')
NAMES = ('eps', 'step_size', 'steps', 'weights')


class Ramps(NamedTuple):
    """The ramps of a run, each (a, b), or () for none.

    Attributes:
        eps: Of the radius of the training attack, and of its step size with it.
        step_size: Of its step size alone.
        steps: Of the number of its steps, from round(a n) to all n, each number equally long.
        moves: Steps from one change to the next: those of an epoch, or 1.
        total: U, the number of changes of the whole run.

    Source: val-iisc/DAJAT and ACAT, eps (0, 1) every epoch; the steps of DAJAT's paper, 2 to 5 in four
    quarters, are steps (0.4, 1) of 5, where its released code always takes 5.
    """

    eps: tuple[float, ...]
    step_size: tuple[float, ...]
    steps: tuple[float, ...]
    moves: int
    total: int

    def factor(self, ramp: Sequence[float], step: Array) -> Array:
        """The factor of a ramp (a, b) in step number `step`, from 0."""
        first, share = ramp
        return first + (1 - first) * jnp.minimum((step // self.moves + 1) / (share * self.total), 1.0)

    def steps_at(self, most: int, step: Array) -> Array:
        """The number of attack steps in step number `step`."""
        first = first_steps(self.steps[0], most)
        each = self.steps[1] * self.total / (most - first + 1)
        # In whole numbers: a quotient in float32 may lie on the other side of one.
        begins = [math.ceil(number * each - 1e-9) for number in range(1, most - first + 1)]
        return first + jnp.sum(step // self.moves >= jnp.asarray(begins, jnp.int32), dtype=jnp.int32)

    def at(self, step: Array, dtype: Any, threat: Threat, steps: int, step_size: float) -> dict[str, Any]:
        """What changes of the attack in step number `step`: 'threat', 'attack_steps', 'attack_step_size'."""
        found: dict[str, Any] = {}
        size: Any = step_size
        if self.eps:
            factor = self.factor(self.eps, step).astype(dtype)
            found['threat'], size = Threat(threat.norm, threat.eps * factor), size * factor  # type: ignore[arg-type]
        if self.step_size:
            size = size * self.factor(self.step_size, step).astype(dtype)
        if self.steps:
            found['attack_steps'] = self.steps_at(steps, step)
        return found | {'attack_step_size': size}


def from_config(
    section: Mapping[str, Any], defense: Defense, *, epochs: int, steps_per_epoch: int
) -> tuple[Ramps | None, Defense]:
    """The ramps of a config's section `ramp`, and the defense with those of its weights.

    Raises:
        InputError: A name is unknown, a number is out of range, or there is nothing that could grow.
    """
    if section['every'] not in EVERY:
        raise unknown('ramp.every', section['every'], EVERY)
    found = {name: _checked(name, section[name]) for name in NAMES}
    terms = [term.strip() for term in section['terms'].split(',') if term.strip()]
    for term in terms:
        if term not in defense.outer:
            raise unknown('term in ramp.terms', term, defense.outer)
    if bool(terms) != bool(found['weights']):
        raise InputError(
            f'ramp.weights={found["weights"]} and ramp.terms={section["terms"]!r} belong together: give '
            f"--config.ramp.weights='(0.0, 1.0)' --config.ramp.terms={next(iter(defense.outer))}, or neither"
        )
    if found['steps'] and (defense.persistent or defense.inner is None):
        raise InputError(f'ramp.steps={found["steps"]}: this defense has no steps of an attack; use ()')
    if defense.best_point and any(found[name] for name in ('eps', 'step_size', 'steps')):
        raise InputError(
            'ramp.eps, ramp.step_size and ramp.steps: APGD plans its steps beforehand, so that nothing of '
            'the attack can grow; use () for each of them'
        )
    epoch = section['every'] == 'epoch'
    moves, total = (steps_per_epoch, epochs) if epoch else (1, epochs * steps_per_epoch)
    ramps = Ramps(found['eps'], found['step_size'], found['steps'], moves, total)
    if terms:
        outer, inner_terms = (
            {
                name: _ramped(term, ramps, found['weights']) if name in terms else term
                for name, term in weighted.items()
            }
            for weighted in (defense.outer, defense.inner_terms)
        )
        defense = defense._replace(outer=outer, inner_terms=inner_terms)
    return (ramps if any(ramps[:3]) else None), defense


def _ramped(term: Term, ramps: Ramps, ramp: tuple[float, ...]) -> Term:
    """The term with this ramp of its weight, beside the schedule that it may have."""

    def schedule(position: Position) -> Array:
        factor = ramps.factor(ramp, position.step)
        return factor if term.schedule is None else factor * term.schedule(position)

    return term._replace(schedule=schedule)


def _checked(name: str, ramp: Any) -> tuple[float, ...]:
    if not ramp:
        return ()
    highest = 1.0 if name in ('eps', 'steps') else float('inf')
    numbers = isinstance(ramp, Sequence) and len(ramp) == 2 and all(isinstance(x, int | float) for x in ramp)
    if not numbers or not 0 <= ramp[0] <= highest or not 0 < ramp[1] <= 1:
        most = ' and at most 1' if highest == 1 else ''
        raise InputError(
            f'ramp.{name}={ramp!r} must be (a, b), from a times the value on, a not negative{most}, over the '
            'first share b of the run, in (0, 1]: for example (0.0, 1.0); () for no ramp'
        )
    return float(ramp[0]), float(ramp[1])


def words(section: Mapping[str, Any]) -> str:
    """The ramps, for a reader; '' for none."""
    parts = []
    for name in NAMES:
        if section[name]:
            first, share = section[name]
            what = section['terms'] if name == 'weights' else name
            parts.append(f'{what} from {first:g} times to all over {100 * share:.3g} % of the run')
    return f'{"; ".join(parts)}, every {section["every"]}' if parts else ''
