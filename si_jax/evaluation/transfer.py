"""Adversarial images that come from other models, as they are and as starting points.

A model whose own gradient leads nowhere can be broken by what breaks its relatives, so each source is
attacked first, in the same ball and with the same random starts. Its images count as they are, and the attack
goes on from them on the classifier itself.
"""

import dataclasses
from typing import Any

import numpy as np

from si_jax.attacks.facts import facts
from si_jax.attacks.family import ATTACKS
from si_jax.errors import InputError
from si_jax.evaluation.classifier import Classifier
from si_jax.evaluation.gates import Part
from si_jax.evaluation.network import Network, vote
from si_jax.evaluation.pgd import Outcome, Pgd
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.state import remember
from si_jax.runtime.progress import GRADIENT

ATTACK = 'pgd-gap'  # does not depend on the scale of anyone's logits
STAGES = ('transferred', 'started there')


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Adversarial images of another classifier, the source, which has the same images."""

    name: str
    source: Network

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the gates ask about it: images made elsewhere, and then an attack from there."""
        return Part(self.name, None, None, elsewhere=True), Part(
            self.name, facts(ATTACKS[ATTACK]), self.source.request.eot_samples
        )

    def cost(self, request: Request) -> int:
        """The forward passes that it makes of an image."""
        return 2 * GRADIENT * request.eot_samples * request.steps

    def run(self, network: Network, request: Request) -> Outcome:
        """Attacks the source, tries its images on the classifier, and attacks the classifier from there."""
        name, clean, row, samples = self.name, network.clean, ATTACKS[ATTACK], request.eot_samples
        once = dataclasses.replace(request, restarts=1)
        first = Pgd(f'the source of {name}', row, f'source.{name}', samples)
        made = first.run(self.source, dataclasses.replace(once, keep=True))
        images = made.images

        def confirm() -> dict[str, Any]:
            everywhere, keys = np.arange(len(images)), network.keys(0)
            correct, largest = network.judge(everywhere, images, keys, request.threat, name)
            return {'correct': correct, 'largest': np.float64(largest)}

        tried = remember(f'transferred.{name}', confirm)
        second = Pgd(name, row, f'started.{name}', samples, starts=images).run(network, once)
        started, final = second.record, second.images

        broken_by, left, tables = np.full(len(clean), -1, np.int8), network.clean_share, []
        found = tried['correct'], started.runs[0] if started.shares is None else started.shares[0]
        for number, (stage, share) in enumerate(zip(STAGES, found, strict=True)):
            share = np.minimum(left, share)
            new = vote(left) & ~vote(share)
            table: dict[str, Any] = {'attack': stage, 'accuracy': float(np.mean(share))}
            tables.append(table | {'attacked': int(vote(left).sum()), 'broken': int(new.sum())})
            broken_by[new], left = number, share
        if request.keep:
            lowered = (found[0] < network.clean_share) & (found[0] <= found[1])
            final[lowered] = images[lowered]
        record = AttackRecord(
            runs=vote(left)[None],
            shares=None if started.shares is None else left[None],
            steps=request.steps,
            step_size=request.step_size,
            eot_samples=samples,
            max_perturbation=max(float(tried['largest']), started.max_perturbation),
            stages=tuple(tables),
            protocol={'name': 'transfer', 'attack': ATTACK},
            broken_by=broken_by,
            gradients=(*made.record.gradients, *started.gradients),
        )
        return Outcome(record, final)


def prepare(name: str, source: Classifier, network: Network) -> Network:
    """A source with the images of the classifier, checked like it; errors name the source."""
    # The precision of the search is that of the classifier alone.
    prepared = traced(name, source, dataclasses.replace(network.request, precision=None))
    try:
        return prepared.check_and_classify(explain=False)
    except InputError as error:
        raise InputError(f'{name}: {error}') from error


def traced(name: str, source: Classifier, request: Request) -> Network:
    """A source for the request of a classifier.

    Raises:
        InputError: It cannot take these images, or has other classes; the message names it.
    """
    try:
        prepared = Network.of(source, request)
    except InputError as error:
        raise InputError(f'{name}: {error}') from error
    if not prepared.differentiable:
        raise InputError(
            f'{name}: images are made on a source with its gradient, and it has none, as it calls a function '
            'outside of JAX: leave it out'
        )
    if (classes := prepared.request.classes) != request.classes:
        raise InputError(
            f'{name}: the source has {classes} classes, the classifier {request.classes}: '
            'give one that was trained for the same classes'
        )
    return prepared
