"""A run under way: what the loop moves on, what hooks read and write, and what a checkpoint holds of it."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from si_jax.errors import InputError
from si_jax.runtime import devices, processes, watchdog
from si_jax.storage.files import check_fields
from si_jax.training import resume
from si_jax.training.checkpoints import Checkpoints, Restored
from si_jax.training.overfitting import Watched
from si_jax.training.recipes import plain
from si_jax.training.setup import Setup, data_facts, initial_carry, initial_state, initial_weights
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
        data: Counts and digests of the data, as its checkpoints hold them.
        init_from: The record of the weights that it started from, as its checkpoints hold it; {} without.
        history: As in `Workdir`, with what this start changes.
        went_back: Whether it began before a divergence, with another config.
        began_at: The step at which this start began.
        feed: Number of a step -> what it takes beside state and carry (`setup.feed_of`).
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
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    went_back: bool = False
    began_at: int = 0
    feed: Any = None

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last one of its epoch."""
        return self.step % self.ready.steps_per_epoch == 0

    @property
    def last_epoch(self) -> bool:
        """Whether no epoch follows the one under way."""
        return self.epoch + 1 == self.ready.config.epochs or self.watched.stopped_at is not None

    def save(self, epochs: int, accuracy: float | None = None) -> None:
        """Writes a checkpoint, after `epochs` epochs; by the accuracy the best checkpoint is chosen.

        Raises:
            OSError: The workdir is no longer the one that the run began in, or it cannot be written.
        """
        self.place.check()
        metadata = {
            'arch': self.ready.config.model.arch,
            'config': self.ready.config.to_dict(),
            'epoch': epochs,
            'position': self.step % self.ready.steps_per_epoch,
            'epoch_sums': self.sums,
            'watched': self.watched._asdict(),
            'num_classes': self.ready.train.num_classes,
            'image_shape': list(self.ready.train.images.shape[1:]),
            'data': self.data,
            **({'code': code} if (code := resume.code_of(self.ready)) else {}),
            **({'init_from': self.init_from} if self.init_from else {}),
        }
        saved = _saved(self.state, devices.join_rows(self.carry), self.kept)
        try:
            self.checkpoints.save(self.step, saved, metadata=metadata, metric=accuracy)
        except OSError:
            self.place.check()  # its reason, if the workdir went while it was written
            raise
        self.last_save = time.monotonic()
        watchdog.at_checkpoint(self.step)

    def record(self) -> None:
        """Writes down what the run is, in the process that holds its workdir."""
        if processes.is_first():
            self.place.record(plain(self.ready.config), self.history)

    def record_divergence(self, step: int, terms: Mapping[str, float]) -> None:
        """Writes down that a step was not finite, with its terms, after the state before it was saved."""
        shown = {name: value if math.isfinite(value) else str(value) for name, value in terms.items()}
        # Who went back with another rate and diverges again goes back further.
        event = {'step': step, 'diverged': shown, 'before': self.began_at if self.went_back else step}
        self.history = [one for one in self.history if 'diverged' not in one or one['step'] != step] + [event]
        self.record()


def begin(ready: Setup, place: Workdir) -> Run:
    """A run at its first step, or where the last undamaged checkpoint of the workdir has it.

    Raises:
        InputError: What lies in the workdir is of another run than the command (see `resume.find_start`), or
            the weights that a new run starts from cannot be (see `initial.read`).
    """
    config = ready.config
    checkpoints = Checkpoints(place.path / 'checkpoints', keep_last=config.checkpoint.keep_last)
    facts = data_facts(ready)
    start = resume.Start(*processes.from_first(lambda: resume.find_start(ready, place, checkpoints, facts)))
    initial = initial_weights(ready) if start.which is None else None
    state, carry = initial_state(ready, initial), initial_carry(ready)
    run = Run(ready, place, checkpoints, state, carry, kept=weights(state) if config.overfitting.drop else ())
    run.data, run.history = facts, place.history
    run.init_from = initial.record if initial else {}
    words = ''
    if start.which is not None:
        restored = checkpoints.restore(start.which, like=_saved(state, carry, run.kept))
        run.carry, run.kept = restored.state.pop('carry'), restored.state.pop('kept')
        run.state = TrainState(**restored.state)
        run.sums, run.watched, words = _remembered(restored, run)
        run.init_from = restored.metadata.get('init_from', {})
        run.step = run.began_at = restored.step
        processes.say(f'resuming {place.path} at step {restored.step}')
        watchdog.at_checkpoint(run.step)
        if 'data' not in restored.metadata:
            processes.say(
                f'note: the checkpoint of step {run.step} is of a version that did not write down its data, '
                'so they could not be compared with those of this command; the next one has them'
            )
    elif start.event:
        words = start.words
        run.history = [one for one in run.history if 'diverged' in one] + [dict(start.event)]
    if words:
        processes.say(f'changed from step {run.step} on: {words}')
    if start.back:
        run.went_back = True
        if processes.is_first():
            checkpoints.remove(run.step + 1 if start.which is not None else 0)
        processes.say(f'going back before the divergence, to step {run.step}')
    run.state, run.carry = devices.replicate(run.state), devices.place_rows(run.carry)
    return run


def weights(state: TrainState) -> dict[str, Any]:
    """The weights of a state, and their average if it has one."""
    return {'params': state.params, 'batch_stats': state.batch_stats, 'average': state.average}


def _saved(state: TrainState, carry: jax.Array | np.ndarray | tuple[()], kept: Any) -> dict[str, Any]:
    """What a checkpoint holds; the carry is in global row order."""
    return {**state._asdict(), 'carry': carry, 'kept': kept}


def _remembered(restored: Restored, run: Run) -> tuple[dict[str, float], Watched, str]:
    """The sums of the epoch under way, what the guard remembers, and what the command changes, in words.

    The change is added to the history of the run.
    """
    try:
        kinds: dict[tuple[str, ...], type] = {('epoch_sums',): dict, ('watched',): dict}
        kinds |= {('init_from',): dict} if 'init_from' in restored.metadata else {}
        check_fields(restored.metadata, kinds)
        sums = restored.metadata['epoch_sums']
        check_fields(sums, {(name,): float for name in sums})
        event, words = resume.change(restored.metadata, run.ready, restored.step)
        known = [one for one in run.history if 'diverged' in one or one['step'] < restored.step]
        run.history = known + [event] * bool(event)
        return sums, Watched(**restored.metadata['watched']), words
    except (ValueError, TypeError) as error:
        raise InputError(
            f'checkpoint {restored.step} in {run.place.path} was not written by this program ({error}): '
            'remove it to go on from the one before, or give another --workdir'
        ) from error
