"""What happens between the steps of a run, one small class for each thing.

A hook is called after every step and after every epoch, and closed when the run ends, however it ends. Hooks
are called in the order of `hooks_of`, which matters: the metrics of a step are added up before it is saved,
and validation comes before the line that reports it.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from si_jax.cost import mfu
from si_jax.runtime import devices, processes, profiling
from si_jax.runtime.preemption import PreemptionBarrier
from si_jax.runtime.progress import Progress, progress, silent
from si_jax.runtime.signals import InterruptGuard
from si_jax.training.metrics import MetricsWriter
from si_jax.training.overfitting import OverfittingGuard
from si_jax.training.run import Run, weights
from si_jax.training.update import metric_names
from si_jax.training.validation import HeldOut


class DivergedError(ArithmeticError):
    """A loss, gradient or update was not finite; the state before that step has been saved."""


class Hook:
    """Something that happens between steps: this one does nothing."""

    def after_step(self, run: Run) -> None:
        """Called after each step was handed to the devices, which may not have finished it."""

    def after_epoch(self, run: Run) -> None:
        """Called after the last step of an epoch, and its `after_step`."""

    def close(self) -> None:
        """Called once, when the run ends."""


class Profile(Hook):
    """A profile of a few steps."""

    def __init__(self, profile: profiling.Profile):
        self.profile = profile

    def after_step(self, run: Run) -> None:
        self.profile.tick(run.metrics)

    def close(self) -> None:
        self.profile.close()
        print(self.profile.report())


class Preemption(Hook):
    """Whether to save or to stop after a step: all processes come to the same answer."""

    def __init__(self, guard: InterruptGuard):
        self.guard, self.barrier = guard, PreemptionBarrier()

    def after_step(self, run: Run) -> None:
        settings = run.ready.config.checkpoint
        late = processes.is_first() and time.monotonic() - run.last_save > 60 * settings.every_minutes
        save, stop = self.barrier.after_step(save=late, stop=self.guard.stop_requested)
        run.stopping |= stop
        due = settings.every_steps and run.step % settings.every_steps == 0
        # The end of an epoch is saved in any case, after its validation.
        run.save_due = bool(due or save or run.stopping) and not run.epoch_ended

    def at_end_of_epoch(self, run: Run) -> None:
        """Waits for what all processes ask for: a signal may have come during validation or saving."""
        run.stopping |= self.barrier.final_stop(self.guard.stop_requested)


class Metrics(Hook):
    """Fetches the metrics of the steps now and then, adds them up, and ends the run if one was not finite."""

    SLOW = 10  # seconds after which a single process looks at its steps, however few, to tell the time left

    def __init__(self, run: Run):
        self.names = metric_names(run.ready.defense)
        self.pending: list[jax.Array] = []  # on the devices: to fetch one would wait for its step
        self.fetched_at = time.monotonic()
        total = run.ready.config.epochs * run.ready.steps_per_epoch
        first = processes.is_first()
        self.bar: Progress = progress(total, 'training', 'step', initial=run.step) if first else silent()

    def after_step(self, run: Run) -> None:
        self.pending.append(run.metrics)
        slow = processes.count() == 1 and time.monotonic() - self.fetched_at > self.SLOW
        if run.epoch_ended or run.save_due or slow or run.step % run.ready.config.logging.every_steps == 0:
            self.fetch(run)

    def fetch(self, run: Run) -> None:
        """Adds up the metrics of the steps since the last time.

        Raises:
            DivergedError: One of these steps was not finite. The state before it has been saved.
        """
        fetched = [dict(zip(self.names, step.tolist(), strict=True)) for step in jax.device_get(self.pending)]
        self.pending.clear()
        bad_step = int(run.state.bad_step)
        for number, metrics in enumerate(fetched, run.step - len(fetched)):
            if not 0 <= bad_step <= number:
                for name, value in metrics.items():
                    run.sums[name] = run.sums.get(name, 0.0) + value
        if bad_step >= 0:
            raise _diverged(run, bad_step)
        self.fetched_at = time.monotonic()
        self.bar.update(len(fetched))
        self.bar.set_postfix(loss=round(fetched[-1]['loss'], 4))

    def after_epoch(self, run: Run) -> None:
        steps = run.ready.steps_per_epoch
        run.figures = {f'train/{name}': value / steps for name, value in run.sums.items()}
        run.figures['learning_rate'] = float(run.ready.schedule(run.step - 1))
        run.sums = {}

    def close(self) -> None:
        self.bar.close()


def _diverged(run: Run, bad_step: int) -> DivergedError:
    """Saves the state before the step that was not finite; returns what to raise."""
    run.step = bad_step
    terms = {name: float(value) for name, value in jax.device_get(run.state.bad_terms).items()}
    run.state = run.state._replace(bad_step=devices.replicate(jnp.int32(-1)))
    run.save(run.epoch)
    finite = np.isfinite([terms['loss'], terms['gradient_norm']]).all()
    what = 'the update of' if finite else ''
    return DivergedError(
        f'{what} step {bad_step} (epoch {run.epoch + 1}) is not finite: '.lstrip()
        + ', '.join(f'{name}={value:g}' for name, value in terms.items())
        + '. The state before it is saved. Try a lower --config.schedule.peak, '
        '--config.optimiser.clip_norm=1.0 or --config.model.dtype=float32, and look at the data.'
    )


class Speed(Hook):
    """Images per second. The first step compiles, and does not count."""

    def __init__(self) -> None:
        self.compiled, self.seconds, self.images = False, 0.0, 0

    def after_step(self, run: Run) -> None:
        if self.compiled:
            self.seconds += time.monotonic() - run.began
            self.images += run.images
        else:
            jax.block_until_ready(run.metrics)
            self.compiled = True

    def after_epoch(self, run: Run) -> None:
        if self.seconds:  # not known where all that was left of the epoch was the step that compiles
            run.figures['images_per_second'] = self.images / self.seconds
        self.seconds, self.images = 0.0, 0


class Overfitting(Hook):
    """The guard against catastrophic overfitting: after too far a fall the last epoch's weights are back."""

    def __init__(self, guard: OverfittingGuard):
        self.guard = guard

    def after_epoch(self, run: Run) -> None:
        params, stats = run.state.params, run.state.batch_stats
        run.watched = self.guard(params, stats, run.first_batch, run.watched, epoch=run.epoch + 1)
        if run.watched.stopped_at:
            run.state = run.state._replace(**devices.replicate(run.kept))
        else:
            run.kept = jax.device_get(weights(run.state))
        run.figures['pgd5_accuracy'] = run.watched.accuracy


