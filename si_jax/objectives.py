"""Objectives: losses with their arguments named, so that attacks and both halves of training share one type.

An objective is called as `objective(adversarial, natural, labels, step)` with the scores [B, K] of the
adversarial and of the natural images and returns [B]. Whatever it does not use may be None.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from si_jax import losses

Array = jax.Array


class Objective(NamedTuple):
    """A loss and the scores it reads.

    Attributes:
        loss: (adversarial score, natural score, labels, step) -> [B].
        uses: Which of 'adv' and 'nat' it reads; what it does not read need not be computed.
    """

    loss: Callable[[Array, Array, Array, Array], Array]
    uses: frozenset[str]

    def __call__(
        self, adversarial: Array | None, natural: Array | None, labels: Array, step: Array | int = 0
    ) -> Array:
        return self.loss(adversarial, natural, labels, step)  # type: ignore[arg-type]


def on_adversarial(loss: Callable[..., Array], **settings: float | Array) -> Objective:
    """The loss (score, labels) of the adversarial images."""
    return Objective(lambda adv, nat, y, i: loss(adv, y, **settings), frozenset({'adv'}))


def on_natural(loss: Callable[..., Array], **settings: float) -> Objective:
    """The loss (score, labels) of the natural images."""
    return Objective(lambda adv, nat, y, i: loss(nat, y, **settings), frozenset({'nat'}))


natural_ce = on_natural(losses.cross_entropy)
adversarial_ce = on_adversarial(losses.cross_entropy)
margin = on_adversarial(losses.margin)
dlr = on_adversarial(losses.dlr)
boosted_ce = on_adversarial(losses.boosted_cross_entropy)
kl = Objective(lambda adv, nat, y, i: losses.kl_divergence(adv, nat), frozenset({'adv', 'nat'}))
weighted_kl = Objective(
    lambda adv, nat, y, i: losses.weighted_kl_divergence(adv, nat, y), frozenset({'adv', 'nat'})
)
logit_pairing = Objective(lambda adv, nat, y, i: losses.logit_pairing(adv, nat), frozenset({'adv', 'nat'}))


def targeted_dlr(targets: Array) -> Objective:
    """The targeted DLR loss, to be maximised toward the classes `targets` [B]."""
    return on_adversarial(losses.targeted_dlr, targets=targets)


def targeted_margin(targets: Array) -> Objective:
    """The margin of the classes `targets` [B] over the labels, for fewer classes than targeted DLR needs."""
    return on_adversarial(losses.targeted_margin, targets=targets)


def si_margin_ce(scale: float, margin: float) -> Objective:
    """The SI regulariser on the adversarial images; its score is the cosine."""
    return on_adversarial(losses.cosine_margin_cross_entropy, scale=scale, margin=margin)
