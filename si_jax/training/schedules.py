"""Learning rates, and torch's SGD: those of the paper's recipe and those that came after it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from si_jax.errors import InputError, unknown

COSINES = ('cosine', 'cosine_dkl')
KINDS = ('steps', 'triangular', 'one_cycle', *COSINES)
EVERY = ('step', 'epoch')
DECAYS = ('all', 'no_bn', 'no_bn_bias')
# torch's OneCycleLR: the rate starts at peak / 25 and ends at peak / 25 / 1e4.
DIVISOR, LAST_DIVISOR = 25.0, 1e4


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


def _check_peak(peak: float, peak_at: float) -> None:
    if not peak > 0 or not 0 < peak_at < 1:
        raise InputError(
            f'schedule.peak={peak:g} must be positive and schedule.peak_at={peak_at:g} in (0, 1)'
        )


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
    _check_peak(peak, peak_at)
    share = _triangle(peak_at, epochs * steps_per_epoch)
    return lambda step: peak * share(step)


def _triangle(peak_at: float, steps: int) -> optax.Schedule:
    """From 0 to 1 at `peak_at` and back to 0 at step number `steps`."""
    return lambda step: jnp.minimum(step / (peak_at * steps), (steps - step) / ((1 - peak_at) * steps))


def _half_cosine(share: jax.Array) -> jax.Array:
    """From 1 at 0 to 0 at 1, along half a cosine."""
    return (1 + jnp.cos(jnp.pi * share)) / 2


def _one_cycle(peak_at: float, count: int) -> tuple[float, optax.Schedule]:
    """Where in `count` moves the peak is, and the cycle: from 0 to 1 there and back to 0 at the last move."""
    top = max(peak_at * count - 1, 0.0)

    def share(n: jax.Array) -> jax.Array:
        down = _half_cosine((n - top) / max(count - 1 - top, 1.0))
        return jnp.where(n <= top, 1 - _half_cosine(n / top), down) if top else down

    return top, share


def one_cycle(
    peak: float, peak_at: float, *, every: str, epochs: int, steps_per_epoch: int
) -> optax.Schedule:
    """A rate that rises from peak / 25 and falls to peak / 25 / 1e4, each along half a cosine.

    It is torch's OneCycleLR with its defaults, moved once a step or once an epoch: `total_steps` counts the
    one or the other. Torch has its peak at the move number `peak_at` total_steps - 1, which is negative in
    short runs, so that the rate never reaches the peak, and divides by zero where it is 0. Where it is not
    positive, ours starts at the peak: with 0.025, in runs of up to 40 epochs.

    Args:
        peak: The highest rate.
        peak_at: torch's pct_start, in (0, 1): .025 in wzekai99/DM-Improves-AT (every epoch), .25 in
            imrahulr/hat (every step).
        every: 'step' or 'epoch'.
        epochs, steps_per_epoch: As for `step_decay`.

    Raises:
        InputError: A value is out of range.
    """
    _check_peak(peak, peak_at)
    number, count = _moves(every, epochs, steps_per_epoch)
    top, share = _one_cycle(peak_at, count)
    first, last = peak / DIVISOR, peak / DIVISOR / LAST_DIVISOR

    def rate(step: jax.Array) -> jax.Array:
        n = number(step)
        low = jnp.where(n <= top, first, last)
        return low + (peak - low) * share(n)

    return rate


def cosine(
    peak: float, warmup: float, *, every: str, epochs: int, steps_per_epoch: int, inner: bool = False
) -> optax.Schedule:
    """A rate that falls from the peak to 0 along half a cosine, after a straight rise from 0 if asked.

    With n of N moves made it is peak (1 + cos(pi n / N)) / 2, every epoch: DAJAT and ACAT (val-iisc/DAJAT).
    With `inner` it is peak (1 + cos(pi (n + 1) / (N + 1))) / 2, as in jiequancui/DKL: it starts a little
    below the peak and ends a little above 0. The rise is that of google-deepmind/deepmind-research's
    adversarial_robustness (JAX): 10 epochs. It moves every step there, and here too, whatever `every` says.

    Args:
        peak: The highest rate.
        warmup: The share of the run in which it rises, in [0, 1).
        every: 'step' or 'epoch'.
        epochs, steps_per_epoch: As for `step_decay`.
        inner: Whether both ends are left out.

    Raises:
        InputError: A value is out of range.
    """
    if not peak > 0 or not 0 <= warmup < 1:
        raise InputError(
            f'schedule.peak={peak:g} must be positive and schedule.warmup={warmup:g} in [0, 1): it is the '
            'share of the run in which the rate rises'
        )
    number, count = _moves(every, epochs, steps_per_epoch)
    rise, rising = warmup * count, warmup * epochs * steps_per_epoch

    def rate(step: jax.Array) -> jax.Array:
        down = peak * _half_cosine((number(step) - rise + inner) / (count - rise + inner))
        return jnp.where(step < rising, peak * step / rising, down) if rise else down

    return rate


def _moves(every: str, epochs: int, steps_per_epoch: int) -> tuple[Callable[[jax.Array], jax.Array], int]:
    """How many moves a schedule has made before a step, and how many there are in the run."""
    if every not in EVERY:
        raise unknown('schedule.every', every, EVERY)
    if every == 'epoch':
        return lambda step: jnp.asarray(step) // steps_per_epoch, epochs
    return jnp.asarray, epochs * steps_per_epoch


def schedule_and_optimiser(
    schedule: Mapping[str, Any], optimiser: Mapping[str, Any], *, epochs: int, steps_per_epoch: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate and the optimiser of a config's sections `schedule` and `optimiser`.

    Args:
        schedule: kind, a row of `KINDS`, and the values of all of them.
        optimiser: The values of `sgd`, and cycle_momentum: whether the momentum moves against a triangular
            or one-cycle rate, from its value down to 0.1 less at the peak and back. Torch's CyclicLR and
            OneCycleLR do so by default, the former from 0.9, the latter from 0.95 whatever the optimiser was
            given: momentum=0.95 with cycle_momentum is what the code of such a recipe really trains with.
        epochs, steps_per_epoch: As for `step_decay`.

    Raises:
        InputError: A value is out of range.
    """
    length = {'epochs': epochs, 'steps_per_epoch': steps_per_epoch}
    kind, every = schedule['kind'], schedule.get('every', 'step')
    settings = {name: value for name, value in optimiser.items() if name != 'cycle_momentum'}
    if kind not in KINDS:
        raise unknown('schedule.kind', kind, KINDS)
    if kind in ('steps', 'triangular') and every != 'step':
        raise InputError(
            f"schedule.every={every!r} is for one_cycle and cosines, not for {kind!r}: use 'step'"
        )
    if schedule.get('warmup') and kind not in COSINES:
        raise InputError(
            f'schedule.warmup={schedule["warmup"]:g} is for {" and ".join(COSINES)}, not for {kind!r}: use '
            '--config.schedule.warmup=0'
        )
    if optimiser['nesterov'] and not optimiser['momentum']:
        raise InputError(
            'optimiser.nesterov=True needs a momentum, and optimiser.momentum=0: use '
            '--config.optimiser.nesterov=False'
        )
    share = None
    if kind == 'steps':
        rate = step_decay(schedule['peak'], schedule['factor'], schedule['boundaries'], **length)
    elif kind == 'triangular':
        rate = triangular(schedule['peak'], schedule['peak_at'], **length)
        share = _triangle(schedule['peak_at'], epochs * steps_per_epoch)
    elif kind == 'one_cycle':
        rate = one_cycle(schedule['peak'], schedule['peak_at'], every=every, **length)
        number, count = _moves(every, **length)
        _, cycle = _one_cycle(schedule['peak_at'], count)
        share = lambda step: cycle(number(step))  # noqa: E731
    else:
        inner = kind == 'cosine_dkl'
        rate = cosine(schedule['peak'], schedule['warmup'], every=every, inner=inner, **length)
    if not optimiser['cycle_momentum']:
        return rate, sgd(rate, **settings)
    highest = optimiser['momentum']
    if share is None or highest < 0.1:
        raise InputError(
            f"optimiser.cycle_momentum needs schedule.kind='triangular' or 'one_cycle' (it is {kind!r}) and "
            f'a momentum of at least 0.1 (it is {highest:g}): use cycle_momentum=False'
        )
    return rate, sgd(rate, **settings, cycle=lambda step: highest - 0.1 * share(step))


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float,
    decay: str = 'all',
    cycle: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient before the momentum.

    Args:
        schedule: step -> learning rate.
        momentum: 0.9 in the paper.
        nesterov: Off in the paper.
        weight_decay: Coupled L2; 5e-4 (ResNets) and 7e-4 (WRN) in the paper.
        clip_norm: Largest global norm of the gradient; 0 for none, as in the paper.
        decay: Which parameters decay. 'all' in the paper; 'no_bn' leaves out scale and bias of batch
            normalisation (wzekai99/DM-Improves-AT, deepmind's JAX code); 'no_bn_bias' every bias too (E-AT,
            fra31/robust-finetuning).
        cycle: step -> momentum, in place of the constant one.
    """
    if not 0 <= momentum < 1:
        raise InputError(f'optimiser.momentum={momentum:g} is not in [0, 1); the paper uses 0.9')
    if not weight_decay >= 0 or not clip_norm >= 0:  # also refuses NaN
        raise InputError(f'weight_decay={weight_decay:g} and clip_norm={clip_norm:g} must not be negative')
    if decay not in DECAYS:
        raise unknown('optimiser.decay', decay, DECAYS)
    decaying = None if decay == 'all' else lambda params: _decaying(params, biases=decay == 'no_bn')
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(weight_decay, decaying),
        optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov)
        if cycle is None
        else optax.chain(
            optax.inject_hyperparams(optax.trace, static_args='nesterov')(decay=cycle, nesterov=nesterov),
            optax.scale_by_learning_rate(schedule),
        ),
    )


def _decaying(layer: Mapping[str, Any], *, biases: bool) -> dict[str, Any]:
    """Whether each parameter decays: none of a layer with a scale (batch normalisation); biases if asked."""
    return {
        name: _decaying(value, biases=biases)
        if isinstance(value, Mapping)
        else 'scale' not in layer and (biases or name != 'bias')
        for name, value in layer.items()
    }
