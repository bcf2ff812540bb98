"""Searches: attacks that look for one misclassified image in the ball and then stop.

The attacks of AutoAttack and the black-box attacks are searches. They run on the images that are still
correctly classified, in parts of some iterations. Between two parts the caller drops the finished images and
packs the others together, so that no compiled program waits for images that are done.

A `Search` is two functions, `init` and `advance`. They take a `Problem` (the images to attack) and pass on a
`SearchState` (what was found so far). `gradient_search` makes one of an objective, a start and a rule: APGD
is such a search, and `of_attack` makes one of a PGD variant. FAB, Square, SPSA and RayS write their own two.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax import losses
from si_jax.attacks import rows
from si_jax.attacks.ascent import Ascent, Gradients, Rule, UnderWay, Value, none_seen, step
from si_jax.attacks.pgd import (
    Attack,
    KeyedClassifier,
    Start,
    objective_of,
    rule_of,
    starting_points,
    value_function,
)
from si_jax.objectives import Objective, toward
from si_jax.outputs import Outputs, Score, misclassified
from si_jax.threat import Threat

Array = jax.Array


class Problem(NamedTuple):
    """What a search works on; every leaf has a leading batch axis.

    Attributes:
        images: [B, H, W, C] in [0, 1], the original images.
        labels: [B] int32.
        keys: [B] typed PRNG keys; nothing else is random, so no image depends on its batch.
        targets: [B] int32, the class to aim at; ignored by untargeted searches that are not `aimed`.
    """

    images: Array
    labels: Array
    keys: Array
    targets: Array


class SearchState(NamedTuple):
    """A search under way; every leaf has a leading batch axis, so that rows can be regrouped.

    Attributes:
        found: [B, H, W, C], a misclassified image inside the ball where `fooled`, else the original.
        fooled: [B] bool.
        queries: [B] int32, forward passes spent so far (a gradient counts as one forward and one backward).
        inner: What the search itself remembers.
        gradients: What was wrong with its gradients; None for a search that takes none.
    """

    found: Array
    fooled: Array
    queries: Array
    inner: Any
    gradients: Gradients | None = None


def nothing_found(problem: Problem, inner: Any, gradients: Gradients | None = None) -> SearchState:
    """A search that has spent no query."""
    batch = problem.images.shape[:1]
    return SearchState(problem.images, jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32), inner, gradients)


def averaged(classifier: KeyedClassifier, samples: int) -> KeyedClassifier:
    """The classifier with the mean logits of so many draws, and no features."""

    def mean(images: Array, keys: Array) -> Outputs:
        def draw(sample: Array, total: Array) -> Array:
            return total + classifier(images, rows.fold_in(keys, sample)).logits / samples

        first = classifier(images, rows.fold_in(keys, 0)).logits / samples
        # A scan, so that it has a derivative; its draws are made again for it, not kept.
        again = jax.checkpoint(lambda total, sample: (draw(sample, total), None))
        return Outputs(jax.lax.scan(again, first, jnp.arange(1, samples))[0])

    return mean


def decided(
    classifier: KeyedClassifier, images: Array, labels: Array, keys: Array, samples: int
) -> tuple[Array, Array]:
    """The margin g_y - max_{k != y} g_k [B], as the mean over draws, and whether their vote is wrong.

    The vote is wrong where half of the draws or more are misclassified. One sample is the classifier itself.
    """

    def draw(keys: Array) -> tuple[Array, Array]:
        logits = classifier(images, keys).logits
        return -losses.margin(logits, labels), misclassified(logits, labels)

    if samples == 1:
        return draw(keys)

    def add(sample: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        margin, wrong = draw(rows.fold_in(keys, sample))
        return sums[0] + margin / samples, sums[1] + wrong

    nothing = jnp.zeros(len(images), images.dtype), jnp.zeros(len(images), jnp.int32)
    margin, wrong = jax.lax.fori_loop(0, samples, add, nothing)
    return margin, 2 * wrong >= samples


def edge(threat: Threat, images: Array, directions: Array) -> Array:
    """The points [B, H, W, C] as far as the ball and [0, 1] allow in these directions."""
    length = threat.distance(images + directions, images)
    factor = threat.eps / jnp.maximum(length, 1e-12)
    return threat.project(images + factor.reshape(-1, 1, 1, 1) * directions, images)


class Search(NamedTuple):
    """An attack that runs in parts.

    Attributes:
        init: (classifier, problem, threat) -> SearchState.
        advance: (classifier, problem, threat, state, first, count) -> SearchState: iterations first,
            first + 1, ..., first + count - 1; `first` may be traced. So may `count`, but for Square, which
            draws its windows for all of them beforehand. Rows whose `fooled` is set keep their `found`.
        iterations: How many iterations there are in all.
        idle: How many of them only evaluate a point, and make no step.
        targeted: Whether it is run once for each target class in turn.
        objective: What it raises, or a function from target classes [B] to it; None if it raises no loss.
        score: What the objective is computed from; None likewise.
        whole_parts: Whether `count` must always be the same number; iterations past the last then do nothing.
        worst: (problem, threat, state.inner) -> [B, H, W, C], the point in the ball that it takes for the
            worst after its last iteration, misclassified or not: what is judged of a random classifier.
    """

    init: Callable[[KeyedClassifier, Problem, Threat], SearchState]
    advance: Callable[[KeyedClassifier, Problem, Threat, SearchState, Array, int], SearchState]
    iterations: int
    targeted: bool = False
    objective: 'Objective | TargetedObjective | None' = None
    score: Score | None = None
    idle: int = 0
    whole_parts: bool = False
    worst: Callable[[Problem, Threat, Any], Array] = lambda problem, threat, inner: inner[0]

    def objective_for(self, targets: Array) -> Objective | None:
        """What it raises toward these target classes [B]."""
        if self.objective is None or isinstance(self.objective, Objective):
            return self.objective
        return self.objective(targets)


# target classes [B] -> the objective that aims at them
TargetedObjective = Callable[[Array], Objective]


def gradient_search(
    objective: Objective | TargetedObjective,
    score: Score,
    *,
    start: Start,
    rule: Callable[[Threat, Array], Rule],
    steps: int,
    eot_samples: int,
    idle: int = 1,
    counted_from: int = 0,
    aimed: bool = False,
    worst: Callable[[Array, Any], Array] = lambda last, rule_state: last,
) -> Search:
    """A search that raises an objective along its gradient: an ascent of the engine, made in parts.

    Each iteration evaluates a point and moves on from it, so there are `steps` + 1: the last one evaluates
    the point after the last step. An image keeps its first misclassified point and is done. A query is one
    forward and one backward pass. A function from target classes [B] to an objective makes the search a
    targeted one.

    Args:
        objective: What it raises.
        score: What the objective is computed from.
        start: Where it starts.
        rule: From the threat model and the images [B, H, W, C] how a point moves.
        steps: Number of steps.
        eot_samples: Gradients averaged in each step.
        idle: How many iterations there are beyond the steps.
        counted_from: The first iteration whose point is in the ball; points before it do not count as found.
        aimed: Whether only an image of the class `Problem.targets` is a success, and the way leads there.
        worst: (last point, state of the rule) -> `Search.worst`.
    """

    def counted(value: Value) -> Value:
        """The value function; for a point outside the ball no success and, where the loss is NaN, -inf."""
        if not counted_from:
            return value

        def inside(i: Array, x: Array) -> tuple[Array, Array, Array]:
            loss, gradient, fooled = value(i, x)
            counts = i >= counted_from
            return jnp.where(counts | ~jnp.isnan(loss), loss, -jnp.inf), gradient, fooled & counts

        return inside

    def init(classifier: KeyedClassifier, problem: Problem, threat: Threat) -> SearchState:
        del classifier
        first = starting_points(start, threat, problem.images, problem.keys)
        return nothing_found(
            problem, (first, rule(threat, problem.images).init(first)), none_seen(len(first))
        )

    def advance(
        classifier: KeyedClassifier,
        problem: Problem,
        threat: Threat,
        state: SearchState,
        first: Array,
        count: int,
    ) -> SearchState:
        _, keys = rows.split(problem.keys)
        if isinstance(objective, Objective):
            goal = toward(objective, problem.targets) if aimed else objective
        else:
            goal = objective(problem.targets)
        value = counted(
            value_function(
                goal,
                score,
                classifier,
                problem.labels,
                None,
                keys,
                eot_samples=eot_samples,
                targets=problem.targets if aimed else None,
            )
        )
        how = rule(threat, problem.images)

        def project(x: Array) -> Array:
            return threat.project(x, problem.images)

        def body(offset: Array, carry: tuple[UnderWay, Array]) -> tuple[UnderWay, Array]:
            under_way, queries = carry
            before = under_way.seen
            under_way = step(offset, under_way, value=value, rule=how, project=project, first=first)
            # The first success is kept, so that it does not matter in which parts the search is made.
            found = rows.where(before.fooled, before.fooled_image, under_way.seen.fooled_image)
            spent = jnp.where(before.fooled, 0, eot_samples)
            return under_way._replace(seen=under_way.seen._replace(fooled_image=found)), queries + spent

        last, rule_state = state.inner
        # The engine's best point is not read (APGD's rule keeps it with its gradient), so it costs nothing.
        lowest = jnp.full(last.shape[:1], -jnp.inf, last.dtype)
        assert state.gradients is not None
        seen = Ascent(last, last, lowest, state.found, state.fooled, state.gradients)
        (seen, rule_state), queries = jax.lax.fori_loop(
            0, count, body, (UnderWay(seen, rule_state), state.queries)
        )
        inner = seen.last, rule_state
        return SearchState(seen.fooled_image, seen.fooled, queries, inner, seen.gradients)

    targeted = not isinstance(objective, Objective)
    return Search(
        init,
        advance,
        steps + idle,
        targeted,
        objective,
        score,
        idle,
        worst=lambda problem, threat, inner: worst(*inner),
    )


def of_attack(attack: Attack, steps: int, eot_samples: int, aimed: bool = False) -> Search:
    """A PGD variant as a search: the same steps, but an image is done with its first misclassified point.

    The attack counts any iterate and fixes its step size; its objective reads the adversarial images alone.
    """
    assert attack.any_iterate and attack.step_size is not None and 'nat' not in attack.objective.uses
    return gradient_search(
        objective_of(attack, steps),
        attack.score,
        start=attack.start,
        # The attack fixes its step size, so the caller's does not count.
        rule=lambda threat, images: rule_of(attack, threat, steps, math.nan),
        steps=steps,
        eot_samples=eot_samples,
        aimed=aimed,
    )
