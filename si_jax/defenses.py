"""The defenses: Table 1 of the paper as one table in code, the single-step methods of Table 8 among its rows.

A defense is an *inner* objective, which the attack inside training maximises, and an *outer* objective, a sum
of weighted terms that training minimises. SI is not a second code path: `with_si` replaces the inner
objective by cross-entropy on scaled cosines and adds one term to the outer one. Nor is hypersphere embedding:
`with_he` has every term computed from cosines. docs/defenses.md names sources and decisions row by row.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax import objectives
from si_jax.attacks.pgd import BOUNDS, STARTS, Attack, widened
from si_jax.errors import InputError, unknown
from si_jax.memories import Memory as Memory
from si_jax.memories import class_means
from si_jax.objectives import Objective, WholeBatch
from si_jax.outputs import Outputs, Score, cosine, logits, scaled_cosine, scaled_logits
from si_jax.threat import Threat, parse_threats

Array = jax.Array

PASSES = ('nat', 'adv', 'random', 'segment', 'helped')
HELPED = 'helped'  # the pass of points beyond the adversarial images, which a helper network labels
SEGMENT = 3  # images of the pass 'segment' for each image of the batch
BN_MODES = ('eval', 'train')
SMOOTHINGS = ('all', 'others')
SEEN = '{} seen'  # among the metrics of a step, for a term that remembers more than its value
# [threat models, 2] int32: how many images withstood the attack in each, and how many there were.
WITHSTOOD = 'withstood'


class Position(NamedTuple):
    """Where in a run a step is, for weights that change.

    Attributes:
        step: Number of the step, from 0.
        batch: Its number within the epoch, from 0.
        steps: Steps of the whole run.
        memory: What terms remember of the batches before, by their names.
    """

    step: Array
    batch: Array
    steps: int
    memory: Mapping[str, Any] = MappingProxyType({})


class Term(NamedTuple):
    """One term of an objective: weight * mean over the batch of objective(score).

    Attributes:
        weight: The weight.
        objective: What is averaged.
        score: What the objective is computed from.
        schedule: A factor on the weight, from the position; None for 1.
        of_gradients: The objective compares the image gradients of the inner objective at the natural images
            and at random points of the ball, not scores. Its mean is over the images where neither is zero.
        of_segment: The objective compares two values [B] of the inner objective's loss, not scores: at a
            random point between two random points of the ball, and on the straight line between their losses.
        scaled_with_si: Whether SI has the term read scaled cosines, as the attack does, in place of its
            score.
        memory: What the term remembers; None for nothing.
        of_branches: The objective compares the natural scores [N, B, K] of the N branches.
        on: The pass that stands where the objective has the adversarial one, with the labels of that pass.
    """

    weight: float
    objective: Objective
    score: Score = logits
    schedule: Callable[[Position], Array] | None = None
    of_gradients: bool = False
    of_segment: bool = False
    scaled_with_si: bool = False
    memory: Memory | None = None
    of_branches: bool = False
    on: str = 'adv'

    @property
    def reads(self) -> frozenset[str]:
        """The passes whose outputs the term is computed from."""
        if self.of_gradients:
            return frozenset()
        return (
            frozenset({'segment'})
            if self.of_segment
            else self.objective.uses - {'adv'} | ({self.on} if 'adv' in self.objective.uses else set())
        )

    def weight_at(self, position: Position | None) -> float | Array:
        """The weight at a position, which may be None where the term has no schedule."""
        if self.schedule is None:
            return self.weight
        assert position is not None
        return self.weight * self.schedule(position)


class Defense(NamedTuple):
    """A defense.

    Attributes:
        outer: The terms to minimise, by name.
        inner: The objective that the training attack maximises; None for no attack.
        inner_score: What the inner objective is computed from.
        inner_terms: Terms added to the inner objective, each with a score of its own.
        calibrated: Whether the inner score is multiplied by 2 / (median gap of the two highest natural logits
            of the batch), a factor that no gradient passes.
        before: Train-mode forward passes before the attack, each 'nat' or 'start' (where the attack starts).
            They update the running statistics; the attack compares with this 'nat' if there is one.
        passes: The train-mode forward passes of the objective in order, each 'nat', 'adv', 'random' (a
            uniform point of the ball around the image, not clipped), 'segment' (three of them as one batch:
            two such points, and a random one between them) or 'helped' (points beyond the adversarial images,
            with labels of a helper network: `si_jax.training.helper`); every one updates the running
            statistics of batch normalisation, a repeated one does nothing else.
        start: Where the attack starts, a name in `si_jax.attacks.pgd.STARTS`.
        start_radius: The radius of the noise there, as a multiple of eps.
        bounds: Where the attack's steps may lead, a name in `si_jax.attacks.pgd.BOUNDS`.
        attack_bn: Batch normalisation inside the attack: 'eval' for running statistics, 'train' for those of
            the batch. Neither updates the running statistics.
        steps: Steps of the attack, a default for configs.
        step_size: As a multiple of eps, a default for configs.
        step: The name of its training step in `si_jax.training.step.STEPS`: 'attack' for an attack before
            each update, 'free' for one backward pass that moves parameters and perturbation.
        persistent: Whether a perturbation that is kept from batch to batch stands in place of an attack, as
            the step 'free' has it. There, `inner` None means that the perturbation ascends the outer
            objective, of which it is a by-product, and there are no natural outputs.
        replays: Updates made on each batch; more than one needs a persistent perturbation.
        best_point: Whether the attack is APGD and its point of highest loss is trained on, as the step 'apgd'
            has it; of PGD it is the last one.
        others: Threat models beside that of the config: each batch is attacked in one of all. It needs
            `best_point`.
        hypersphere: The network's logits are cosines (`si_jax.models.create`).
        branches: Augmented copies of the batch. Each is attacked like the batch, and a branch of the loss,
            with batch normalisation of its own (`si_jax.training.branches`).
    """

    outer: Mapping[str, Term]
    inner: Objective | None
    inner_score: Score = logits
    inner_terms: Mapping[str, Term] = MappingProxyType({})
    calibrated: bool = False
    before: tuple[str, ...] = ()
    passes: tuple[str, ...] = ('nat', 'adv')
    start: str = 'uniform'
    start_radius: float = 1.0
    bounds: str = 'ball'
    attack_bn: str = 'eval'
    steps: int = 10
    step_size: float = 0.25
    step: str = 'attack'
    persistent: bool = False
    replays: int = 1
    best_point: bool = False
    others: tuple[Threat, ...] = ()
    hypersphere: bool = False
    branches: int = 0

    @property
    def attack(self) -> Attack | None:
        """The attack inside training without `inner_terms`; steps and step size come from the caller."""
        if self.inner is None:
            return None
        start = widened(STARTS[self.start], self.start_radius)
        return Attack(self.inner, self.inner_score, start=start, bounds=self.bounds)

    def attack_at(self, position: Position | None, rows: WholeBatch | None = None) -> Attack | None:
        """The attack on a batch.

        The position may be None where no inner term has a schedule, and the rows where none is of the batch.
        """
        attack, inner = self.attack, self.inner
        if attack is None or inner is None or not self.inner_terms:
            return attack
        terms = [Term(1.0, inner, self.inner_score), *self.inner_terms.values()]

        def total(form: Callable[[Objective], Any]) -> Callable[..., Array]:
            def loss(adv: Any, nat: Any, labels: Array, i: Array) -> Array:
                values = [
                    term.weight_at(position)
                    * form(term.objective.on(rows))(
                        term.score(adv), None if nat is None else term.score(nat), labels, i
                    )
                    for term in terms
                ]
                return sum(values[1:], values[0])

            return loss

        uses = frozenset().union(*(term.objective.uses for term in terms))
        soft = all(term.objective.soft for term in terms)
        objective = Objective(
            total(lambda one: one.loss), uses, total(lambda one: one.soft) if soft else None
        )
        return attack._replace(objective=objective, score=_whole)

    @property
    def scheduled(self) -> bool:
        """Whether a weight, or a term that remembers, depends on the position."""
        terms = [*self.outer.values(), *self.inner_terms.values()]
        return any(term.schedule or term.memory for term in terms)

    @property
    def aligned(self) -> bool:
        """Whether a term compares gradients."""
        return any(term.of_gradients for term in self.outer.values())

    @property
    def read_passes(self) -> tuple[str, ...]:
        """The passes that a term is computed from, each once: a gradient needs no others."""
        read = frozenset().union(*(term.reads for term in self.outer.values()))
        return tuple(name for name in dict.fromkeys(self.passes) if name in read)

    @property
    def memories(self) -> dict[str, Memory]:
        """Of the terms that remember something, by their names, and of the choice among threat models."""
        found = {name: term.memory for name, term in self.outer.items() if term.memory}
        if self.others:
            shape = (1 + len(self.others), 2)
            found[WITHSTOOD] = Memory(
                lambda classes: jnp.zeros(shape, jnp.int32),
                lambda memory, counted, new_epoch: memory + counted,
            )
        return found

    def first_memory(self, num_classes: int) -> Any:
        """What is remembered before the first batch, by name; () where nothing is."""
        return {name: memory.first(num_classes) for name, memory in self.memories.items()} or ()

    def remembered(self, memory: Any, values: Mapping[str, Array], new_epoch: Array) -> dict[str, Any]:
        """The memory after a batch: from terms' values, `SEEN`, and what a step counted."""
        found = {}
        for name, one in self.memories.items():
            seen, before = values[SEEN.format(name) if one.seen else name], memory[name]
            after = one.update(before, seen, new_epoch)
            found[name] = jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)
        return found


