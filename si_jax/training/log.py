"""What a run prints for a reader: what it is, what the columns of an epoch's line are, what comes next."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from si_jax.runtime import terminal
from si_jax.training import average, initial, ramps
from si_jax.training.setup import Setup, plan


def header(ready: Setup, params: Any, init_from: Mapping[str, Any] | None = None) -> str:
    """What is trained on what, in lines; then what the columns of an epoch's line are.

    `init_from` is the record of the weights that the run started from.
    """
    config, train, held_out = ready.config, ready.train, len(ready.validation.labels)
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    shape = ' x '.join(map(str, train.images.shape[1:]))
    terms = ' + '.join(f'{term.weight:g} {name}' for name, term in ready.defense.outer.items())
    growing = ramps.words(config.ramp)
    attack, steps = config.attack, config.epochs * ready.steps_per_epoch
    inner = f', attack: {attack.steps} x {attack.step_size:.4g}' if ready.defense.inner else ''
    mixed = config.data.cutmix
    smoothed, copies = config.defense.smoothing, ready.defense.branches
    over = {'all': 'all classes', 'others': 'the other classes'}[config.defense.smoothing_over]
    return '\n'.join(
        (
            f'network: {config.model.arch}, {size:,} parameters',
            *([f'start: {initial.words(init_from)}'] if init_from else []),
            f'images: {train.name}, {len(train.labels):,} to train on and {held_out:,} held out, of {shape} '
            f'(height, width, channels), {train.num_classes} classes',
            f'threat: {config.threat.norm}, eps {config.threat.eps:.4g} of the pixel range',
            f'defense: {config.defense.name}{" with SI" if config.defense.si else ""}, loss: {terms}{inner}',
            f'schedule: {_schedule(ready)}; {steps:,} steps in all',
            *([f'CutMix: {mixed} mixtures of each image, {_ours(ready)}'] if mixed else []),
            *([f'label smoothing: {smoothed:g} over {over}'] if smoothed else []),
            *([f'ramps: {growing}'] if growing else []),
            *([f'AWP: {_awp(config)}'] if ready.awp else []),
            *([f'branches: the images, and copies of each after AutoAugment: {copies}'] if copies else []),
            *([f'helper: {ready.helper.source}, digest {ready.helper.digest}'] if ready.helper else []),
            f'evaluated weights: {average.words(config.average)}',
            plan(ready),
            _columns(config, held_out),
        )
    )


def _schedule(ready: Setup) -> str:
    config = ready.config
    schedule, epochs = config.schedule, config.epochs
    if schedule.kind == 'triangular':
        return f'the rate rises to {schedule.peak:g} at epoch {schedule.peak_at * epochs:g} and falls to 0'
    if schedule.kind == 'one_cycle':
        count = epochs if schedule.every == 'epoch' else epochs * ready.steps_per_epoch
        top = max(schedule.peak_at * count - 1, 0) * epochs / count
        rise = f'rises from {schedule.peak / 25:g} to' if top else 'starts at'
        return (
            f'one cycle, moved every {schedule.every}: the rate {rise} {schedule.peak:g} at epoch {top:.4g} '
            f'and falls to {schedule.peak / 25e4:.2g}{_momentum(config)}'
        )
    if schedule.kind in ('cosine', 'cosine_dkl'):
        rise = f' after {schedule.warmup * epochs:.4g} epochs of rise' if schedule.warmup else ''
        return f'the rate falls from {schedule.peak:g} to 0 by a cosine, moved every {schedule.every}{rise}'
    drops = ', '.join(f'{boundary * epochs:.4g}' for boundary in schedule.boundaries)
    return f'rate {schedule.peak:g}' + (f', times {schedule.factor:g} after epochs {drops}' if drops else '')


def _ours(ready: Setup) -> str:
    published = {'natural_ce', 'adversarial_ce', 'kl'} >= set(ready.defense.outer)
    return 'labels mixed' + ('' if published else '; soft labels in this loss are ours, not published')


def _awp(config: Any) -> str:
    gamma, start, epochs = config.awp.gamma, config.awp.start_epoch, config.epochs
    words = f'weights perturbed by {gamma:g} of their length, from epoch {start + 1} on'
    return words if start < epochs else f'{words}, which this run of {epochs} epochs does not reach: none'


def _momentum(config: Any) -> str:
    highest = config.optimiser.momentum
    cycles = config.optimiser.cycle_momentum
    return f', the momentum goes from {highest:g} to {highest - 0.1:g} and back' if cycles else ''


def _columns(config: Any, held_out: int) -> str:
    accuracies = (
        f'clean, PGD and calibrated are accuracies on the {held_out:,} held-out images: without an attack, '
        f'under PGD-{config.evaluation.steps}, and under that PGD on logits of a fixed scale, by which the '
        'best checkpoint is chosen; '
    )
    return (
        "each epoch's line: loss is the mean over its training images; "
        f'{accuracies if held_out else ""}img/s counts training images a second'
    )


def epoch_line(epoch: int, epochs: int, figures: dict[str, Any]) -> str:
    """The line of an epoch, counted from 1."""
    parts = [f'epoch {epoch}/{epochs}', f'loss {figures["train/loss"]:.3f}']
    for name, title in (('natural', 'clean'), ('pgd', 'PGD'), ('calibrated_pgd', 'calibrated')):
        value = figures.get(f'validation/{name}_accuracy')
        if value is not None:
            parts.append(f'{title} {100 * value:.1f}%')
    if 'images_per_second' in figures:
        parts.append(f'{figures["images_per_second"]:.0f} img/s')
    return '  '.join(parts)


def weakest_class(figures: dict[str, Any]) -> str:
    """The class that is worst off under calibrated PGD, if the figures are by class; '' if not."""
    found = {
        name.split('/')[1].removeprefix('class_'): value
        for name, value in figures.items()
        if name.startswith('validation/class_') and name.endswith('/calibrated_pgd_accuracy')
    }
    if not found:
        return ''
    worst = min(found, key=lambda name: found[name])
    return (
        f'weakest class under calibrated PGD: {worst}, {100 * found[worst]:.1f}% '
        '(all classes are in metrics.jsonl)'
    )


def expected(seconds: float, steps: int) -> str:
    """The time that is left, once it is known."""
    return (
        f'expected time: about {tqdm.format_interval(max(seconds, 1))} for the {steps:,} steps that are left'
    )


def next_command(workdir: str | os.PathLike) -> str:
    """What is done with a run that has ended."""
    return terminal.spelled(f'next: python evaluate.py --workdir={shlex.quote(str(workdir))}')
