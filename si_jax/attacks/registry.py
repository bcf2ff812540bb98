"""The attacks by name: one row each.

Three tables. `ATTACKS` is the PGD family: it takes its steps, step size and restarts from the caller, runs on
every image, counts the final iterate, and shares its random starts: run after run, attacks and models are
compared on the same noise. `SEARCHES` are the attacks of AutoAttack and the black-box attacks: their settings
are fixed, and they look for one misclassified point for each correctly classified image. `PRESETS` run
several searches one after another, each on what the ones before it left.

Some attacks are blind to the scale of the logits but decide as they do. Sources: LAFEAT (Yu et al., CVPR
2021) and MIFPE (Yu and Xu, CVPR 2023) divide the logits of each iterate by the gap of the two highest;
T-MIFPE (2025, arXiv 2507.22428) derives a factor for it from the errors of floating point; PMA (Xie et al.,
2024, arXiv 2411.15210) raises the margin of probabilities; MD (Ma et al., 2020, arXiv 2006.13726) raises one
term of the margin at a time.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from si_jax import objectives
from si_jax.attacks.apgd import apgd
from si_jax.attacks.apgd_l1 import apgd_l1
from si_jax.attacks.fab import fab
from si_jax.attacks.fmn import fmn
from si_jax.attacks.pgd import Attack, from_original, from_signs
from si_jax.attacks.rays import rays
from si_jax.attacks.search import Search, TargetedObjective, of_attack
from si_jax.attacks.spsa import spsa
from si_jax.attacks.square import square
from si_jax.errors import InputError, unknown
from si_jax.objectives import Objective, adversarial_ce, dlr, margin
from si_jax.outputs import Score, cosine, logits, over_top_gap, scaled_by_gap, scaled_cosine
from si_jax.threat import NORMS

SI_SCALE = 15.0  # s of eq. 24, fixed for every model under evaluation (sec. 5.2 of the paper)

ATTACKS: dict[str, Attack] = {
    'fgsm': Attack(adversarial_ce, logits, start=from_original, steps=1, step_size=1.0),
    'pgd': Attack(adversarial_ce, logits),
    'cw': Attack(margin, logits),
    'dlr': Attack(dlr, logits),
    'sipgd': Attack(adversarial_ce, scaled_cosine(SI_SCALE)),
    # As blind to the scale of the logits as `sipgd`, but the score decides as the logits do.
    'pgd-gap': Attack(adversarial_ce, scaled_by_gap),
    # The loss of MIFPE with T = 1, and that of PMA.
    'pgd-mifpe': Attack(adversarial_ce, over_top_gap),
    'pgd-pm': Attack(objectives.probability_margin, logits),
    # One scale for all images and iterates, so that losses can be compared; LAFEAT and MIFPE scale each.
    'pgd-cal': Attack(adversarial_ce, logits, calibrated=True),
    'pgd-hybrid': Attack(
        adversarial_ce, scaled_by_gap, then=margin, step_size=2.0, cosines=1, any_iterate=True
    ),
    # MD of Ma et al. (2020): one term of the margin, which alternates over the restarts, and then the margin;
    # the step size falls from 2 eps in each half. Two restarts are one attack of theirs.
    'pgd-md': Attack(
        objectives.minus_label,
        logits,
        then=margin,
        odd=objectives.highest_other,
        step_size=2.0,
        cosines=2,
        any_iterate=True,
    ),
    # Sriramanan et al. (2020); settings of repository val-iisc/GAMA-GAT: GAMA-PGD.
    'gama': Attack(
        objectives.gama(),
        start=from_signs,
        steps=100,
        step_size=2.0,
        drops=(60, 85),
        reference='start',
    ),
}

TARGETS = 9  # targeted searches aim at the classes of rank 2 to 10, as far as there are so many


class Setup(NamedTuple):
    """What a search depends on, beside its row.

    Attributes:
        classes: Of the classifier.
        norm: Of the threat model.
        restart: The number of the run, from 0.
        eot_samples: Gradients averaged in each step.
        largereps: Whether APGD in L1 begins in larger balls.
    """

    classes: int
    norm: str = 'linf'
    restart: int = 0
    eot_samples: int = 1
    largereps: bool = True


class SearchAttack(NamedTuple):
    """A search with its fixed settings.

    Attributes:
        make: Setup -> Search.
        part: Iterations between two times that finished images make room for others. More cost less time
            for packing, fewer less time on images that are done.
        gradients: Gradients per query, from the number of classes; 0 for black-box attacks.
        queries: Forward passes of an iteration, roughly.
        measures_distance: Whether its state's `distance` is a result in itself.
        calibrated: As in `Attack`.
        averages: Whether it averages its gradients over EoT samples; else their number means nothing to it.
        gaps: The least and the largest median gap between the two highest logits that its steps can follow.
        dense: Whether it moves all pixels by as much, and so reaches little of a ball of sparse points.
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
    gaps: tuple[float, float] = (0.0, math.inf)
    dense: bool = False
    nearest: tuple[str, ...] = ()

    @property
    def black_box(self) -> bool:
        """Whether it uses no gradient."""
        return self.gradients(2) == 0


