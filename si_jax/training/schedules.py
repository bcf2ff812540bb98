"""Learning rates and the optimiser of the paper's recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from si_jax.errors import InputError, unknown

KINDS = ('steps', 'triangular')


def step_decay(
    peak: float, factor: float, boundaries: Sequence[float], *, epochs: int, steps_per_epoch: int
) -> optax.Schedule:
    """A learning rate that is multiplied by `factor` at each boundary.

    Args:
        peak: The rate before the first boundary.
        factor: 0.1 in the paper.
        boundaries: As fractions of `epochs`, so that a short run has the same shape: 74/120 is the start of
            the 75th of 120 epochs. Rounded to whole steps.
        epochs: Epochs in all.
        steps_per_epoch: Steps in one of them.

    Raises:
        InputError: A value is out of range.
    """
    if not peak > 0 or not 0 < factor <= 1:
        raise InputError(f'schedule.peak={peak:g} must be positive and schedule.factor={factor:g} in (0, 1]')
    if not isinstance(boundaries, Sequence) or any(not isinstance(b, int | float) for b in boundaries):
        raise InputError(f'schedule.boundaries={boundaries!r} must be numbers: for example (0.5, 0.75)')
    if list(boundaries) != sorted(boundaries) or any(not 0 < b < 1 for b in boundaries):
        raise InputError(
            f'schedule.boundaries={tuple(boundaries)} must increase within (0, 1): they are fractions of the '
            f'{epochs} epochs, for example 74/120'
        )
    scales: dict[int, float] = {}
    for boundary in boundaries:
        step = round(boundary * epochs * steps_per_epoch)
        scales[step] = scales.get(step, 1.0) * factor
    return optax.piecewise_constant_schedule(peak, scales)


def triangular(peak: float, peak_at: float, *, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """A learning rate that rises in a straight line from 0 at step 0 and falls to 0 at the end, step by step.

    Args:
        peak: The highest rate.
        peak_at: Where it is reached, as a fraction of the run: 1/2 in locuslab/fast_adversarial (torch's
            CyclicLR), 2/5 in tml-epfl/understanding-fast-adv-training.
        epochs, steps_per_epoch: As for `step_decay`.

    Raises:
        InputError: A value is out of range.
    """
    if not peak > 0 or not 0 < peak_at < 1:
        raise InputError(
            f'schedule.peak={peak:g} must be positive and schedule.peak_at={peak_at:g} in (0, 1)'
        )
    share = _triangle(peak_at, epochs * steps_per_epoch)
    return lambda step: peak * share(step)


def _triangle(peak_at: float, steps: int) -> optax.Schedule:
    """From 0 to 1 at `peak_at` and back to 0 at step number `steps`."""
    return lambda step: jnp.minimum(step / (peak_at * steps), (steps - step) / ((1 - peak_at) * steps))


def schedule_and_optimiser(
    schedule: Mapping[str, Any], optimiser: Mapping[str, Any], *, epochs: int, steps_per_epoch: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate and the optimiser of a config's sections `schedule` and `optimiser`.

    Args:
        schedule: kind, 'steps' (`step_decay`) or 'triangular', and the values of both.
        optimiser: The values of `sgd`, and cycle_momentum: whether the momentum moves against a triangular
            rate, from its value down to 0.1 less and back, as torch's CyclicLR does by default.
        epochs, steps_per_epoch: As for `step_decay`.

    Raises:
        InputError: A value is out of range.
    """
    length = {'epochs': epochs, 'steps_per_epoch': steps_per_epoch}
    kind = schedule['kind']
    settings = {name: value for name, value in optimiser.items() if name != 'cycle_momentum'}
    if kind not in KINDS:
        raise unknown('schedule.kind', kind, KINDS)
    if kind == 'steps':
        rate = step_decay(schedule['peak'], schedule['factor'], schedule['boundaries'], **length)
    else:
        rate = triangular(schedule['peak'], schedule['peak_at'], **length)
    if not optimiser['cycle_momentum']:
        return rate, sgd(rate, **settings)
    highest = optimiser['momentum']
    if kind != 'triangular' or highest < 0.1:
        raise InputError(
            f"optimiser.cycle_momentum needs schedule.kind='triangular' (it is {kind!r}) and a momentum of "
            f'at least 0.1 (it is {highest:g}): use cycle_momentum=False'
        )
    share = _triangle(schedule['peak_at'], epochs * steps_per_epoch)
    return rate, sgd(rate, **settings, cycle=lambda step: highest - 0.1 * share(step))


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float,
    cycle: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient before the momentum, on all parameters.

    Args:
        schedule: step -> learning rate.
        momentum: 0.9 in the paper.
        nesterov: Off in the paper.
        weight_decay: Coupled L2; 5e-4 (ResNets) and 7e-4 (WRN) in the paper.
        clip_norm: Largest global norm of the gradient; 0 for none, as in the paper.
        cycle: step -> momentum, in place of the constant one.
    """
    if not 0 <= momentum < 1:
        raise InputError(f'optimiser.momentum={momentum:g} is not in [0, 1); the paper uses 0.9')
    if not weight_decay >= 0 or not clip_norm >= 0:  # also refuses NaN
        raise InputError(f'weight_decay={weight_decay:g} and clip_norm={clip_norm:g} must not be negative')
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov)
        if cycle is None
        else optax.chain(
            optax.inject_hyperparams(optax.trace, static_args='nesterov')(decay=cycle, nesterov=nesterov),
            optax.scale_by_learning_rate(schedule),
        ),
    )