class Validation(Hook):
    """Accuracies on held-out images, every few epochs and after the last one."""

    def __init__(self, held_out: HeldOut):
        self.held_out = held_out

    def after_epoch(self, run: Run) -> None:
        run.accuracy = None
        if run.last_epoch or (run.epoch + 1) % run.ready.config.evaluation.every_epochs == 0:
            figures = self.held_out(run.state.params, run.state.batch_stats)
            run.figures |= {f'validation/{name}': value for name, value in figures.items()}
            for words in self.held_out.doubts(at_the_end=run.last_epoch) if processes.is_first() else ():
                tqdm.write(f'held-out images: {words}', file=sys.stdout)
            run.accuracy = figures['calibrated_pgd_accuracy']


class Log(Hook):
    """The line of an epoch, in metrics.jsonl and on the terminal."""

    def __init__(self, run: Run):
        self.writer = MetricsWriter(run.place.path, tensorboard=run.ready.config.logging.tensorboard)
        self.writer.cut(run.step or -1)
        self.meter, self.speed = mfu.of_training(run.ready), ''

    def after_epoch(self, run: Run) -> None:
        self.writer.write(run.step, run.epoch + 1, run.figures)
        tqdm.write(_epoch_line(run.epoch + 1, run.ready.config.epochs, run.figures), file=sys.stdout)
        rate = run.figures.get('images_per_second')
        if rate is not None and (speed := self.meter.describe(rate)):
            if run.last_epoch or not self.speed:
                tqdm.write(f'speed: {speed}', file=sys.stdout)
            self.speed = speed

    def close(self) -> None:
        self.writer.close()


def _epoch_line(epoch: int, epochs: int, figures: dict[str, float]) -> str:
    parts = [f'epoch {epoch}/{epochs}', f'loss {figures["train/loss"]:.3f}']
    for name, title in (('natural', 'clean'), ('pgd', 'PGD'), ('calibrated_pgd', 'calibrated')):
        value = figures.get(f'validation/{name}_accuracy')
        if value is not None:
            parts.append(f'{title} {100 * value:.1f}%')
    if 'images_per_second' in figures:
        parts.append(f'{figures["images_per_second"]:.0f} img/s')
    return '  '.join(parts)


class Checkpoint(Hook):
    """Saves where `Preemption` says so, and after each epoch."""

    def __init__(self, preemption: Preemption):
        self.preemption = preemption

    def after_step(self, run: Run) -> None:
        if run.save_due:
            run.save(run.epoch)

    def after_epoch(self, run: Run) -> None:
        run.save(run.epoch + 1, run.accuracy)
        self.preemption.at_end_of_epoch(run)


def hooks_of(run: Run, guard: InterruptGuard, profile: profiling.Profile | None) -> list[Hook]:
    """The hooks of a run that has just begun or been resumed, in the order in which they are called."""
    ready, config = run.ready, run.ready.config
    preemption = Preemption(guard)
    hooks: list[Hook] = [Profile(profile)] if profile else []
    hooks += [preemption, Metrics(run), Speed()]
    common = {'threat': ready.threat, 'seed': config.seed}
    if config.overfitting.drop:
        fall = OverfittingGuard(ready.model, ready.train, drop=config.overfitting.drop, **common)
        hooks.append(Overfitting(fall))
    if len(ready.validation.labels):
        settings = {name: config.evaluation[name] for name in ('steps', 'step_size', 'batch_size')}
        hooks.append(Validation(HeldOut(ready.model, ready.validation, **common, **settings)))
    if processes.is_first():
        hooks.append(Log(run))
    return [*hooks, Checkpoint(preemption)]