def _apgd(
    objective: Objective | TargetedObjective,
    score: Score = logits,
    *,
    classes: int = 2,
    fewer: Objective | TargetedObjective = margin,
    calibrated: bool = False,
) -> SearchAttack:
    """APGD on an objective; where it needs more `classes` than there are, on that for `fewer`."""

    def make(one: Setup) -> Search:
        raised = objective if one.classes >= classes else fewer
        if one.norm == 'l1':
            return apgd_l1(raised, score, eot_samples=one.eot_samples, largereps=one.largereps)
        return apgd(raised, score, eot_samples=one.eot_samples)

    return SearchAttack(make, 10, lambda number: 1.0, calibrated=calibrated, averages=True)


def _spsa(evaluations: int) -> SearchAttack:
    make = lambda one: spsa(evaluations=evaluations)  # noqa: E731
    # Adam divides by the size of the estimates plus 1e-8, and float32 holds no square of what is above 1e19.
    return SearchAttack(make, 5, _none, queries=evaluations + 1, gaps=(1e-5, 1e15))


def _rays(query_limit: int) -> SearchAttack:
    make = lambda one: rays(query_limit=query_limit)  # noqa: E731
    return SearchAttack(make, 500, _none, measures_distance=True, dense=True)


def _none(classes: int) -> float:
    return 0.0


SEARCHES: dict[str, SearchAttack] = {
    'apgd-ce': _apgd(adversarial_ce),
    'apgd-dlr': _apgd(dlr, classes=3),
    'apgd-t': _apgd(objectives.targeted_dlr, classes=4, fewer=objectives.targeted_margin),
    # As a stage of `fast`, where images that fall leave.
    'pgd-hybrid-20': SearchAttack(
        lambda one: of_attack(ATTACKS['pgd-hybrid'], 20, one.eot_samples),
        7,
        lambda classes: 1.0,
        averages=True,
    ),
    # APGD compares the losses of iterates, so they need one scale: that of `pgd-cal`.
    'apgd-cal': _apgd(adversarial_ce, calibrated=True),
    # Ablations of the paper's loss: APGD's steps, and targets without a temperature.
    'apgd-si': _apgd(adversarial_ce, scaled_cosine(SI_SCALE)),
    'apgd-si-t': _apgd(objectives.targeted_margin, cosine),
    'fab': SearchAttack(
        lambda one: fab(targeted=False, random_start=one.restart > 0),
        20,
        lambda classes: (classes - 1) / 2,
        queries=2,
        nearest=NORMS,
    ),
    'fab-t': SearchAttack(
        lambda one: fab(targeted=True, random_start=one.restart > 0),
        20,
        lambda classes: 0.5,
        queries=2,
        nearest=NORMS,
    ),
    'fmn': SearchAttack(
        lambda one: fmn(one.norm), 250, lambda classes: 1.0, measures_distance=True, nearest=(*NORMS, 'l0')
    ),
    'square': SearchAttack(lambda one: square(5000), 250, _none),
    'spsa': _spsa(256),
    'spsa-128': _spsa(128),
    'spsa-512': _spsa(512),
    'rays': _rays(10_000),
    'rays-40000': _rays(40_000),
}


