"""Learning rates and the optimiser of the paper's recipe."""

from collections.abc import Sequence

import optax

from si_jax.errors import InputError


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


def sgd(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient before the momentum, on all parameters.

    Args:
        schedule: step -> learning rate.
        momentum: 0.9 in the paper.
        nesterov: Off in the paper.
        weight_decay: Coupled L2; 5e-4 (ResNets) and 7e-4 (WRN) in the paper.
        clip_norm: Largest global norm of the gradient; 0 for none, as in the paper.
    """
    if not 0 <= momentum < 1:
        raise InputError(f'optimiser.momentum={momentum:g} is not in [0, 1); the paper uses 0.9')
    if not weight_decay >= 0 or not clip_norm >= 0:  # also refuses NaN
        raise InputError(f'weight_decay={weight_decay:g} and clip_norm={clip_norm:g} must not be negative')
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
    )