def _whole(outputs: Outputs) -> Any:
    """The score of an attack whose terms have scores of their own."""
    return outputs


# GAMA-GAT:CIFAR10/GAT_cifar10.py: lambda is 10 up to epoch 85 of 100, counted from 0, and 40 from there on.
GUIDED_RISE, GUIDED_FROM = 4.0, 86 / 100


def _guided(position: Position) -> Array:
    return jnp.where(position.step >= round(GUIDED_FROM * position.steps), GUIDED_RISE, 1.0)


def _guided_on_odd(position: Position) -> Array:
    return _guided(position) * (position.batch % 2)


# val-iisc/NuAT:CIFAR10/NuAT_cifar10.py: lambda is 0 in the first epoch and rises by 4 / epochs after each.
def _risen(position: Position) -> Array:
    return (position.step - position.batch) / position.steps


def _risen_on_odd(position: Position) -> Array:
    return _risen(position) * (position.batch % 2)


class Outliers(NamedTuple):
    """The memory of ELLE-A's term: its values so far, and the factor on its weight, each [].

    Attributes:
        total: How many values.
        mean: Their mean.
        squares: The sum of their squared distances from it.
        factor: 1 after a value that stood out, then 1 % less with each batch; 0 before the first.
    """

    total: Array
    mean: Array
    squares: Array
    factor: Array