class Stage(NamedTuple):
    """A search in a preset.

    Attributes:
        attack: A row of `SEARCHES`.
        restarts: Runs from new random numbers; a targeted search runs once for each target in each of them.
        eot_samples: Gradients averaged in each step.
        targets: Classes that a targeted search aims at.
        largereps: Whether APGD in L1 begins in larger balls.
    """

    attack: str
    restarts: int = 1
    eot_samples: int = 1
    targets: int = TARGETS
    largereps: bool = True

    def search(self, classes: int, norm: str = 'linf', restart: int = 0) -> Search:
        """The search of this stage for a classifier of so many classes, in a run."""
        return SEARCHES[self.attack].make(Setup(classes, norm, restart, self.eot_samples, self.largereps))


# Croce and Hein (2020); restarts and order as in repository fra31/auto-attack, autoattack.py.
PRESETS: dict[str, tuple[Stage, ...]] = {
    'autoattack': (Stage('apgd-ce'), Stage('apgd-t'), Stage('fab-t'), Stage('square')),
    'autoattack-plus': (
        Stage('apgd-ce', restarts=5),
        Stage('apgd-dlr', restarts=5),
        Stage('fab', restarts=5),
        Stage('square'),
        Stage('apgd-t'),
        Stage('fab-t'),
    ),
    'autoattack-rand': (Stage('apgd-ce', eot_samples=20), Stage('apgd-dlr', eot_samples=20)),
    # Ours, a screen (see SCREENS): 324 forward and 324 backward passes for an image that withstands it, where
    # `autoattack` takes 7,811 and 1,910.
    'fast': (Stage('pgd-hybrid-20'), Stage('apgd-cal'), Stage('apgd-t', targets=2)),
}

# Where a protocol has other stages in a norm. `largereps` is set by the standard version alone, in the
# reference code; there the others are the same in every norm.
PRESETS_IN: dict[str, dict[str, tuple[Stage, ...]]] = {
    'l1': {
        'autoattack': (
            Stage('apgd-ce', restarts=5),
            Stage('apgd-t', targets=5),
            Stage('fab-t'),
            Stage('square'),
        ),
        **{
            name: tuple(stage._replace(largereps=False) for stage in PRESETS[name])
            for name in ('autoattack-plus', 'autoattack-rand')
        },
    }
}

# Presets that are quick looks, not protocols: their results say so.
SCREENS = {
    'fast': "a screen for development, without seven of AutoAttack's targets, FAB and Square: it cannot see "
    'masked gradients; report autoattack'
}


def stages(name: str, eot_samples: int, norm: str = 'linf') -> tuple[Stage, ...]:
    """The stages of a preset in a norm, or a search as its only stage.

    A search alone is the stage that it is in `autoattack`, if it is one, with the caller's EoT samples if it
    averages.
    """
    presets = PRESETS | PRESETS_IN.get(norm, {})
    if name in presets:
        return presets[name]
    known = {stage.attack: stage for stage in presets['autoattack']}
    alone = known.get(name, Stage(name))
    return (alone._replace(eot_samples=eot_samples if SEARCHES[name].averages else 1),)


def parse(attacks: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The attack names in `attacks`, a comma string or a sequence, in order.

    Raises:
        InputError: A name is unknown (with the near ones), given twice, or there is none.
    """
    known = (*ATTACKS, *SEARCHES, *PRESETS)
    names = attacks.split(',') if isinstance(attacks, str) else list(attacks)
    names = [str(name).strip() for name in names]
    for name in names:
        if name not in known:
            raise unknown('attack', name, known)
        if names.count(name) > 1:
            raise InputError(f'attack {name!r} is given {names.count(name)} times: give it once')
    if not names:
        raise InputError(f'no attack given: name one or more of {", ".join(known)}')
    return tuple(names)
