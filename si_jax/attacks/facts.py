"""What is known of an attack, derived from what it is and never from its name.

A gradient attack maximises an objective of a score. A few evaluations of the two on toy outputs tell what
they need, and whether a factor on the logits changes the direction of steepest ascent.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.pgd import Attack
from si_jax.attacks.registry import named, row_of
from si_jax.attacks.searches import SearchAttack, Setup
from si_jax.errors import InputError
from si_jax.objectives import Objective, margin
from si_jax.outputs import Outputs, Score

Array = jax.Array
MOST_CLASSES = 10  # no loss needs more
FACTOR = 8.0  # on the logits; of a power of two, a scale of the floating-point numbers
LATE = 10**6  # a step in which an objective that changes with the steps has done so
# Directions agree to so much of their largest entry: losses add 1e-12 to their denominators.
AGREEMENT = 1e-4


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a row of `ATTACKS` or `SEARCHES`, or of an `Attack` record of the user's."""

    row: Attack | SearchAttack

    @property
    def uses_gradient(self) -> bool:
        """Whether it differentiates the classifier."""
        return isinstance(self.row, Attack) or not self.row.black_box

    @property
    def takes(self) -> frozenset[str]:
        """Which of the caller's steps, step_size, restarts and eot_samples it takes; others mean nothing."""
        if isinstance(self.row, SearchAttack):
            return frozenset({'eot_samples'} if self.row.averages else ())
        own = {'steps': self.row.steps, 'restarts': self.row.steps, 'step_size': self.row.step_size}
        return frozenset({'eot_samples', *(name for name, value in own.items() if value is None)})

    @property
    def aims(self) -> bool:
        """Whether it can have classes to reach; not what compares with the original images."""
        if isinstance(self.row, SearchAttack):
            return self.row.aims
        each = [self.row.objective, *filter(None, (self.row.then, self.row.odd))]
        return all(one.uses == {'adv'} for one in each)

    @functools.cached_property
    def reads_features(self) -> bool:
        """Whether it cannot be computed from logits alone."""
        _, score = self._maximised(MOST_CLASSES)
        return score is not None and not _defined(lambda: score(Outputs(jnp.ones((1, MOST_CLASSES)))))

    @functools.cached_property
    def loss_classes(self) -> int:
        """With fewer classes the loss that it is named after is not defined, and it takes the margin."""
        objective, _ = self._maximised(MOST_CLASSES)
        return next(classes for classes in range(2, MOST_CLASSES + 1) if _fits(objective, classes))

    @functools.cached_property
    def blind_to_scale(self) -> bool:
        """Whether a positive factor on the logits leaves every step as it is.

        An attack without an objective follows decisions, or the plane where two logits are equal. A factor
        moves neither of them.
        """
        objective, score = self._maximised(MOST_CLASSES)
        if self.row.calibrated or objective is None or score is None:
            return True
        others = [self.row.then, self.row.odd] if isinstance(self.row, Attack) else []
        each = [objective, *filter(None, others)]
        return all(_keeps_direction(one, score, step) for one in each for step in (0, LATE))

    def _maximised(self, classes: int) -> tuple[Objective | None, Score | None]:
        if isinstance(self.row, Attack):
            return self.row.objective, self.row.score
        search = self.row.make(Setup(classes))
        return search.objective_for(jnp.full(len(_LABELS), 3 % classes)), search.score


facts = functools.lru_cache(maxsize=256)(Facts)


@functools.lru_cache(maxsize=256)
def for_classes(row: Attack, classes: int) -> Attack:
    """The attack for so many classes: with the margin where its loss is not defined for them."""

    def fitting(objective: Objective | None) -> Any:
        return objective if _fits(objective, classes) else margin

    return row._replace(objective=fitting(row.objective), then=fitting(row.then), odd=fitting(row.odd))


def taken_by(name: str, randomised: bool = False) -> frozenset[str]:
    """`Facts.takes` of a named attack, without the settings that stand in its name.

    A preset sets all of that itself, but can run its stages alone. For a random classifier a search takes
    eot_samples even if it averages no gradients.
    """
    row = row_of(name)
    if row is None:
        return frozenset({'individual'})
    draws = {'eot_samples'} if randomised and isinstance(row, SearchAttack) else set()
    return (facts(row).takes | draws) - named(name).settings.keys()


_LABELS = np.arange(3)


def _fits(objective: Objective | None, classes: int) -> bool:
    score = jnp.ones((len(_LABELS), classes))
    return objective is None or _defined(lambda: objective(score, score, jnp.asarray(_LABELS * 0)))


def _defined(call: Callable[[], Any]) -> bool:
    try:
        jax.eval_shape(call)
    except InputError:
        return False
    return True


def _keeps_direction(objective: Objective, score: Score, step: int) -> bool:
    """Whether the gradient at toy features has the same direction if a factor is on the logits."""
    rng = np.random.default_rng(0)
    features, kernel = rng.normal(size=(3, 6)), rng.normal(size=(6, MOST_CLASSES))

    def direction(factor: float) -> np.ndarray:
        def loss(z: Array) -> Array:
            natural = score(Outputs(factor * jnp.asarray(features + 0.1) @ kernel, z, jnp.asarray(kernel)))
            found = score(Outputs(factor * z @ kernel, z, jnp.asarray(kernel)))
            return jnp.sum(objective(found, jax.lax.stop_gradient(natural), jnp.asarray(_LABELS), step))

        gradient = np.asarray(jax.grad(loss)(jnp.asarray(features, jnp.float32)), np.float64)
        largest = np.abs(gradient).max(axis=1, keepdims=True)
        return gradient / np.where(largest > 0, largest, 1)

    return bool(np.abs(direction(1.0) - direction(FACTOR)).max() <= AGREEMENT)
