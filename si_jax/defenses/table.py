"""Table 1 of the paper as one table, the single-step methods of Table 8 and later defenses among its rows.

docs/defenses.md names sources and decisions row by row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from si_jax import objectives
from si_jax.defenses.definition import HELPED, Defense, Position, Term
from si_jax.memories import Memory, class_means
from si_jax.threat import Threat

Array = jax.Array

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
        inner=objectives.kl_attack,
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
    inner=objectives.kl_attack,
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
    inner=objectives.kl_attack,
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
    inner=objectives.kl_attack,
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
