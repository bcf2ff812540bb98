"""Objectives: losses with their arguments named, so that attacks and both halves of training share one type.

An objective is called as `objective(adversarial, natural, labels, step)` with the scores [B, K] of the
adversarial and of the natural images and returns [B]. Whatever it does not use may be None.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from si_jax import losses

Array = jax.Array


class WholeBatch(Protocol):
    """The rows of a batch of which this device has a shard, as `si_jax.training.update.Rows` are."""

    @property
    def mask(self) -> Array:
        """[B] bool, the real rows of the shard."""

    def gathered(self, x: Array) -> Array:
        """[B, ...] of every device, one after another."""

    def own(self, x: Array) -> Array:
        """The shard of this device of what `gathered` returns."""


class Objective(NamedTuple):
    """A loss and the scores it reads.

    Attributes:
        loss: (adversarial score, natural score, labels, step) -> [B]; with the `WholeBatch` as a fifth
            argument where `of_batch` says so.
        uses: Which of 'adv' and 'nat' it reads; what it does not read need not be computed.
        soft: The same for soft labels [B, K], distributions over the classes; None where there is no form.
        of_batch: Whether an image's loss depends on the other images of the batch: `on` must be called first.
        of_memory: Whether the loss takes, as its last argument, what its term remembers: likewise.
    """

    loss: Callable[..., Array]
    uses: frozenset[str]
    soft: Callable[[Array, Array, Array, Array], Array] | None = None
    of_batch: bool = False
    of_memory: bool = False

    def on(self, rows: WholeBatch | None, remembered: Any = None) -> 'Objective':
        """The objective on this batch, which one that is neither `of_batch` nor `of_memory` need not know."""
        if not self.of_batch and not self.of_memory:
            return self
        assert rows is not None or not self.of_batch
        more = (rows,) * self.of_batch + (remembered,) * self.of_memory
        return Objective(lambda adv, nat, y, i: self.loss(adv, nat, y, i, *more), self.uses)

    def __call__(
        self, adversarial: Array | None, natural: Array | None, labels: Array, step: Array | int = 0
    ) -> Array:
        return self.loss(adversarial, natural, labels, step)


Loss = Callable[..., Array]


def on_adversarial(loss: Loss, soft: Loss | None = None, **settings: Any) -> Objective:
    """The loss (score, labels) of the adversarial images; `soft` is the same for soft labels."""
    with_soft = None if soft is None else lambda adv, nat, q, i: soft(adv, q, **settings)
    return Objective(lambda adv, nat, y, i: loss(adv, y, **settings), frozenset({'adv'}), with_soft)


def on_natural(loss: Loss, soft: Loss | None = None, **settings: Any) -> Objective:
    """The loss (score, labels) of the natural images; `soft` is the same for soft labels."""
    with_soft = None if soft is None else lambda adv, nat, q, i: soft(nat, q, **settings)
    return Objective(lambda adv, nat, y, i: loss(nat, y, **settings), frozenset({'nat'}), with_soft)


def on_pair(loss: Callable[[Array, Array], Array]) -> Objective:
    """The pair loss of the adversarial and the natural images, for any labels."""

    def of_any(adv: Array, nat: Array, labels: Array, i: Array) -> Array:
        return loss(adv, nat)

    return Objective(of_any, frozenset({'adv', 'nat'}), of_any)


natural_ce = on_natural(losses.cross_entropy, losses.soft_cross_entropy)
adversarial_ce = on_adversarial(losses.cross_entropy, losses.soft_cross_entropy)
margin = on_adversarial(losses.margin)
highest_other = on_adversarial(losses.highest_other)
minus_label = on_adversarial(losses.minus_label)
dlr = on_adversarial(losses.dlr)
probability_margin = on_adversarial(losses.probability_margin)
boosted_ce = on_adversarial(losses.boosted_cross_entropy)
kl = on_pair(losses.kl_divergence)
# For an attack: with mixed labels q it climbs the divergence from q, not from the natural prediction, and its
# slope is that of cross-entropy. Source: wzekai99/DM-Improves-AT, gowal21uncovering/utils/trades.py.
kl_attack = kl._replace(soft=lambda adv, nat, q, i: losses.soft_cross_entropy(adv, q))
weighted_kl = Objective(
    lambda adv, nat, y, i: losses.weighted_kl_divergence(adv, nat, y), frozenset({'adv', 'nat'})
)
logit_pairing = on_pair(losses.logit_pairing)
probability_distance = on_pair(losses.probability_distance)
misalignment = on_pair(losses.misalignment)
squared_difference = on_pair(losses.squared_difference)
pair_cross_entropy = on_pair(losses.pair_cross_entropy)
weighted_differences = Objective(
    lambda adv, nat, y, i, weights: losses.weighted_differences(adv, nat, weights[y]),
    frozenset({'adv', 'nat'}),
    of_memory=True,
)
branch_divergence = on_natural(lambda scores, labels: losses.branch_divergence(scores))
nuclear_norm = Objective(
    lambda adv, nat, y, i, rows: losses.nuclear_norm(
        adv, nat, mask=rows.mask, gathered=rows.gathered, own=rows.own
    ),
    frozenset({'adv', 'nat'}),
    of_batch=True,
)


def in_turn(first: Objective, then: Objective, change: int) -> Objective:
    """`first` in the steps before `change`, then `then`."""

    def loss(adv: Array, nat: Array, y: Array, i: Array) -> Array:
        return jnp.where(i < change, first(adv, nat, y, i), then(adv, nat, y, i))

    return Objective(loss, first.uses | then.uses)


def smoothed(objective: Objective, smoothing: float, over: str) -> Objective:
    """`natural_ce` or `adversarial_ce` with label smoothing (`losses.smoothed_cross_entropy`)."""
    make = on_natural if 'nat' in objective.uses else on_adversarial
    forms = losses.smoothed_cross_entropy, losses.soft_smoothed_cross_entropy
    return make(*forms, smoothing=smoothing, over=over)


def with_soft_labels(objective: Objective, soft: Array) -> Objective:
    """The objective with soft labels [B, K] in place of the labels that it is called with."""
    form = objective.soft
    assert form is not None, 'check_soft_labels refuses a defense without such a form'
    return objective._replace(loss=lambda adv, nat, y, i: form(adv, nat, soft, i))


def toward(objective: Objective, targets: Array) -> Objective:
    """To be maximised so that the classes `targets` [B] win: `objective` lowered with them as the labels."""
    return Objective(lambda adv, nat, y, i: -objective(adv, nat, targets, i), objective.uses)


def targeted_dlr(targets: Array) -> Objective:
    """The targeted DLR loss, to be maximised toward the classes `targets` [B]."""
    return on_adversarial(losses.targeted_dlr, targets=targets)


def targeted_margin(targets: Array) -> Objective:
    """The margin of the classes `targets` [B] over the labels, for fewer classes than targeted DLR needs."""
    return on_adversarial(losses.targeted_margin, targets=targets)


def si_margin_ce(scale: float, margin: float) -> Objective:
    """The SI regulariser on the adversarial images; its score is the cosine."""
    forms = losses.cosine_margin_cross_entropy, losses.soft_cosine_margin_cross_entropy
    return on_adversarial(*forms, scale=scale, margin=margin)


def margin_ce(scale: float, margin: float) -> Objective:
    """Hypersphere embedding's cross-entropy with margin on the natural images; its score is the cosine."""
    return on_natural(losses.cosine_margin_cross_entropy, scale=scale, margin=margin)


def gama(first_weight: float = 50.0, last_step: int = 25) -> Objective:
    """max_{k != y} p_k - p_y + w sum_k (P_k - p_k)^2 with p the probabilities and P those of the reference.

    Args:
        first_weight: w in step 0.
        last_step: The step from which w is 0; it falls linearly until there.

    Source: Sriramanan et al. (2020), GAMA-PGD; repository val-iisc/GAMA-GAT.
    """

    def loss(adv: Array, nat: Array, y: Array, i: Array) -> Array:
        weight = jnp.maximum(first_weight * (1 - i / last_step), 0.0).astype(adv.dtype)
        return losses.probability_margin(adv, y) + weight * losses.probability_distance(adv, nat)

    return Objective(loss, frozenset({'adv', 'nat'}))
