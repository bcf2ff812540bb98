"""Attacks toward classes that the caller chose, and how often they get there.

An attack without targets succeeds with any wrong class. With a target for each image only that class counts
as a success: the final image is classified as the target. The accuracy is measured on the same images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from si_jax.attacks.settings import file_name
from si_jax.evaluation.cascade import Cascade
from si_jax.evaluation.gates import Part
from si_jax.evaluation.network import Network
from si_jax.evaluation.pgd import Outcome, Pgd
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import GradientCounts
from si_jax.storage.trees import digest

NAMED = 5  # classes in a warning


@dataclasses.dataclass(frozen=True)
class Targeted:
    """An attack that runs once for each target of an image, always from the original."""

    attack: Pgd | Cascade

    @property
    def name(self) -> str:
        return self.attack.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the gates ask about it."""
        return self.attack.parts

    @property
    def beginning(self) -> 'Targeted':
        """Its first run alone, for a profile."""
        return Targeted(self.attack.beginning)

    def cost(self, request: Request) -> int:
        """The forward passes that it makes of an image, at most and roughly."""
        times = request.classes - 1 if _is(request.targets, 'all') else 1
        return times * self.attack.cost(dataclasses.replace(request, aims=request.labels))

    def run(self, network: Network, request: Request) -> Outcome:
        """Runs the attack for each target; an image is correct if it is after each of them.

        The image that is kept is that of the first target that was reached, else of the first target.
        """
        outcomes = []
        for number, aims in enumerate(aims_of(network)):
            unit = f'{self.attack.unit or file_name(self.name)}-target{number}'
            attack = dataclasses.replace(self.attack, unit=unit)
            outcomes.append(attack.run(network, dataclasses.replace(request, aims=aims)))
        first, *_ = records = [one.record for one in outcomes]
        reached = np.stack([one.success for one in records if one.success is not None])
        images = outcomes[0].images
        if request.keep:
            best = np.argmax(reached, axis=0)  # the first of equal ones
            images = np.stack([one.images for one in outcomes])[best, np.arange(len(best))]

        def over(field: str, join: Callable[..., np.ndarray]) -> np.ndarray | None:
            """A field of all records as one, if they have it."""
            each = [getattr(one, field) for one in records]
            return None if each[0] is None else join(each, axis=0)

        stamp = request.targets if isinstance(request.targets, str) else digest(np.asarray(request.targets))
        record = dataclasses.replace(
            first,
            runs=functools.reduce(np.logical_and, [one.runs for one in records]),
            max_perturbation=max(one.max_perturbation for one in records),
            stages=first.stages if len(records) == 1 else (),
            protocol={**(first.protocol or {}), 'targets': stamp},
            broken_by=over('broken_by', np.max),
            queries=over('queries', np.sum),
            gradients=tuple(map(_worst, zip(*(one.gradients for one in records), strict=True))),
            success=np.any(reached, axis=0),
            reached=reached.sum(axis=0) if len(records) > 1 else None,
        )
        return Outcome(record, images)


def aims_of(network: Network) -> np.ndarray:
    """The targets [T, N] of the images, one after another: all wrong classes, or one for each image.

    'random' is drawn from the seed and the number of the image alone, evenly from the wrong classes, and
    'least-likely' is the wrong class of the lowest clean logit (of equal ones the first), where one is left
    not among those that have one logit for all images.
    """
    request, labels = network.request, network.labels
    # The wrong classes of each image in order, [K - 1, N].
    wrong = np.arange(request.classes - 1)[:, None]
    wrong = wrong + (wrong >= labels)
    if _is(request.targets, 'all'):
        return wrong.astype(np.int32)
    if _is(request.targets, 'random'):
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(wrong)))
        drawn = np.asarray(draw(network.typed(network.keys(0, 'targets'))))
        return wrong[drawn, np.arange(len(labels))][None].astype(np.int32)
    if _is(request.targets, 'least-likely'):
        own = np.arange(request.classes) == labels[:, None]
        out = own | network.masked
        out = np.where(out.all(axis=1, keepdims=True), own, out)
        return np.argmin(np.where(out, np.inf, network.clean_logits), axis=1)[None].astype(np.int32)
    return np.asarray(request.targets, np.int32)[None]


def warnings(network: Network) -> list[str]:
    """Of targets that no attack can reach, as their logits do not depend on the image."""
    if network.request.targets is None:
        return []
    aims = aims_of(network)
    if not (lost := network.masked[aims]).any():
        return []
    classes = np.unique(aims[lost])
    named = ', '.join(map(str, classes[:NAMED])) + ', ...' * (len(classes) > NAMED)
    return [
        f'{np.count_nonzero(lost)} of {lost.size} targets are classes whose logit is the same for every '
        f'image, as that of a masked class ({named}): gradients lead nowhere there, and targets that are not '
        "reached lower the rate of success. Give targets among the other classes, or 'least-likely'"
    ]


def _is(targets: Any, word: str) -> bool:
    return isinstance(targets, str) and targets == word


def _worst(counts: tuple[GradientCounts | None, ...]) -> GradientCounts | None:
    """Of the runs of a part the largest counts."""
    known = np.array([one for one in counts if one is not None])
    return GradientCounts(*known.max(axis=0).tolist()) if len(known) else None
