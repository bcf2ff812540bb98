"""Searches: attacks that run in parts, on the images that are still correctly classified.

The attacks of AutoAttack and the black-box attacks look for one misclassified image in the ball and may stop
an image as soon as they have it. They run in parts of some iterations; between the parts the caller drops
finished images and packs the others together, so that no compiled program waits for images that are done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from si_jax.attacks.gradient import KeyedClassifier
from si_jax.threat import Threat

Array = jax.Array


class Problem(NamedTuple):
    """What a search works on; every leaf has a leading batch axis.

    Attributes:
        images: [B, H, W, C] in [0, 1], the original images.
        labels: [B] int32.
        keys: [B] typed PRNG keys; nothing else is random, so no image depends on its batch.
        targets: [B] int32, the class to aim at; ignored by untargeted searches.
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
    """

    found: Array
    fooled: Array
    queries: Array
    inner: Any


class Search(NamedTuple):
    """An attack that runs in parts.

    Attributes:
        init: (classifier, problem, threat) -> SearchState.
        advance: (classifier, problem, threat, state, first, count) -> SearchState: iterations first,
            first + 1, ..., first + count - 1; `first` may be traced. So may `count`, but for Square, which
            draws its windows for all of them beforehand. Rows whose `fooled` is set keep their `found`.
        iterations: How many iterations there are in all.
        targeted: Whether it is run once for each target class in turn.
    """

    init: Callable[[KeyedClassifier, Problem, Threat], SearchState]
    advance: Callable[[KeyedClassifier, Problem, Threat, SearchState, Array, int], SearchState]
    iterations: int
    targeted: bool = False
