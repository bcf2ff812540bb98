"""Adversarial images that come from other models, as they are and as starting points.

A model whose own gradient leads nowhere can be broken by what breaks its relatives, so each source is
attacked first, in the same ball and with the same random starts. Its images count as they are, and the attack
goes on from them on the classifier itself.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from si_jax.attacks.registry import ATTACKS
from si_jax.errors import InputError
from si_jax.evaluation import custom, pgd
from si_jax.evaluation.classifier import Classifier, classifier_of
from si_jax.evaluation.network import Program, cannot_take
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.state import Saved
from si_jax.runtime.progress import Progress
from si_jax.threat import Threat

ATTACK = 'pgd-gap'  # does not depend on the scale of anyone's logits
PREFIX = 'transfer-'
STAGES = ('transferred', 'started there')


def parse(sources: Any) -> dict[str, Classifier]:
    """The sources by the names of their rows, `transfer-NAME`.

    Args:
        sources: A mapping of names to classifiers, or a classifier or a sequence of them, which are numbered.

    Raises:
        InputError: A name cannot be one, or a source is no classifier.
    """
    if sources is None:
        return {}
    if not isinstance(sources, Mapping):
        listed = sources if isinstance(sources, list | tuple) else [sources]
        sources = {str(number): source for number, source in enumerate(listed)}
    for name in sources:
        custom.check_name(name)
    return {f'{PREFIX}{name}': classifier_of(source) for name, source in sources.items()}


def prepare(name: str, source: Classifier, target: Program, seed: int) -> Program:
    """A source with the images of the classifier, checked like it.

    Raises:
        InputError: It cannot take these images, has other classes, or is unfit; the message names it.
    """
    try:
        program = Program(
            source, target.images, target.labels, target.indices, seed, target.chunk, target.devices
        )
    except (TypeError, ValueError) as error:
        raise cannot_take(name, target.images.shape, error) from error
    program.shares = target.shares
    classes, wanted = program.outputs.logits.shape[1], target.outputs.logits.shape[1]
    if classes != wanted:
        raise InputError(
            f'{name}: the source has {classes} classes, the classifier {wanted}: give one that was trained '
            'for the same classes'
        )
    try:
        program.check_and_classify(explain=False)
    except InputError as error:
        raise InputError(f'{name}: {error}') from error
    return program


def run(
    program: Program,
    source: Program,
    name: str,
    threat: Threat,
    steps: int,
    step_size: float,
    eot_samples: int,
    *,
    clean: np.ndarray,
    keep: bool,
    bar: Progress,
    saved: Saved,
) -> tuple[AttackRecord, np.ndarray]:
    """Attacks the source, tries its images on the classifier, and attacks the classifier from there.

    Args:
        program: The classifier with its data.
        source: The source with the same data.
        name: Of the row.
        threat: The ball.
        steps: Of both attacks.
        step_size: Of both attacks.
        eot_samples: Gradients averaged in each step.
        clean: [N] bool, whether the clean image is classified correctly.
        keep: Whether to return the adversarial images; an empty array is returned instead.
        bar: Is told of each image.
        saved: What is finished already.

    Returns:
        The record with two stages, and the images.
    """
    attack = ATTACKS[ATTACK]
    settings: dict[str, Any] = {
        'steps': steps,
        'step_size': step_size,
        'eot_samples': eot_samples,
        'bar': bar,
        'saved': saved,
    }
    _, images = pgd.run(
        source, f'the source of {name}', attack, threat, 1, unit=f'source.{name}', keep=True, **settings
    )

    everywhere, keys = np.arange(len(images)), program.keys(0)

    def confirm() -> dict[str, Any]:
        correct, largest = program.confirm(everywhere, images, keys, threat, name)
        return {'correct': correct, 'largest': np.float64(largest)}

    tried = saved.remember(f'transferred.{name}', confirm)
    started, final = pgd.run(
        program, name, attack, threat, 1, unit=f'started.{name}', keep=keep, starts=images, **settings
    )

    broken_by, left, tables = np.full(len(clean), -1, np.int8), clean.copy(), []
    for number, (stage, correct) in enumerate(zip(STAGES, (tried['correct'], started.runs[0]), strict=True)):
        new = left & ~correct
        tables.append(
            {
                'attack': stage,
                'accuracy': float(np.mean(left & correct)),
                'attacked': int(left.sum()),
                'broken': int(new.sum()),
            }
        )
        broken_by[new], left = number, left & correct
    if keep:
        final[broken_by == 0] = images[broken_by == 0]
    return AttackRecord(
        runs=left[None],
        steps=steps,
        step_size=step_size,
        eot_samples=eot_samples,
        max_perturbation=max(float(tried['largest']), started.max_perturbation),
        stages=tuple(tables),
        protocol={'name': 'transfer', 'attack': ATTACK},
        broken_by=broken_by,
    ), final