# LIONS-EPFL/ELLE:core/utils/train.py, lambda_schedule 'onoff': a value is compared with those before it, of
# which there must be three, and changes lambda for the next batch.
OUTLIER_DEVIATIONS, OUTLIER_DECAY, OUTLIER_LEAST = 2.0, 0.99, 3


def _no_outliers(classes: int) -> Outliers:
    del classes
    zero = jnp.zeros((), jnp.float32)
    return Outliers(jnp.zeros((), jnp.int32), zero, zero, zero)


def _with_value(seen: Outliers, value: Array, new_epoch: Array) -> Outliers:
    del new_epoch
    deviation = jnp.sqrt(seen.squares / jnp.maximum(seen.total, 1))
    outlier = (seen.total >= OUTLIER_LEAST) & (value > seen.mean + OUTLIER_DEVIATIONS * deviation)
    total, distance = seen.total + 1, value - seen.mean
    mean = seen.mean + distance / total
    # Welford's sums: the difference of a sum of squares and a squared sum would lose all digits.
    squares = seen.squares + distance * (value - mean)
    return Outliers(total, mean, squares, jnp.where(outlier, 1.0, OUTLIER_DECAY * seen.factor))


def _outliers_factor(position: Position) -> Array:
    return position.memory['nonlinearity'].factor


NATURAL_CE = objectives.natural_ce
ADVERSARIAL_CE = objectives.adversarial_ce

