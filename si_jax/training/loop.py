"""A training run from config to checkpoints: `run(config, workdir)`.

The order of a resume, as it matters:

1. The lock on the workdir is taken and its config compared with the given one.
2. The last undamaged checkpoint is restored; epoch and position within it follow from its step.
3. metrics.jsonl is cut to that step, so that no step is reported twice.
4. The rest of the epoch is trained on the batches that it would have had.

Several processes (`runtime.processes`) run this side by side. They agree on whatever one of them alone sees:
the lock, the checkpoint, the clock, a signal. The first one writes what is written once.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from si_jax.cost import mfu
from si_jax.errors import InputError
from si_jax.runtime import devices, processes, watchdog
from si_jax.runtime.agreement import check_identical
from si_jax.runtime.preemption import PreemptionBarrier
from si_jax.runtime.profiling import Profile
from si_jax.runtime.progress import Progress, progress, silent
from si_jax.runtime.signals import InterruptGuard
from si_jax.runtime.terminal import stopped
from si_jax.storage.files import check_fields
from si_jax.storage.trees import digest
from si_jax.training.checkpoints import Checkpoints, Restored
from si_jax.training.metrics import MetricsWriter
from si_jax.training.overfitting import OverfittingGuard, Watched
from si_jax.training.setup import (
    Setup,
    batch_of_step,
    batches_of_pass,
    compile_train_step,
    initial_carry,
    initial_state,
    setup,
)
from si_jax.training.state import TrainState
from si_jax.training.update import metric_names
from si_jax.training.validation import HeldOut
from si_jax.training.workdir import Workdir, open_together


class DivergedError(ArithmeticError):
    """A loss, gradient or update was not finite; the state before that step has been saved."""


def setup_all(config: ConfigDict) -> Setup:
    """`setup` in a run of several processes, which must come to the same.

    Raises:
        InputError: As there, in one of them or in all; or a process has another config, code or data.
    """
    ready = processes.agree_on_errors(lambda: setup(config))
    if processes.count() > 1:
        sets = {'training data': ready.train, 'validation data': ready.validation}
        digests = {name: digest(part.images, part.labels) for name, part in sets.items()}
        check_identical({'config': ready.config.to_dict(), **digests})
    return ready


def run(config: ConfigDict, workdir: str, profile: str | None = None) -> TrainState:
    """Trains until the last epoch, or until asked to stop; the same call goes on from there.

    Args:
        config: As made by `si_jax/training/recipes.py`.
        workdir: Where checkpoints, metrics and config lie. Made if it does not exist.
        profile: A folder for a profile of a few steps; None for none.

    Returns:
        The final state.

    Raises:
        Stopped: A signal came, and the run was saved: a SystemExit that no caller need know.
        InputError: The config is wrong, or belongs to another run than the workdir.
        DivergedError: A loss or gradient was not finite. The last good state has been saved.
    """
    ready = setup_all(config)
    traced = Profile(profile) if profile and processes.is_first() else None
    with open_together(workdir, ready.config.to_dict()) as place, InterruptGuard() as guard:
        with _Run(ready, place, guard, traced) as under_way:
            return under_way.train()


class _Run:
    """A run under way: the state on the devices, and everything it is written to."""

    SLOW = 10  # seconds after which a single process looks at its steps, however few, to tell the time left

    def __init__(self, ready: Setup, place: Workdir, guard: InterruptGuard, profile: Profile | None = None):
        self.ready, self.guard, self.profile = ready, guard, profile
        self.meter, self.speed = mfu.of_training(ready), ''
        config = ready.config
        self.checkpoints = Checkpoints(place.path / 'checkpoints', keep_last=config.checkpoint.keep_last)
        state, carry = initial_state(ready), initial_carry(ready)
        # Sums of the metrics over the steps of the epoch that is under way.
        self.sums: dict[str, float] = {}
        self.step_number = 0
        # With the guard against catastrophic overfitting: weights and figures as of the last epoch's end.
        self.kept: Any = _weights(state) if config.overfitting.drop else ()
        self.watched = Watched()
        if processes.from_first(lambda: self.checkpoints.latest_step) is not None:
            restored = self.checkpoints.restore('last', like=self._saved(state, carry))
            carry, self.kept = restored.state.pop('carry'), restored.state.pop('kept')
            state = TrainState(**restored.state)
            self.sums, self.watched = _progress_of(restored, place)
            self.step_number = restored.step
            processes.say(f'resuming {place.path} at step {restored.step}')
        self.writer = None
        if processes.is_first():
            self.writer = MetricsWriter(place.path, tensorboard=config.logging.tensorboard)
            self.writer.cut(self.step_number or -1)
        self.state, self.carry = devices.replicate(state), devices.place_rows(carry)
        self.resident = devices.replicate((ready.train.images, ready.train.labels))
        self.key = devices.replicate(jax.random.key(config.seed))
        self.train_step = compile_train_step(ready)
        self.compiled = False
        self.overfitting = None
        if config.overfitting.drop:
            self.overfitting = OverfittingGuard(
                ready.model,
                ready.train,
                threat=ready.threat,
                drop=config.overfitting.drop,
                seed=config.seed,
            )
        self.held_out = None
        if len(ready.validation.labels):
            self.held_out = HeldOut(
                ready.model,
                ready.validation,
                threat=ready.threat,
                steps=config.evaluation.steps,
                step_size=config.evaluation.step_size,
                seed=config.seed,
                batch_size=config.evaluation.batch_size,
            )
        self.last_save = self.collected = time.monotonic()
        self.barrier = PreemptionBarrier()
        self.stopping = False
        self.progress: Progress

    def __enter__(self) -> '_Run':
        total = self.ready.config.epochs * self.ready.steps_per_epoch
        if processes.is_first():
            self.progress = progress(total, 'training', 'step', initial=self.step_number)
        else:
            self.progress = silent()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        if self.writer:
            self.writer.close()
        if self.profile:
            self.profile.close()
            print(self.profile.report())

    def train(self) -> TrainState:
        epochs = self.ready.config.epochs
        while (epoch := self.step_number // self.ready.steps_per_epoch) < epochs:
            if self.watched.stopped_at:
                processes.say(
                    f'catastrophic overfitting in epoch {self.watched.stopped_at}: the run ends with the '
                    'weights of the epoch before'
                )
                break
            if not self._epoch(epoch):
                self.progress.close()  # its last line comes before what is to be done
                raise stopped(self.guard.name or 'SIGTERM', f'saved at step {self.step_number}')
        return self.state

    def _epoch(self, epoch: int) -> bool:
        """Trains the rest of an epoch; False if the run was asked to stop before its end."""
        config, steps_per_epoch = self.ready.config, self.ready.steps_per_epoch
        round_, first = batch_of_step(self.ready, epoch * steps_per_epoch)
        rows, indices, mask = batches_of_pass(self.ready, round_)
        real = mask.sum(axis=1)
        pending: list[jax.Array] = []
        seconds, trained = 0.0, 0
        for position in range(self.step_number % steps_per_epoch, steps_per_epoch):
            _, batch = batch_of_step(self.ready, self.step_number)
            began = time.monotonic()
            self.state, self.carry, metrics = self.train_step(
                self.state, self.carry, self.resident, rows, self.key
            )
            self.step_number += 1
            watchdog.at_step(self.step_number)
            pending.append(metrics)
            if self.profile:
                self.profile.tick(metrics)
            last = position + 1 == steps_per_epoch
            save = self._save_is_due() and not last
            slow = processes.count() == 1 and time.monotonic() - self.collected > self.SLOW
            if last or save or slow or self.step_number % config.logging.every_steps == 0:
                self._collect(epoch, pending)
            if self.compiled:
                seconds += time.monotonic() - began
                trained += int(real[batch])
            else:
                # The first call compiles; it does not count for the speed.
                jax.block_until_ready(metrics)
                self.compiled = True
            if save:
                self._save(epoch)
                if self.stopping:
                    return False
        figures = {f'train/{name}': value / steps_per_epoch for name, value in self.sums.items()}
        figures['learning_rate'] = float(self.ready.schedule(self.step_number - 1))
        if seconds:  # not known where all that was left of the epoch was the step that compiles
            figures['images_per_second'] = trained / seconds
        self.sums = {}
        if self.overfitting:
            figures['pgd5_accuracy'] = self._watch(indices[first][mask[first]], epoch + 1)
        accuracy, final = None, epoch + 1 == config.epochs or self.watched.stopped_at is not None
        if self.held_out and (final or (epoch + 1) % config.evaluation.every_epochs == 0):
            measured = self.held_out(self.state.params, self.state.batch_stats)
            figures |= {f'validation/{name}': value for name, value in measured.items()}
            accuracy = measured['calibrated_pgd_accuracy']
        if self.writer:
            self.writer.write(self.step_number, epoch + 1, figures)
            tqdm.write(_epoch_line(epoch + 1, config.epochs, figures), file=sys.stdout)
            if seconds and (speed := self.meter.describe(figures['images_per_second'])):
                if final or not self.speed:
                    tqdm.write(f'speed: {speed}', file=sys.stdout)
                self.speed = speed
        self._save(epoch + 1, accuracy)
        self.stopping |= self.barrier.final_stop(self.guard.stop_requested)
        return final or not self.stopping

    def _watch(self, rows: np.ndarray, epoch: int) -> float:
        """Accuracy under PGD-5 on these images; after too far a fall, the last epoch's weights are back."""
        params, stats = self.state.params, self.state.batch_stats
        assert self.overfitting is not None
        self.watched = self.overfitting(params, stats, rows, self.watched, epoch=epoch)
        if self.watched.stopped_at:
            self.state = self.state._replace(**devices.replicate(self.kept))
        else:
            self.kept = jax.device_get(_weights(self.state))
        assert self.watched.accuracy is not None
        return self.watched.accuracy

    def _saved(self, state: TrainState, carry: Any) -> dict[str, Any]:
        """What a checkpoint holds; the carry is in global row order."""
        return {**state._asdict(), 'carry': carry, 'kept': self.kept}

    def _collect(self, epoch: int, pending: list[jax.Array]) -> None:
        """Fetches the metrics of the steps since the last time; ends the run if one was not finite."""
        names = metric_names(self.ready.defense)
        fetched = [dict(zip(names, step.tolist(), strict=True)) for step in jax.device_get(pending)]
        pending.clear()
        bad_step = int(self.state.bad_step)
        good = [
            metrics
            for i, metrics in enumerate(fetched, self.step_number - len(fetched))
            if not 0 <= bad_step <= i
        ]
        for metrics in good:
            for name, value in metrics.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if bad_step >= 0:
            self.step_number = bad_step
            terms = {name: float(value) for name, value in jax.device_get(self.state.bad_terms).items()}
            self.state = self.state._replace(bad_step=devices.replicate(jnp.int32(-1)))
            self._save(epoch)
            finite = np.isfinite([terms['loss'], terms['gradient_norm']]).all()
            what = 'the update of' if finite else ''
            raise DivergedError(
                f'{what} step {bad_step} (epoch {epoch + 1}) is not finite: '.lstrip()
                + ', '.join(f'{name}={value:g}' for name, value in terms.items())
                + '. The state before it is saved. Try a lower --config.schedule.peak, '
                '--config.optimiser.clip_norm=1.0 or --config.model.dtype=float32, and look at the data.'
            )
        self.collected = time.monotonic()
        self.progress.update(len(fetched))
        self.progress.set_postfix(loss=round(fetched[-1]['loss'], 4))

    def _save_is_due(self) -> bool:
        """Whether all processes save after this step; they also agree on whether to stop then."""
        settings = self.ready.config.checkpoint
        late = processes.is_first() and time.monotonic() - self.last_save > 60 * settings.every_minutes
        save, stop = self.barrier.after_step(save=late, stop=self.guard.stop_requested)
        self.stopping |= stop
        due = settings.every_steps and self.step_number % settings.every_steps == 0
        return bool(due or save or self.stopping)

    def _save(self, epoch: int, accuracy: float | None = None) -> None:
        metadata = {
            'arch': self.ready.config.model.arch,
            'config': self.ready.config.to_dict(),
            'epoch': epoch,
            'position': self.step_number % self.ready.steps_per_epoch,
            'epoch_sums': self.sums,
            'watched': self.watched._asdict(),
            'num_classes': self.ready.train.num_classes,
            'image_shape': list(self.ready.train.images.shape[1:]),
        }
        saved = self._saved(self.state, devices.join_rows(self.carry))
        self.checkpoints.save(self.step_number, saved, metadata=metadata, metric=accuracy)
        self.last_save = time.monotonic()


