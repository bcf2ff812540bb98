"""The guard against catastrophic overfitting: single-step training may lose its robustness in one epoch.

Source: Wong et al. (2020), repository locuslab/fast_adversarial, train_fgsm.py, --early-stop: PGD-5 on the
first batch of each epoch. A batch is too few images to tell a collapse from chance, and other images each
time. Here it is PGD-5 on all held-out images, with the same noise in every epoch and the network in
evaluation mode.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from si_jax import data
from si_jax.data import Dataset
from si_jax.draws import key_of
from si_jax.evaluation.intervals import wilson
from si_jax.runtime import devices, processes
from si_jax.threat import Threat
from si_jax.training.validation import compile_pgd, map_over_processes

STEPS, STEP_SIZE = 5, 0.25  # the latter as a multiple of eps
COLLAPSE, PATIENCE = 'catastrophic overfitting', 'patience'  # reasons to end a run
AHEAD = 0.1  # of training accuracy over held-out PGD-5 accuracy, in a collapse at least


class Watched(NamedTuple):
    """What a run remembers from one epoch to the next about when to end, in JSON's types.

    Attributes:
        accuracy: Under PGD-5 after the last epoch, in [0, 1]; None before the first has ended, and without
            the guard.
        stopped_at: The epoch, counted from 1, after which the run was ended; None if it was not.
        images: The number of held-out images that `accuracy` is of; None where an older version took it of a
            batch.
        reason: Why the run was ended: 'catastrophic overfitting' or 'patience'.
        best: The highest held-out robust accuracy so far, where `patience` is set.
        best_epoch: The epoch, counted from 1, that it is of.
        trained: Accuracy of the last epoch's training images under the training attack.
    """

    accuracy: float | None = None
    stopped_at: int | None = None
    images: int | None = None
    reason: str | None = None
    best: float | None = None
    best_epoch: int | None = None
    trained: float | None = None

    def measured(self, accuracy: float, epoch: int, patience: int) -> 'Watched':
        """After held-out figures of an epoch: with `stopped_at` if the best is `patience` epochs old."""
        if self.best is None or self.best_epoch is None or accuracy > self.best:
            return self._replace(best=accuracy, best_epoch=epoch)
        if self.stopped_at is None and epoch - self.best_epoch >= patience:
            return self._replace(stopped_at=epoch, reason=PATIENCE)
        return self

    def why(self) -> str:
        """Why the run was ended, in a sentence."""
        if self.reason == PATIENCE:
            return (
                f'patience: the held-out robust accuracy has not risen above {100 * (self.best or 0):.1f}% '
                f'since epoch {self.best_epoch}, so the run ends after epoch {self.stopped_at}'
            )
        kept = 'the weights of the epoch before'
        if self.stopped_at == 1:
            kept = 'the weights that it began with if these were trained, else with those of this epoch'
        return f'{COLLAPSE} in epoch {self.stopped_at}: the run ends with {kept}'


def collapse(before: Watched, after: Watched) -> str:
    """What the guard saw, with counts."""
    assert after.accuracy is not None and after.images is not None
    since = '' if before.accuracy is None else f', {round(before.accuracy * after.images)} an epoch before'
    trained = '' if after.trained is None else f', while training accuracy is {100 * after.trained:.1f}%'
    return (
        f'PGD-5 leaves {round(after.accuracy * after.images)} of {after.images} held-out images right{since}'
        f'{trained}. The held-out figures of these weights are in metrics.jsonl as collapsed/*'
    )


def least_fall(before: float, after: float, images: int) -> float:
    """How far an accuracy fell at least, with 95 % confidence; below 0 where it may have risen.

    Both accuracies are of that many images. The bound is Newcombe's (1998, method 10), from Wilson's
    intervals of the two. Over the same images, as here, it is on the safe side.
    """
    low, high = wilson(round(before * images), images)[0], wilson(round(after * images), images)[1]
    return float(before - after - np.hypot(before - low, high - after))


def blind(trained: float, accuracy: float, images: int) -> bool:
    """Whether most training images withstand the training attack, and next to no held-out one withstands PGD.

    The accuracies are of the training images under the training attack, and of so many held-out images under
    PGD. Such training has learned to see the one step of its attack.
    """
    return trained > 0.5 and wilson(round(accuracy * images), images)[1] < trained / 5


class OverfittingGuard:
    """PGD-5 on held-out images after each epoch.

    The run is to end where their accuracy fell by more than `drop` in (0, 1) from one epoch to the next, with
    95 % confidence, while training went on well: the accuracy of the training images under the training
    attack did not fall, and is ahead of it. Without the latter it is training that stumbles, not overfitting.
    It also ends where training is `blind`, as it may be from the start.
    """

    def __init__(self, model: nn.Module, held_out: Dataset, *, threat: Threat, drop: float, seed: int):
        self._drop = drop
        self._attacked = compile_pgd(model, threat=threat, steps=STEPS, step_size=STEP_SIZE * threat.eps)
        count = len(held_out.labels)
        key = key_of(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(count))
        images = np.asarray(data.to_unit(jnp.asarray(held_out.images), held_out.scale, np.float32))
        self._rows = images, held_out.labels, keys
        most, here = -(-count // processes.count()), jax.local_device_count()
        self._chunk = here * -(-min(most, 64 * here) // here)

    def __call__(
        self, params: Any, batch_stats: Any, before: Watched, *, epoch: int, trained: float | None
    ) -> Watched:
        """What is remembered after an epoch, counted from 1: with `stopped_at` if the accuracy collapsed.

        `before` is what the epoch before left, the weights are replicated, and `trained` is the accuracy of
        the epoch's training images under the training attack, None for a defense that has none.
        """
        variables = devices.local({'params': params, 'batch_stats': batch_stats})
        shared = variables, devices.replicate(np.float32(1), jax.local_devices())
        correct = map_over_processes(self._attacked, shared, self._rows, self._chunk)
        now = before._replace(accuracy=float(np.mean(correct)), images=len(correct), trained=trained)
        return now._replace(stopped_at=epoch, reason=COLLAPSE) if self._collapsed(before, now) else now

    def _collapsed(self, before: Watched, now: Watched) -> bool:
        assert now.accuracy is not None and now.images is not None
        if now.trained is not None and blind(now.trained, now.accuracy, now.images):
            return True
        if before.accuracy is None or before.images != now.images:
            return False
        if least_fall(before.accuracy, now.accuracy, now.images) <= self._drop:
            return False
        if now.trained is None or before.trained is None:
            return True
        return now.trained >= before.trained and now.trained > now.accuracy + AHEAD