# Weights are those of sec. 5.4: lambda = 6, 3, 6 for TRADES, ALP, MART. ALP's alpha is not stated: 0.5, as in
# ShawnXYang/AT_HE, whose mean square over B K elements stands for the paper's norm.
DEFENSES: dict[str, Defense] = {
    # Training without an attack, to compare with.
    'standard': Defense(
        outer={'natural_ce': Term(1.0, NATURAL_CE)},
        inner=None,
        passes=('nat',),
    ),
    # Madry et al. (2018).
    'at': Defense(
        outer={'adversarial_ce': Term(1.0, ADVERSARIAL_CE)},
        inner=ADVERSARIAL_CE,
        passes=('adv',),
    ),
    # Zhang et al. (2019), yaodongyu/TRADES; that code makes a third pass: ('nat', 'adv', 'nat').
    'trades': Defense(
        outer={'natural_ce': Term(1.0, NATURAL_CE), 'kl': Term(6.0, objectives.kl)},
        inner=objectives.kl,
    ),
    # Kannan et al. (2018), ShawnXYang/AT_HE. Stronger attacks broke the original: see docs/defenses.md.
    'alp': Defense(
        outer={
            'natural_ce': Term(0.5, NATURAL_CE),
            'adversarial_ce': Term(0.5, ADVERSARIAL_CE),
            'logit_pairing': Term(3.0, objectives.logit_pairing),
        },
        inner=ADVERSARIAL_CE,
    ),
    # Wang et al. (2020), YisenWang/MART.
    'mart': Defense(
        outer={
            'mart_bce': Term(1.0, objectives.boosted_ce),
            'weighted_kl': Term(6.0, objectives.weighted_kl),
        },
        inner=ADVERSARIAL_CE,
    ),
    # Croce and Hein (2022), fra31/robust-finetuning: AT by APGD, each batch in one of two norms.
    'eat': Defense(
        outer={'adversarial_ce': Term(1.0, ADVERSARIAL_CE)},
        inner=ADVERSARIAL_CE,
        passes=('adv',),
        start='original',
        step='apgd',
        best_point=True,
        others=(Threat('l1', 12.0),),
    ),
    # Shafahi et al. (2019), ashafahi/free_adv_train. With SI the perturbation ascends the whole outer
    # objective, a by-product of its one backward pass; inner='si' gives it a backward pass of its own.
    'freeat': Defense(
        outer={'adversarial_ce': Term(1.0, ADVERSARIAL_CE)},
        inner=None,
        passes=('adv',),
        start='original',
        steps=1,
        step_size=1.0,
        step='free',
        persistent=True,
        replays=8,
    ),
    # Sriramanan et al. (2020), val-iisc/GAMA-GAT. The first, train-mode P = softmax(g(x)) is compared with
    # eval-mode outputs of the attack, which ascends the distance on every second batch.
    'gat': Defense(
        outer={
            'natural_ce': Term(1.0, NATURAL_CE),
            'guided': Term(10.0, objectives.probability_distance, schedule=_guided),
        },
        inner=ADVERSARIAL_CE,
        inner_terms={'guided': Term(10.0, objectives.probability_distance, schedule=_guided_on_odd)},
        before=('nat',),
        passes=('adv', 'nat'),
        start='half_signs',
        steps=1,
        step_size=1.0,
    ),
    # Wong et al. (2020), locuslab/fast_adversarial.
    'rfgsm': Defense(
        outer={'adversarial_ce': Term(1.0, ADVERSARIAL_CE)},
        inner=ADVERSARIAL_CE,
        before=('start',),
        passes=('adv',),
        attack_bn='train',
        steps=1,
        step_size=1.25,
    ),
    # Andriushchenko and Flammarion (2020), tml-epfl/understanding-fast-adv-training. From the original image
    # the ball cuts the step of 1.25 eps to eps.
    'gradalign': Defense(
        outer={
            'adversarial_ce': Term(1.0, ADVERSARIAL_CE),
            'misalignment': Term(0.2, objectives.misalignment, of_gradients=True),
        },
        inner=ADVERSARIAL_CE,
        before=('nat',),
        passes=('adv', 'random'),
        start='original',
        attack_bn='train',
        steps=1,
        step_size=1.25,
    ),
    # de Jorge et al. (2022), pdejorge/N-FGSM: RFGSM-AT from noise of twice the radius, and without a
    # projection to the ball.
    'nfgsm': Defense(
        outer={'adversarial_ce': Term(1.0, ADVERSARIAL_CE)},
        inner=ADVERSARIAL_CE,
        before=('start',),
        passes=('adv',),
        start_radius=2.0,
        bounds='pixels',
        attack_bn='train',
        steps=1,
        step_size=1.0,
    ),
    # Abad Rocamora et al. (2024), LIONS-EPFL/ELLE, which clips no image to [0, 1]; its last pass is for a
    # metric, but moves the running statistics. That code makes two updates with each gradient, this one.
    'elle': Defense(
        outer={
            'adversarial_ce': Term(1.0, ADVERSARIAL_CE),
            'nonlinearity': Term(1000.0, objectives.squared_difference, of_segment=True),
        },
        inner=ADVERSARIAL_CE,
        before=('nat',),
        passes=('adv', 'segment', 'nat'),
        start='original',
        bounds='none',
        attack_bn='train',
        steps=1,
        step_size=1.0,
    ),
    # Sriramanan et al. (2021), val-iisc/NuAT: GAT with the nuclear norm of the batch's difference of logits,
    # over its number of images, in place of distances of probabilities.
    'nuat': Defense(
        outer={
            'natural_ce': Term(1.0, NATURAL_CE),
            'nuclear': Term(4.0, objectives.nuclear_norm, schedule=_risen, scaled_with_si=True),
        },
        inner=ADVERSARIAL_CE,
        inner_terms={
            'nuclear': Term(4.0, objectives.nuclear_norm, schedule=_risen_on_odd, scaled_with_si=True)
        },
        before=('nat',),
        passes=('adv', 'nat'),
        start='half_signs',
        steps=1,
        step_size=1.0,
    ),
}


