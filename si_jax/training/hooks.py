"""What happens between the steps of a run, one small class for each thing.

A hook is called after every step and after every epoch, and closed when the run ends, however it ends. Hooks
are called in the order of `hooks_of`, which matters: the metrics of a step are added up before it is saved,
and validation comes before the line that reports it.
"""

import collections
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from si_jax.cost import mfu
from si_jax.runtime import devices, processes, profiling
from si_jax.runtime.preemption import PreemptionBarrier
from si_jax.runtime.progress import Pace, Progress, progress, silent
from si_jax.runtime.signals import InterruptGuard
from si_jax.runtime.terminal import advice
from si_jax.training import log, symptoms
from si_jax.training.average import evaluated
from si_jax.training.metrics import MetricsWriter, read_metrics
from si_jax.training.overfitting import OverfittingGuard, collapse
from si_jax.training.recipes import plain
from si_jax.training.recompute import Recompute
from si_jax.training.run import Run, weights
from si_jax.training.setup import ingredients, may_repeat, rows_of_step
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


class Record(Hook):
    """Writes config and history once the first step is taken; looks before each line whose the workdir is."""

    def __init__(self) -> None:
        self.done = False

    def after_step(self, run: Run) -> None:
        if not self.done:
            jax.block_until_ready(run.metrics)
            run.record()
            self.done = True

    def after_epoch(self, run: Run) -> None:
        run.place.check()


class Ahead(Hook):
    """At most two steps wait for the devices: a signal is heard when they are taken."""

    STEPS = 2  # enough for the devices never to wait

    def __init__(self) -> None:
        self.under_way: collections.deque[Any] = collections.deque()

    def after_step(self, run: Run) -> None:
        self.under_way.append(run.metrics)
        if len(self.under_way) > self.STEPS:
            jax.block_until_ready(self.under_way.popleft())


class Metrics(Hook):
    """Fetches the metrics of the steps now and then, adds them up, and ends the run if one was not finite."""

    ENOUGH = 1.0  # seconds of steps from which the time of a run is told
    SLOW = 10  # seconds after which a single process looks at its steps, however few, to tell the time left

    def __init__(self, run: Run):
        self.names, self.pace, self.told = metric_names(run.ready.defense), Pace(), False
        self.measured = False  # whether an epoch has ended
        self.pending: list[jax.Array] = []  # on the devices: to fetch one would wait for its step
        self.fetched_at = time.monotonic()
        self.total = run.ready.config.epochs * run.ready.steps_per_epoch
        self.bar: Progress = silent()
        if processes.is_first():
            self.bar = progress(self.total, 'training', 'step', initial=run.step)

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
            if number == 0:
                run.sums['start_loss'] = metrics['loss']
            if not 0 <= bad_step <= number:
                # A step counts as the share of a whole batch that it saw, so that images weigh the same.
                share = rows_of_step(run.ready, number) / run.ready.config.batch_size
                for name, value in metrics.items():
                    run.sums[name] = run.sums.get(name, 0.0) + share * value
        if bad_step >= 0:
            raise _diverged(run, bad_step)
        self.fetched_at = time.monotonic()
        self.bar.update(len(fetched))
        self.bar.set_postfix(loss=round(fetched[-1]['loss'], 4))
        self._expect(run, len(fetched))

    def _expect(self, run: Run, steps: int) -> None:
        """Says once how long the run will take, as soon as steps were made that did not compile."""
        self.pace.update(steps)
        left = self.total - run.step
        if self.pace.seconds > self.ENOUGH and left and not self.told and processes.is_first():
            tqdm.write(log.expected(left / self.pace.rate, left), file=sys.stdout)
            self.told = True

    def after_epoch(self, run: Run) -> None:
        start = run.sums.pop('start_loss', None)
        steps = range(run.step - run.ready.steps_per_epoch, run.step)
        batches = sum(rows_of_step(run.ready, step) for step in steps) / run.ready.config.batch_size
        run.figures = {f'train/{name}': value / batches for name, value in run.sums.items()}
        if start is not None:  # of the first step of the run
            run.figures['train/start_loss'] = start
        run.figures['learning_rate'] = float(run.ready.schedule(run.step - 1))
        run.sums = {}
        if not self.measured:  # the first held-out figures are compiled next
            self.measured = True
            self.bar.pause()
            self.pace.pause()

    def close(self) -> None:
        self.bar.close()