def _progress_of(restored: Restored, place: Workdir) -> tuple[dict[str, float], Watched]:
    """The sums of the epoch under way, and what the guard remembers."""
    try:
        check_fields(restored.metadata, {('epoch_sums',): dict, ('watched',): dict})
        sums = restored.metadata['epoch_sums']
        check_fields(sums, {(name,): float for name in sums})
        return sums, Watched(**restored.metadata['watched'])
    except (ValueError, TypeError) as error:
        raise InputError(
            f'checkpoint {restored.step} in {place.path} was not written by this program ({error}): remove '
            'it to go on from the one before, or give another --workdir'
        ) from error


def _weights(state: TrainState) -> dict[str, Any]:
    return {'params': state.params, 'batch_stats': state.batch_stats}


def _epoch_line(epoch: int, epochs: int, figures: dict[str, float]) -> str:
    parts = [f'epoch {epoch}/{epochs}', f'loss {figures["train/loss"]:.3f}']
    for name, title in (('natural', 'clean'), ('pgd', 'PGD'), ('calibrated_pgd', 'calibrated')):
        value = figures.get(f'validation/{name}_accuracy')
        if value is not None:
            parts.append(f'{title} {100 * value:.1f}%')
    if 'images_per_second' in figures:
        parts.append(f'{figures["images_per_second"]:.0f} img/s')
    return '  '.join(parts)
