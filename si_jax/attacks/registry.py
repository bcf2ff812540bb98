"""The attacks by name: one row each.

Three tables. `ATTACKS` is the PGD family: it takes its steps, step size and restarts from the caller, runs on
every image, counts the final iterate, and shares its random starts: run after run, attacks and models are
compared on the same noise. `SEARCHES` are the attacks of AutoAttack and the black-box attacks: their settings
are fixed, and they look for one misclassified point for each correctly classified image. `PRESETS` run
several searches one after another, each on what the ones before it left.

A name can have settings, such as `apgd-ce(steps=50, restarts=5)`: those that its row declares (see
`settings`). `row_of` finds the row of any name.

Some attacks are blind to the scale of the logits but decide as they do. Sources: LAFEAT (Yu et al., CVPR
2021) and MIFPE (Yu and Xu, CVPR 2023) divide the logits of each iterate by the gap of the two highest;
T-MIFPE (2025, arXiv 2507.22428) derives a factor for it from the errors of floating point; PMA (Xie et al.,
2024, arXiv 2411.15210) raises the margin of probabilities; MD (Ma et al., 2020, arXiv 2006.13726) raises one
term of the margin at a time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from si_jax import objectives
from si_jax.attacks.apgd import apgd
from si_jax.attacks.apgd_l1 import apgd_l1
from si_jax.attacks.fab import fab
from si_jax.attacks.fmn import fmn
from si_jax.attacks.pgd import Attack, from_original, from_signs
from si_jax.attacks.rays import rays
from si_jax.attacks.search import Search, TargetedObjective, of_attack
from si_jax.attacks.settings import Setting, read, split, taken_apart, written
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


class Stage(NamedTuple):
    """A search in a preset.

    Attributes:
        attack: A row of `SEARCHES`.
        restarts: Runs from new random numbers; a targeted search runs once for each target in each of them.
        eot_samples: Gradients averaged in each step.
        targets: Classes that a targeted search aims at.
        largereps: Whether APGD in L1 begins in larger balls.
        settings: Other settings of the search than its row's, as pairs of name and value.
        aimed: Whether it has to reach classes that the caller chose.
        choice: How a targeted search chooses its classes, 'logits' or 'malt'.
        stops: As in `Setup`.
    """

    attack: str
    restarts: int = 1
    eot_samples: int = 1
    targets: int = TARGETS
    largereps: bool = True
    settings: tuple[tuple[str, Any], ...] = ()
    aimed: bool = False
    choice: str = 'logits'
    stops: bool = True

    @property
    def row(self) -> SearchAttack:
        """The search with its settings."""
        return SEARCHES[self.attack].with_settings(self.settings)

    def search(self, classes: int, norm: str = 'linf', restart: int = 0) -> Search:
        """The search of this stage for a classifier of so many classes, in a run."""
        setup = Setup(classes, norm, restart, self.eot_samples, self.largereps, self.aimed, self.stops)
        return self.row.make(setup)


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
    # `autoattack` with other targets where there are many classes (see VARIANTS).
    'autoattack-malt': (
        Stage('apgd-ce'),
        Stage('apgd-t', choice='malt'),
        Stage('fab-t', choice='malt'),
        Stage('square'),
    ),
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
        'autoattack-malt': (
            Stage('apgd-ce', restarts=5),
            Stage('apgd-t', targets=5, choice='malt'),
            Stage('fab-t', choice='malt'),
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


# Presets as thorough as a protocol that are not that protocol: their results say so.
VARIANTS = {
    'autoattack-malt': 'not standard AutoAttack: MALT chooses the targets of apgd-t and fab-t, which are '
    'others where there are more than ten classes; report autoattack beside it'
}

# What stands in the name of a search and belongs to its stage, by the field of `Stage`.
OF_STAGE = {'restarts': 'restarts', 'n_targets': 'targets', 'choice': 'choice'}


class Named(NamedTuple):
    """An attack by name.

    Attributes:
        base: The name without settings, in one of the tables.
        settings: The settings in the name, by name and in the order of the row; without defaults.
    """

    base: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The canonical name."""
        return written(self.base, self.settings)


