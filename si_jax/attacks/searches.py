"""The searches by name: the attacks of AutoAttack and the black-box attacks, one row each.

Their settings stand in a row, or in a name, as in `apgd-ce(steps=50)`. They look for one misclassified point
for each correctly classified image.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from si_jax import objectives
from si_jax.attacks.apgd import apgd
from si_jax.attacks.apgd_l1 import apgd_l1
from si_jax.attacks.fab import fab
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.fmn import fmn
from si_jax.attacks.rays import rays
from si_jax.attacks.search import Search, TargetedObjective, of_attack
from si_jax.attacks.settings import Setting
from si_jax.attacks.spsa import spsa
from si_jax.attacks.square import square
from si_jax.objectives import Objective, adversarial_ce, dlr, margin
from si_jax.outputs import SI_SCALE, Score, cosine, logits, scaled_cosine
from si_jax.threat import NORMS

TARGETS = 9  # targeted searches aim at the classes of rank 2 to 10, as far as there are so many


class Setup(NamedTuple):
    """What a search depends on, beside its row.

    Attributes:
        classes: Of the classifier.
        norm: Of the threat model.
        restart: The number of the run, from 0.
        eot_samples: Gradients averaged in each step.
        largereps: Whether APGD in L1 begins in larger balls.
        aimed: Whether it has to reach classes that the caller chose.
        stops: Whether an image is done with its first misclassified point; not if the classifier is random.
    """

    classes: int
    norm: str = 'linf'
    restart: int = 0
    eot_samples: int = 1
    largereps: bool = True
    aimed: bool = False
    stops: bool = True


RESTARTS = Setting('restarts', 1)
N_TARGETS = Setting('n_targets', TARGETS)
# Those of the highest clean logits, as AutoAttack does, or those that MALT puts first.
CHOICE = Setting('choice', 'logits', choices=('logits', 'malt'))


class SearchAttack(NamedTuple):
    """A search with its settings.

    Attributes:
        make: Setup -> Search.
        part: Iterations between two times that finished images make room for others. More cost less time
            for packing, fewer less time on images that are done.
        gradients: Gradients per query, from the number of classes; 0 for black-box attacks.
        queries: Forward passes of an iteration, roughly.
        measures_distance: Whether its state's `distance` is a result in itself.
        calibrated: As in `Attack`.
        averages: Whether it averages its gradients over EoT samples; else their number means something to it
            for a random classifier alone.
        votes: Whether it takes the draws of a random classifier itself; others that do not average gradients
            are given the mean logits.
        gaps: The least and the largest median gap between the two highest logits that its steps can follow.
        dense: Whether it moves all pixels by as much, and so reaches little of a ball of sparse points.
        aims: Whether it can have classes to reach.
        settings: What can stand in its name, in order.
        remade: Makes the row with other settings than these, but for those that belong to a `Stage`.
        nearest: In which norms it looks for the nearest misclassified image, which its state has as
            `nearest` with its `distance`, whatever the radius is.
    """

    make: Callable[[Setup], Search]
    part: int
    gradients: Callable[[int], float]
    queries: int = 1
    measures_distance: bool = False
    calibrated: bool = False
    averages: bool = False
    votes: bool = False
    gaps: tuple[float, float] = (0.0, math.inf)
    dense: bool = False
    aims: bool = False
    settings: tuple[Setting, ...] = ()
    remade: Callable[..., 'SearchAttack'] | None = None
    nearest: tuple[str, ...] = ()

    @property
    def black_box(self) -> bool:
        """Whether it uses no gradient."""
        return self.gradients(2) == 0

    def with_settings(self, given: tuple[tuple[str, Any], ...]) -> 'SearchAttack':
        """The row with other settings than its own, as pairs of name and value."""
        return _with_settings(self, given) if given else self


@functools.lru_cache(maxsize=256)
def _with_settings(row: SearchAttack, given: tuple[tuple[str, Any], ...]) -> SearchAttack:
    """Once for all who ask, so that a program that was compiled for a row is found again."""
    assert row.remade is not None
    return row.remade(**dict(given))


def _none(classes: int) -> float:
    return 0.0


def _one(classes: int) -> float:
    return 1.0


def _apgd(
    objective: Objective | TargetedObjective,
    score: Score = logits,
    *,
    classes: int = 2,
    fewer: Objective | TargetedObjective = margin,
    calibrated: bool = False,
    steps: int = 100,
) -> SearchAttack:
    """APGD on an objective; where it needs more `classes` than there are, on that for `fewer`."""

    def make(one: Setup) -> Search:
        raised = objective if one.classes >= classes else fewer
        how: dict[str, Any] = {'steps': steps, 'eot_samples': one.eot_samples, 'aimed': one.aimed}
        if one.norm == 'l1':
            return apgd_l1(raised, score, largereps=one.largereps, **how)
        return apgd(raised, score, **how)

    targeted = [] if isinstance(objective, Objective) else [N_TARGETS, CHOICE]
    settings = (Setting('steps', steps), RESTARTS, *targeted)
    remade = functools.partial(_apgd, objective, score, classes=classes, fewer=fewer, calibrated=calibrated)
    return SearchAttack(
        make, 10, _one, calibrated=calibrated, averages=True, aims=True, settings=settings, remade=remade
    )


def _hybrid(steps: int = 20) -> SearchAttack:
    """`pgd-hybrid` as a stage of `fast`, where images that fall leave."""
    make = lambda one: of_attack(ATTACKS['pgd-hybrid'], steps, one.eot_samples, one.aimed)  # noqa: E731
    settings = Setting('steps', steps), RESTARTS
    return SearchAttack(make, 7, _one, averages=True, aims=True, settings=settings, remade=_hybrid)


def _fab(targeted: bool, steps: int = 100) -> SearchAttack:
    def make(one: Setup) -> Search:
        return fab(
            targeted=targeted, random_start=one.restart > 0, iterations=steps, aimed=targeted and one.aimed
        )

    gradients = (lambda classes: 0.5) if targeted else (lambda classes: (classes - 1) / 2)
    settings = (Setting('steps', steps), RESTARTS, *([N_TARGETS, CHOICE] if targeted else []))
    remade = functools.partial(_fab, targeted)
    return SearchAttack(
        make, 20, gradients, queries=2, aims=targeted, nearest=NORMS, settings=settings, remade=remade
    )


def _fmn(steps: int = 1000) -> SearchAttack:
    make = lambda one: fmn(one.norm, steps=steps)  # noqa: E731
    return SearchAttack(
        make,
        min(250, steps),
        _one,
        measures_distance=True,
        nearest=(*NORMS, 'l0'),
        settings=(Setting('steps', steps),),
        remade=_fmn,
    )


def _square(queries: int = 5000, p_init: float = 0.8) -> SearchAttack:
    def make(one: Setup) -> Search:
        return square(queries, p_init, one.aimed, eot_samples=one.eot_samples, stops=one.stops)

    settings = Setting('queries', queries), RESTARTS, Setting('p_init', p_init, 0, 1)
    return SearchAttack(
        make, min(250, queries), _none, votes=True, aims=True, settings=settings, remade=_square
    )


def _spsa(
    *, evaluations: int, steps: int = 100, learning_rate: float = 0.01, radius: float = 0.001
) -> SearchAttack:
    def make(one: Setup) -> Search:
        how = {'learning_rate': learning_rate, 'radius': radius}
        return spsa(evaluations=evaluations, iterations=steps, stops=one.stops, **how)

    settings = (
        Setting('steps', steps),
        RESTARTS,
        Setting('evaluations', evaluations, 2),
        Setting('learning_rate', learning_rate, 0, 1),
        Setting('radius', radius, 0, 1),
    )
    # Adam divides by the size of the estimates plus 1e-8, and float32 holds no square of what is above 1e19.
    return SearchAttack(
        make,
        5,
        _none,
        queries=evaluations + 1,
        dense=True,
        gaps=(1e-5, 1e15),
        settings=settings,
        remade=functools.partial(_spsa, evaluations=evaluations),
    )


def _rays(queries: int) -> SearchAttack:
    make = lambda one: rays(query_limit=queries, eot_samples=one.eot_samples)  # noqa: E731
    return SearchAttack(
        make,
        500,
        _none,
        measures_distance=True,
        votes=True,
        dense=True,
        settings=(Setting('queries', queries),),
        remade=_rays,
    )


SEARCHES: dict[str, SearchAttack] = {
    'apgd-ce': _apgd(adversarial_ce),
    'apgd-dlr': _apgd(dlr, classes=3),
    'apgd-t': _apgd(objectives.targeted_dlr, classes=4, fewer=objectives.targeted_margin),
    'pgd-hybrid-20': _hybrid(),
    # APGD compares the losses of iterates, so they need one scale: that of `pgd-cal`.
    'apgd-cal': _apgd(adversarial_ce, calibrated=True),
    # Ablations of the paper's loss: APGD's steps, and targets without a temperature.
    'apgd-si': _apgd(adversarial_ce, scaled_cosine(SI_SCALE)),
    'apgd-si-t': _apgd(objectives.targeted_margin, cosine),
    'fab': _fab(targeted=False),
    'fab-t': _fab(targeted=True),
    'fmn': _fmn(),
    'square': _square(),
    'spsa': _spsa(evaluations=256),
    'spsa-128': _spsa(evaluations=128),
    'spsa-512': _spsa(evaluations=512),
    'rays': _rays(10_000),
    'rays-40000': _rays(40_000),
}
