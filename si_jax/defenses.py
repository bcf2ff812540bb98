"""The defenses: Table 1 of the paper as one table in code.

A defense is an *inner* objective, which the attack inside training maximises, and an *outer* objective, a sum
of weighted terms that training minimises. SI is not a second code path: `with_si` replaces the inner
objective by cross-entropy on scaled cosines and adds one term to the outer one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from si_jax import objectives
from si_jax.attacks.gradient import STARTS, Attack
from si_jax.errors import InputError, unknown
from si_jax.objectives import Objective
from si_jax.outputs import Score, cosine, logits, scaled_cosine

PASSES = ('nat', 'adv')
BN_MODES = ('eval', 'train')


class Term(NamedTuple):
    """One term of an outer objective: weight * mean over the batch of objective(score)."""

    weight: float
    objective: Objective
    score: Score = logits


class Defense(NamedTuple):
    """A multi-step defense.

    Attributes:
        outer: The terms to minimise, by name.
        inner: The objective that the training attack maximises; None for no attack.
        inner_score: What the inner objective is computed from.
        passes: The train-mode forward passes in order, each 'nat' or 'adv'; every one updates the running
            statistics of batch normalisation, a repeated one does nothing else.
        start: Where the attack starts, a name in `si_jax.attacks.gradient.STARTS`.
        attack_bn: Batch normalisation inside the attack: 'eval' for running statistics, 'train' for those of
            the batch. Neither updates the running statistics.
    """

    outer: Mapping[str, Term]
    inner: Objective | None
    inner_score: Score = logits
    passes: tuple[str, ...] = ('nat', 'adv')
    start: str = 'uniform'
    attack_bn: str = 'eval'

    @property
    def attack(self) -> Attack | None:
        """The attack inside training; steps and step size come from the caller."""
        if self.inner is None:
            return None
        return Attack(self.inner, self.inner_score, start=STARTS[self.start])


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
    # Kannan et al. (2018), ShawnXYang/AT_HE.
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
}

SI_TERM = 'si_margin_ce'


def with_si(defense: Defense, *, scale: float = 15.0, margin: float = 0.2, weight: float = 0.2) -> Defense:
    """The defense with the scale-invariant mechanism: the rows of Table 1 marked with SI.

    Args:
        defense: A row of `DEFENSES`.
        scale: s, in the attack and in the regulariser.
        margin: m of eq. 25, on the true class.
        weight: beta, the weight of the regulariser on the adversarial images.

    Raises:
        InputError: The defense has no attack to replace, or a value is out of range.
    """
    if defense.inner is None:
        raise InputError('SI needs a defense with an attack: standard training has none; use si=False')
    if not scale > 0:
        raise InputError(f'scale={scale:g} must be positive; the paper uses 15')
    if not 0 <= margin < 2:
        raise InputError(
            f'margin={margin:g} is not in [0, 2), the range of cosine differences; the paper uses 0.2'
        )
    term = Term(weight, objectives.si_margin_ce(scale, margin), cosine)
    return defense._replace(
        inner=ADVERSARIAL_CE,
        inner_score=scaled_cosine(scale),
        outer={**defense.outer, SI_TERM: term},
    )


def from_config(config: Mapping[str, Any]) -> Defense:
    """The defense of a config's `defense` section.

    Args:
        config: name, si, weights (term name -> weight), scale, margin, start, attack_bn and passes (a comma
            string).

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
    weights = dict(config['weights'])
    for term, weight in weights.items():
        if term not in defense.outer:
            raise unknown(f'term of {name}{"-SI" if config["si"] else ""}', term, defense.outer)
        if not 0 <= weight < float('inf'):
            raise InputError(f'defense.weights.{term}={weight:g} must be finite and not negative')
    outer = {term: row._replace(weight=weights.get(term, row.weight)) for term, row in defense.outer.items()}
    passes = tuple(part.strip() for part in config['passes'].split(','))
    for part in passes:
        if part not in PASSES:
            raise unknown('pass', part, PASSES)
    for term, row in outer.items():
        missing = row.objective.uses - set(passes)
        if missing:
            raise InputError(
                f'defense.passes={config["passes"]!r} lacks {", ".join(sorted(missing))!r}, which the term '
                f'{term!r} needs: use {",".join(defense.passes)!r}'
            )
    if config['start'] not in STARTS:
        raise unknown('start', config['start'], STARTS)
    if config['start'] == 'original' and defense.inner is not None and 'nat' in defense.inner.uses:
        raise InputError(
            f"defense.start='original' leaves {name} without an attack: the gradient of its inner objective "
            f"is zero at the original image; use 'uniform' or 'gaussian'"
        )
    if config['attack_bn'] not in BN_MODES:
        raise unknown('attack_bn', config['attack_bn'], BN_MODES)
    return defense._replace(outer=outer, passes=passes, start=config['start'], attack_bn=config['attack_bn'])