def named(name: str, norm: str = 'linf') -> Named:
    """The attack of a name, in a norm: the defaults of some settings are those of its protocol.

    Raises:
        InputError: The attack is unknown (with the near ones), or it does not take a setting, or a value is
            wrong.
    """
    base, texts = taken_apart(name)
    known = (*ATTACKS, *SEARCHES, *PRESETS)
    if base not in known:
        raise unknown('attack', base, known)
    why = ''
    if base in PRESETS:
        searches = ', '.join(dict.fromkeys(stage.attack for stage in PRESETS[base]))
        why = f', which is a fixed protocol; or give settings to its searches ({searches}) by their own names'
    return Named(base, read(base, texts, settings_of(base, norm), why))


def settings_of(base: str, norm: str = 'linf') -> tuple[Setting, ...]:
    """What can stand in the name of an attack, with the defaults in a norm; nothing in that of a preset."""
    if base in ATTACKS:
        return ATTACKS[base].settings
    if base not in SEARCHES:
        return ()
    alone = _alone(base, norm)
    defaults = {key: getattr(alone, field) for key, field in OF_STAGE.items()}
    return tuple(one._replace(default=defaults.get(one.name, one.default)) for one in SEARCHES[base].settings)


def row_of(name: str) -> Attack | SearchAttack | None:
    """The row of an attack by its name, with settings or not; None for a preset and for an unknown name.

    Of the PGD family it is the row of the table: settings in the name stand in place of the caller's.
    """
    try:
        base, settings = named(name)
    except InputError:
        return None
    if base in SEARCHES:
        return SEARCHES[base].with_settings(_of_search(settings))
    return ATTACKS.get(base)


def _of_search(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in settings.items() if key not in OF_STAGE)


def _alone(base: str, norm: str) -> Stage:
    """A search alone, without settings: the stage that it is in `autoattack`, if it is one."""
    presets = PRESETS | PRESETS_IN.get(norm, {})
    return {stage.attack: stage for stage in presets['autoattack']}.get(base, Stage(base))


def stages(name: str, eot_samples: int, norm: str = 'linf', *, randomised: bool = False) -> tuple[Stage, ...]:
    """The stages of a preset in a norm, or a search as its only stage.

    A search alone is the stage that it is in `autoattack`, if it is one, with the settings in its name, and
    with the caller's EoT samples if it averages. For a random classifier every search takes them, and none
    stops before its last iteration.
    """
    presets = PRESETS | PRESETS_IN.get(norm, {})
    if name in presets:
        return tuple(stage._replace(stops=not randomised) for stage in presets[name])
    base, settings = named(name, norm)
    own = {field: settings[key] for key, field in OF_STAGE.items() if key in settings}
    own |= {'settings': _of_search(settings), 'stops': not randomised}
    samples = eot_samples if randomised or SEARCHES[base].averages else 1
    return (_alone(base, norm)._replace(**own, eot_samples=samples),)


def parse(attacks: str | list[str] | tuple[str, ...], norm: str = 'linf') -> tuple[str, ...]:
    """The canonical names of the attacks in `attacks`, a comma string or a sequence, in order.

    Commas inside parentheses do not separate attacks.

    Args:
        attacks: The names, some perhaps with settings.
        norm: Of the threat model, on which the defaults of some settings depend.

    Raises:
        InputError: A name is unknown (with the near ones), has wrong settings, is given twice, or there is
            none.
    """
    given = split(attacks) if isinstance(attacks, str) else [str(name) for name in attacks]
    names = [named(name, norm).name for name in given]
    for name in names:
        if names.count(name) > 1:
            alike = [one.strip() for one, canonical in zip(given, names, strict=True) if canonical == name]
            spelt = f', as {" and ".join(alike)}' if len(set(alike)) > 1 else ''
            raise InputError(f'attack {name!r} is given {len(alike)} times{spelt}: give it once')
    if not names:
        known = (*ATTACKS, *SEARCHES, *PRESETS)
        raise InputError(f'no attack given: name one or more of {", ".join(known)}')
    for name in names:
        if isinstance(row := row_of(name), SearchAttack):
            row.make(Setup(10, norm))  # refuses what its settings make impossible together, in this norm
    return tuple(names)
