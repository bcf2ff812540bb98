"""A run under way: what the loop moves on, what hooks read and write, and what a checkpoint holds of it."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from si_jax.errors import InputError
from si_jax.runtime import devices, processes
from si_jax.storage.files import check_fields
from si_jax.training.checkpoints import Checkpoints, Restored
from si_jax.training.overfitting import Watched
from si_jax.training.setup import Setup, initial_carry, initial_state
from si_jax.training.state import TrainState
from si_jax.training.workdir import Workdir


@dataclasses.dataclass
class Run:
    """A run under way.

    Attributes:
        ready: The config, and all that was made of it.
        state: On the devices, replicated.
        carry: On the devices, in shards of rows.
        step: The number of steps that were taken.
        sums: Sums of the metrics over the steps of the epoch under way, each step counted as the share of a
            whole batch that it saw; `start_loss` is that of the run's first step.
        watched: What is remembered about when to end the run.
        kept: The weights at the end of the last epoch, on the host; () without that guard.
        epoch: The epoch under way, from 0.
        began: When the last step was handed to the devices, by `time.monotonic`.
        metrics: What the last step returned, still on the devices.
        images: How many real images the last step saw.
        figures: What is reported of the epoch that has ended, in the order of its line in metrics.jsonl.
        accuracy: By which the best checkpoint is chosen; None where nothing was measured.
        save_due: Whether all processes save after this step.
        stopping: Whether all processes stop as soon as they have saved.
        last_save: When it was saved last, by `time.monotonic`.
    """

    ready: Setup
    place: Workdir
    checkpoints: Checkpoints
    state: TrainState
    carry: Any
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    watched: Watched = dataclasses.field(default_factory=Watched)
    kept: Any = ()
    epoch: int = 0
    began: float = 0.0
    metrics: Any = None
    images: int = 0
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    save_due: bool = False
    stopping: bool = False
    last_save: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last one of its epoch."""
        return self.step % self.ready.steps_per_epoch == 0

    @property
    def last_epoch(self) -> bool:
        """Whether no epoch follows the one under way."""
        return self.epoch + 1 == self.ready.config.epochs or self.watched.stopped_at is not None

    def save(self, epochs: int, accuracy: float | None = None) -> None:
        """Writes a checkpoint, after `epochs` epochs; by the accuracy the best checkpoint is chosen."""
        metadata = {
            'arch': self.ready.config.model.arch,
            'config': self.ready.config.to_dict(),
            'epoch': epochs,
            'position': self.step % self.ready.steps_per_epoch,
            'epoch_sums': self.sums,
            'watched': self.watched._asdict(),
            'num_classes': self.ready.train.num_classes,
            'image_shape': list(self.ready.train.images.shape[1:]),
        }
        saved = _saved(self.state, devices.join_rows(self.carry), self.kept)
        self.checkpoints.save(self.step, saved, metadata=metadata, metric=accuracy)
        self.last_save = time.monotonic()


def begin(ready: Setup, place: Workdir) -> Run:
    """A run at its first step, or where the last undamaged checkpoint of the workdir has it.

    Raises:
        InputError: The checkpoint was not written by this program.
    """
    config = ready.config
    checkpoints = Checkpoints(place.path / 'checkpoints', keep_last=config.checkpoint.keep_last)
    state, carry = initial_state(ready), initial_carry(ready)
    run = Run(ready, place, checkpoints, state, carry, kept=weights(state) if config.overfitting.drop else ())
    if processes.from_first(lambda: checkpoints.latest_step) is not None:
        restored = checkpoints.restore('last', like=_saved(state, carry, run.kept))
        run.carry, run.kept = restored.state.pop('carry'), restored.state.pop('kept')
        run.state = TrainState(**restored.state)
        run.sums, run.watched = _remembered(restored, place)
        run.step = restored.step
        processes.say(f'resuming {place.path} at step {restored.step}')
    run.state, run.carry = devices.replicate(run.state), devices.place_rows(run.carry)
    return run


def weights(state: TrainState) -> dict[str, Any]:
    """What evaluation needs of a state."""
    return {'params': state.params, 'batch_stats': state.batch_stats}


def _saved(state: TrainState, carry: jax.Array | np.ndarray | tuple[()], kept: Any) -> dict[str, Any]:
    """What a checkpoint holds; the carry is in global row order."""
    return {**state._asdict(), 'carry': carry, 'kept': kept}


def _remembered(restored: Restored, place: Workdir) -> tuple[dict[str, float], Watched]:
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
