"""What a defense is: terms with weights, and everything a training step is told of it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.attacks.pgd import STARTS, Attack, widened
from si_jax.memories import Memory
from si_jax.objectives import Objective, WholeBatch
from si_jax.outputs import Outputs, Score, logits
from si_jax.threat import Threat

Array = jax.Array

PASSES = ('nat', 'adv', 'random', 'segment', 'helped')
HELPED = 'helped'  # the pass of points beyond the adversarial images, which a helper network labels
SEGMENT = 3  # images of the pass 'segment' for each image of the batch
BN_MODES = ('eval', 'train')
SMOOTHINGS = ('all', 'others')
SEEN = '{} seen'  # among the metrics of a step, for a term that remembers more than its value
# [threat models, 2] int32: how many images withstood the attack in each, and how many there were.
WITHSTOOD = 'withstood'


def _whole(outputs: Outputs) -> Any:
    """The score of an attack whose terms have scores of their own."""
    return outputs


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

    def attack_at(
        self,
        position: Position | None,
        rows: WholeBatch | None = None,
        score: Callable[[Any], Array] | None = None,
    ) -> Attack | None:
        """The attack on a batch, with another `score` of its inner objective if one is given.

        The position may be None where no inner term has a schedule, and the rows where none is of the batch.
        """
        attack, inner = self.attack, self.inner
        if attack is None or inner is None:
            return attack
        if not self.inner_terms:
            return attack if score is None else attack._replace(score=score)
        terms = [Term(1.0, inner, score or self.inner_score), *self.inner_terms.values()]

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