# Cui et al. (2023), jiequancui/DKL: TRADES with the improved KL divergence, of which the attack climbs the
# cross-entropy, whose slope is that of KL. Attack steps: those of the released code.
DEFENSES['dkl'] = Defense(
    outer={
        'natural_ce': Term(1.0, NATURAL_CE),
        'ikl': Term(20.0, objectives.weighted_differences, memory=class_means(4.0)),
        'pair_ce': Term(4.0, objectives.pair_cross_entropy),
    },
    inner=objectives.kl,
    passes=('adv', 'nat'),
    start='gaussian',
    steps=5,
    step_size=0.5,
)

# Addepalli et al. (2022), val-iisc/DAJAT: TRADES on the batch and on two copies after AutoAugment.
DEFENSES['dajat'] = Defense(
    outer={
        'natural_ce': Term(1.0, NATURAL_CE),
        'kl': Term(11.0, objectives.kl),
        'js': Term(2.0, objectives.branch_divergence, of_branches=True),
    },
    inner=objectives.kl,
    start='gaussian',
    steps=5,
    step_size=0.5,
    branches=2,
)

# Rade and Moosavi-Dezfooli (2022), imrahulr/hat. The helper comes from the config.
DEFENSES['hat'] = Defense(
    outer={
        'natural_ce': Term(1.0, NATURAL_CE),
        'kl': Term(2.5, objectives.kl),
        'helped_ce': Term(0.5, ADVERSARIAL_CE, on=HELPED),
    },
    inner=objectives.kl,
    passes=('nat', 'adv', HELPED),
    start='gaussian',
)

# ELLE-A: lambda is 4000 after a batch whose nonlinearity stands out, and falls by 1 % a batch.
DEFENSES['ellea'] = DEFENSES['elle']._replace(
    outer={
        'adversarial_ce': Term(1.0, ADVERSARIAL_CE),
        'nonlinearity': DEFENSES['elle']
        .outer['nonlinearity']
        ._replace(weight=4000.0, schedule=_outliers_factor, memory=Memory(_no_outliers, _with_value)),
    }
)


BUILT_IN = frozenset(DEFENSES)
SI_TERM = 'si_margin_ce'


def with_si(defense: Defense, *, scale: float = 15.0, margin: float = 0.2, weight: float = 0.2) -> Defense:
    """The defense with the scale-invariant mechanism: the rows of Table 1 marked with SI.

    FreeAT keeps its one backward pass and gets the regulariser alone. Terms added to an inner objective stay,
    but for those with `scaled_with_si`, which read the scaled cosines too; so do the losses of `of_segment`.
    Such a term has another scale then, and its weight should be chosen anew.

    Args:
        defense: A row of `DEFENSES`.
        scale: s, in the attack and in the regulariser.
        margin: m of eq. 25, on the true class.
        weight: beta, the weight of the regulariser on the adversarial images.

    Raises:
        InputError: The defense has no attack to replace, or a value is out of range.
    """
    if defense.inner is None and not defense.persistent:
        raise InputError('SI needs a defense with an attack: standard training has none; use si=False')
    if defense.hypersphere:
        raise InputError('SI and hypersphere embedding are alternatives: use si=False or he=False')
    _check_cosine(scale, margin)
    term = Term(weight, objectives.si_margin_ce(scale, margin), cosine)
    score = scaled_cosine(scale)
    outer, inner_terms = (
        {name: row._replace(score=score) if row.scaled_with_si else row for name, row in terms.items()}
        for terms in (defense.outer, defense.inner_terms)
    )
    defense = defense._replace(outer={**outer, SI_TERM: term}, inner_terms=inner_terms)
    return defense if defense.inner is None else with_inner(defense, 'si', scale=scale)