def _diverged(run: Run, bad_step: int) -> DivergedError:
    """Saves the state before the step that was not finite; returns what to raise."""
    run.step = bad_step
    terms = {name: float(value) for name, value in jax.device_get(run.state.bad_terms).items()}
    run.state = run.state._replace(bad_step=devices.replicate(jnp.int32(-1)))
    run.save(run.epoch)
    run.record_divergence(bad_step, terms)
    config = run.ready.config
    remedies = [f'a lower --config.schedule.peak than {config.schedule.peak:g}']
    clip = config.optimiser.clip_norm
    remedies.append(f'--config.optimiser.clip_norm={min(1.0, clip / 2) if clip else 1.0:g}')
    if config.model.dtype != 'float32':
        remedies.append('--config.model.dtype=float32')
    finite = np.isfinite([terms['loss'], terms['gradient_norm']]).all()
    what = 'the update of' if finite else ''
    return DivergedError(
        f'{what} step {bad_step} (epoch {run.epoch + 1}) is not finite: '.lstrip()
        + ', '.join(f'{name}={value:g}' for name, value in terms.items())
        + '. The state before it is saved. Look at the data, or give the same command with '
        f'--workdir={run.place.path} and {" or ".join(remedies)}: it goes on from the checkpoint before that '
        'state, or from the beginning where there is none, and history.json holds the change.'
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


class Statistics(Hook):
    """The running statistics of the averaged weights, taken anew from the batches of the epoch."""

    def __init__(self, run: Run):
        ready = run.ready
        self.recompute = Recompute(
            ingredients(ready),
            ready.train,
            ready.defense.replays,
            ready.config.data.cutmix,
            streamed=ready.streamed,
            repeats=may_repeat(ready),
        )

    def after_epoch(self, run: Run) -> None:
        steps = range(run.step - run.ready.steps_per_epoch, run.step)
        run.state = run.state._replace(average=self.recompute(run.state.average, run.feed, steps))


class Overfitting(Hook):
    """The guard against catastrophic overfitting: after a collapse the last epoch's weights are back.

    The held-out figures of the weights that collapsed are reported too, as `collapsed/*`.
    """

    def __init__(self, guard: OverfittingGuard, held_out: HeldOut):
        self.guard, self.held_out = guard, held_out

    def after_epoch(self, run: Run) -> None:
        before, params, stats = run.watched, run.state.params, run.state.batch_stats
        trained = run.figures.get('train/adv_accuracy')
        run.watched = self.guard(params, stats, before, epoch=run.epoch + 1, trained=trained)
        run.figures |= {'pgd5_accuracy': run.watched.accuracy, 'pgd5_images': run.watched.images}
        if run.watched.stopped_at:
            figures = self.held_out(params, stats)
            run.figures |= {f'collapsed/{name}': value for name, value in figures.items()}
            processes.say(collapse(before, run.watched))
            if run.epoch or run.init_from:  # else what was kept are random weights
                run.state = run.state._replace(**devices.replicate(run.kept))
        else:
            run.kept = jax.device_get(weights(run.state))


class Validation(Hook):
    """Accuracies on held-out images, every few epochs and after the last one."""

    def __init__(self, held_out: HeldOut):
        self.held_out = held_out

    def after_epoch(self, run: Run) -> None:
        run.accuracy = None
        if run.last_epoch or (run.epoch + 1) % run.ready.config.evaluation.every_epochs == 0:
            figures = self.held_out(**evaluated(run.state._asdict()))
            run.figures |= {f'validation/{name}': value for name, value in figures.items()}
            run.accuracy = figures['calibrated_pgd_accuracy']
            if (patience := run.ready.config.patience) and not run.last_epoch:
                run.watched = run.watched.measured(run.accuracy, run.epoch + 1, patience)
            if run.last_epoch:
                run.figures |= {f'validation/{name}': value for name, value in self.held_out.by_class.items()}


class Log(Hook):
    """The line of an epoch, in metrics.jsonl and on the terminal."""

    def __init__(self, run: Run):
        ready = run.ready
        logging = ready.config.logging
        self.writer = MetricsWriter(
            run.place.path, tensorboard=logging.tensorboard, sinks=logging.sinks, config=plain(ready.config)
        )
        self.writer.cut(run.step or -1)
        self.writer.open()
        self.lines = list(read_metrics(self.writer.path)) if self.writer.path.exists() else []
        self.meter, self.speed = mfu.of_training(ready), ''
        self.about = symptoms.About(
            epochs=ready.config.epochs,
            held_out=len(ready.validation.labels),
            classes=len(set(ready.validation.labels.tolist())),
            peak=ready.config.schedule.peak,
            fixed_loss=not ready.defense.scheduled and ready.ramps is None,
            patience=ready.config.patience,
        )
        self._print(log.header(ready, run.state.params, run.init_from))

    def after_epoch(self, run: Run) -> None:
        if run.watched.stopped_at:
            run.figures['ended'] = run.watched.reason
        line = {'step': run.step, 'epoch': run.epoch + 1, **run.figures}
        found = symptoms.new_symptoms([*self.lines, line], self.about)
        if found:
            run.figures['symptoms'] = line['symptoms'] = ', '.join(found)
        self.lines.append(line)
        self.writer.write(run.step, run.epoch + 1, run.figures)
        self._print(log.epoch_line(run.epoch + 1, run.ready.config.epochs, run.figures))
        for name, text in found.items():
            self._print(f'warning: {name}: {advice(text)}')
        if weakest := log.weakest_class(run.figures):
            self._print(weakest)
        rate = run.figures.get('images_per_second')
        if rate is not None and (speed := self.meter.describe(rate)):
            if run.last_epoch or not self.speed:
                self._print(f'speed: {speed}')
            self.speed = speed

    def _print(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)  # beside a progress bar on the same terminal

    def close(self) -> None:
        self.writer.close()


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


def hooks_of(run: Run, signals: InterruptGuard, profile: profiling.Profile | None) -> list[Hook]:
    """The hooks of a run that has just begun or been resumed, in the order in which they are called."""
    ready, config = run.ready, run.ready.config
    preemption = Preemption(signals)
    hooks: list[Hook] = [Profile(profile)] if profile else []
    hooks += [Record(), Ahead(), preemption, Metrics(run), Speed()]
    if ready.average and ready.average.batch_stats == 'recompute' and run.state.batch_stats:
        hooks.append(Statistics(run))
    common = {'threat': ready.threat, 'seed': config.seed}
    if len(ready.validation.labels):
        settings = {name: config.evaluation[name] for name in ('steps', 'step_size', 'batch_size')}
        held_out = HeldOut(ready.model, ready.validation, **common, **settings)
        if drop := config.overfitting.drop:
            guard = OverfittingGuard(ready.model, ready.validation, drop=drop, **common)
            hooks.append(Overfitting(guard, held_out))
        hooks.append(Validation(held_out))
    if processes.is_first():
        hooks.append(Log(run))
    return [*hooks, Checkpoint(preemption)]