def with_he(defense: Defense, *, scale: float = 15.0, margin: float = 0.2) -> Defense:
    """The defense with hypersphere embedding: its network's logits are cosines, and losses read s cos.

    Cross-entropies in the outer objective get a margin on the true class; the inner objective, KL and logit
    pairing have none, and logit pairing compares the cosines as they are.

    Args:
        defense: A row of `DEFENSES`: at, trades or alp.
        scale: s.
        margin: m.

    Source: Pang et al. (2020), repository ShawnXYang/AT_HE, losses.py.

    Raises:
        InputError: A term for which no such form was published, or a value is out of range.
    """
    _check_cosine(scale, margin)
    scaled = scaled_logits(scale)
    forms = {
        NATURAL_CE: (objectives.margin_ce(scale, margin), logits),
        ADVERSARIAL_CE: (objectives.si_margin_ce(scale, margin), logits),
        objectives.kl: (objectives.kl, scaled),
        objectives.logit_pairing: (objectives.logit_pairing, logits),
    }
    terms = defense.outer.values()
    known = all(term.objective in forms and term.score is logits and term.on == 'adv' for term in terms)
    if not known or defense.persistent or defense.inner not in forms:
        raise InputError('hypersphere embedding is defined for at, trades and alp: use he=False')
    outer = {
        name: term._replace(objective=forms[term.objective][0], score=forms[term.objective][1])
        for name, term in defense.outer.items()
    }
    return defense._replace(outer=outer, inner_score=scaled, hypersphere=True)


def with_smoothing(defense: Defense, smoothing: float, over: str) -> Defense:
    """The defense with label smoothing in the cross-entropies of its loss.

    The attack, KL and the SI regulariser keep the labels as they are.

    Args:
        defense: A row of `DEFENSES`, perhaps with SI.
        smoothing: s, in [0, 1).
        over: 'all' classes or the 'others'; see `si_jax.losses.smoothed_cross_entropy`.

    Source: wzekai99/DM-Improves-AT, trades.py ('all', .1); jiequancui/DKL and val-iisc/DAJAT ('others').

    Raises:
        InputError: A value is out of range, or no such form of the loss is known.
    """
    if not 0 <= smoothing < 1:
        raise InputError(f'defense.smoothing={smoothing:g} is not in [0, 1); 0.1 is usual')
    if over not in SMOOTHINGS:
        raise unknown('defense.smoothing_over', over, SMOOTHINGS)
    if not smoothing:
        return defense
    if defense.persistent and defense.inner is None:
        raise InputError(
            f'defense.smoothing={smoothing:g}: the perturbation of FreeAT climbs the loss, so that '
            'its labels would be smoothed too; use smoothing=0'
        )
    entropies = NATURAL_CE, ADVERSARIAL_CE
    outer_terms = defense.outer.items()
    plain = {name for name, term in outer_terms if term.objective in entropies and term.on == 'adv'}
    if not plain or defense.hypersphere:
        raise InputError(
            f'defense.smoothing={smoothing:g} needs a cross-entropy of the logits in the loss, which has '
            f'{", ".join(defense.outer)}: of these no smoothed form was published; use smoothing=0'
        )
    outer = {
        name: term._replace(objective=objectives.smoothed(term.objective, smoothing, over))
        if name in plain
        else term
        for name, term in defense.outer.items()
    }
    return defense._replace(outer=outer)


def check_soft_labels(defense: Defense) -> None:
    """Raises InputError for a defense that has no form for soft labels, as CutMix makes them.

    Published are those of cross-entropy and TRADES (Rebuffi et al., 2021). Those of SI are ours: attack
    CE(s c', q), regulariser CE(s (c' - m q), q); so are those of ALP, GAT and GradAlign.
    """
    terms = [*defense.outer.items(), *defense.inner_terms.items()]
    hard = [
        name
        for name, term in terms
        if not term.objective.soft or term.of_segment or term.of_branches or term.on != 'adv'
    ]
    if defense.inner is not None and not defense.inner.soft:
        hard.append('the attack')
    reason = ''
    if defense.persistent:
        reason = 'the perturbation of FreeAT belongs to single images'
    elif defense.hypersphere or hard:
        what = ', '.join(hard) or 'hypersphere embedding'
        reason = f'no form for mixed labels was published of {what}'
    if reason:
        raise InputError(f'data.cutmix: {reason}; use --config.data.cutmix=0, or at or trades')


def _check_cosine(scale: float, margin: float) -> None:
    if not scale > 0:
        raise InputError(f'scale={scale:g} must be positive; the paper uses 15')
    if not 0 <= margin < 2:
        raise InputError(
            f'margin={margin:g} is not in [0, 2), the range of cosine differences; the paper uses 0.2'
        )


INNERS: dict[str, Objective] = {
    'ce': ADVERSARIAL_CE,
    'kl': objectives.kl,
    'si': ADVERSARIAL_CE,  # of scaled cosines
    'calibrated_ce': ADVERSARIAL_CE,  # of logits times 2 / median gap
}


def with_inner(defense: Defense, name: str, *, scale: float = 15.0) -> Defense:
    """The defense with another objective for the attack: what the SI attack and the SI regulariser each do.

    The paper's TRADES-SI changes both at once. TRADES with 'ce' attacks with labels but on logits, with
    'calibrated_ce' on logits of a fixed scale, and TRADES-SI with 'kl' has the regulariser alone.

    Args:
        defense: A defense.
        name: A row of `INNERS`.
        scale: s of scaled cosines.

    Raises:
        InputError: The name is unknown, or there is no attack to replace.
    """
    if name not in INNERS:
        raise unknown('inner objective', name, INNERS)
    if defense.inner is None and not defense.persistent:
        raise InputError(f"inner={name!r} needs a defense with an attack: use inner=''")
    if defense.persistent and 'nat' in INNERS[name].uses:
        raise InputError(f"inner={name!r} needs natural scores, which FreeAT does not have: use 'ce' or 'si'")
    if defense.persistent and name == 'calibrated_ce':
        raise InputError("inner='calibrated_ce' needs natural scores, which FreeAT does not have: use 'ce'")
    if name == 'si':
        score = scaled_cosine(scale)
    else:
        score = scaled_logits(scale) if defense.hypersphere else logits
    return defense._replace(inner=INNERS[name], inner_score=score, calibrated=name == 'calibrated_ce')


def from_config(config: Mapping[str, Any]) -> Defense:
    """The defense of a config's section `defense`, with the fields of `training.recipes.defense`.

    Raises:
        InputError: A name is unknown, a weight is negative, a term needs a pass that is not made, or the
            attack cannot leave its start.
    """
    name = config['name']
    if name not in DEFENSES:
        raise unknown('defense', name, DEFENSES)
    defense = DEFENSES[name]
    if config['si']:
        defense = with_si(defense, scale=config['scale'], margin=config['margin'])
    if config.get('he'):
        if config['si']:
            raise InputError('SI and hypersphere embedding are alternatives: use si=False or he=False')
        defense = with_he(defense, scale=config['scale'], margin=config['margin'])
    if config.get('inner'):
        defense = with_inner(defense, config['inner'], scale=config['scale'])
    defense = with_smoothing(defense, config.get('smoothing', 0.0), config.get('smoothing_over', 'all'))
    weights = dict(config['weights'])
    for term, weight in weights.items():
        if term not in defense.outer:
            raise unknown(f'term of {name}{"-SI" if config["si"] else ""}', term, defense.outer)
        if not 0 <= weight < float('inf'):
            raise InputError(f'defense.weights.{term}={weight:g} must be finite and not negative')
    outer, inner_terms = (
        {term: row._replace(weight=weights.get(term, row.weight)) for term, row in terms.items()}
        for terms in (defense.outer, defense.inner_terms)
    )
    defense = defense._replace(
        outer=outer,
        inner_terms=inner_terms,
        passes=tuple(part.strip() for part in config['passes'].split(',')),
        start=config['start'],
        start_radius=config.get('start_radius', defense.start_radius),
        bounds=config.get('bounds', defense.bounds),
        attack_bn=config['attack_bn'],
        replays=config.get('replays', defense.replays),
        branches=config.get('branches', defense.branches),
        others=_threats(config['others']) if 'others' in config else defense.others,
    )
    _check(name, defense)
    return defense


def _threats(text: str) -> tuple[Threat, ...]:
    return tuple(parse_threats(text).values()) if text.strip() else ()


def register(name: str, defense: Defense) -> str:
    """Adds a custom defense to `DEFENSES`, so that configs can name it.

    Call it in the file of the config, as examples/own_defense.py does: whatever reads the file knows the row.

    Args:
        name: Letters, digits and underscores. One that was registered before is replaced.
        defense: The row.

    Returns:
        The name.

    Raises:
        InputError: The name is a row of this library or cannot be one, or the row asks for what is not
            there: a pass, start or mode that is not known, a term that needs a pass that is not made, an
            attack that cannot leave its start.
    """
    if name in BUILT_IN:
        raise InputError(f'defense {name!r} is a row of this library: give yours another name')
    if not re.fullmatch(r'[A-Za-z]\w*', name):
        raise InputError(f'{name!r} cannot be the name of a defense: use letters, digits and _')
    if not isinstance(defense, Defense):
        raise InputError(f'defense {name!r} must be a si_jax.defenses.Defense, not {type(defense).__name__}')
    _check(name, defense)
    DEFENSES[name] = defense
    return name


def _check(name: str, defense: Defense) -> None:
    """Raises InputError for a defense that cannot be trained with."""
    for part in defense.passes:
        if part not in PASSES:
            raise unknown('pass', part, PASSES)
    for term, row in defense.outer.items():
        needed = frozenset({'random'}) if row.of_gradients else row.reads
        if missing := needed - set(defense.passes):
            enough = sorted(needed | set(defense.passes), key=PASSES.index)
            raise InputError(
                f'defense.passes={",".join(defense.passes)!r} lacks {", ".join(sorted(missing))!r}, which '
                f'the term {term!r} needs: use {",".join(enough)!r}'
            )
        if row.of_segment and (defense.inner is None or 'nat' in defense.inner.uses or defense.calibrated):
            raise InputError(
                f'the term {term!r} compares losses of the labels, image by image, and the inner objective '
                "here is none: use inner='ce' or inner='si'"
            )
    if defense.branches < 0 or (defense.branches > 0) != any(
        term.of_branches for term in defense.outer.values()
    ):
        raise InputError(
            f'defense.branches={defense.branches} must be positive with dajat, whose loss compares branches, '
            'and 0 with any other defense; TRADES without branches is acat_cifar10'
        )
    if defense.branches and (set(defense.passes) - {'nat', 'adv'} or defense.aligned or defense.persistent):
        raise InputError(f'{name} has branches, which are known of the passes nat and adv: use no other pass')
    if defense.start not in STARTS:
        raise unknown('start', defense.start, STARTS)
    if defense.start == 'original' and defense.inner is not None and 'nat' in defense.inner.uses:
        raise InputError(
            f"defense.start='original' leaves {name} without an attack: the gradient of its inner objective "
            f"is zero at the original image; use 'uniform' or 'gaussian'"
        )
    if not defense.start_radius > 0:
        raise InputError(f'defense.start_radius={defense.start_radius:g} must be positive: 1 is the ball')
    if defense.start_radius != 1 and defense.start in ('original', 'gaussian'):
        raise InputError(
            f'defense.start_radius={defense.start_radius:g} changes nothing with start={defense.start!r}: '
            "use start_radius=1 or start='uniform'"
        )
    if defense.bounds not in BOUNDS:
        raise unknown('bounds', defense.bounds, BOUNDS)
    if defense.attack_bn not in BN_MODES:
        raise unknown('attack_bn', defense.attack_bn, BN_MODES)
    if defense.others and not defense.best_point:
        raise InputError(
            f'defense.others={",".join(map(str, defense.others))!r}: {name} trains in one threat model, '
            "that of the section threat; use others='', or the defense eat"
        )
    if defense.best_point and defense.bounds != 'ball':
        raise InputError(f"defense.bounds={defense.bounds!r}: APGD keeps to its ball; use bounds='ball'")
    if defense.replays < 1 or (defense.replays > 1 and not defense.persistent):
        raise InputError(f'defense.replays={defense.replays} must be 1, or more with freeat')
