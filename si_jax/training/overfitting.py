"""The guard against catastrophic overfitting: single-step training may lose its robustness in one epoch.

Source: Wong et al. (2020), repository locuslab/fast_adversarial, train_fgsm.py, --early-stop: PGD-5 on the
first batch of each epoch. Here the network is in evaluation mode and the images are not augmented.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from si_jax import data
from si_jax.data import Dataset
from si_jax.runtime import devices, processes
from si_jax.threat import Threat
from si_jax.training.validation import compile_pgd, map_over_processes

STEPS, STEP_SIZE = 5, 0.25  # the latter as a multiple of eps


class Watched(NamedTuple):
    """What the guard remembers from one epoch to the next, in JSON's types.

    Attributes:
        accuracy: Under PGD-5 after the last epoch, in [0, 1]; None before the first has ended.
        stopped_at: The epoch, counted from 1, after which the guard ended the run; None if it did not.
    """

    accuracy: float | None = None
    stopped_at: int | None = None


class OverfittingGuard:
    """PGD-5 on a batch after each epoch, whose accuracy may fall by `drop` in (0, 1), and no more."""

    def __init__(self, model: nn.Module, dataset: Dataset, *, threat: Threat, drop: float, seed: int):
        self._dataset, self._drop, self._key = dataset, drop, jax.random.key(seed)
        self._attacked = compile_pgd(model, threat=threat, steps=STEPS, step_size=STEP_SIZE * threat.eps)

    def __call__(
        self, params: Any, batch_stats: Any, rows: np.ndarray, before: Watched, *, epoch: int
    ) -> Watched:
        """What is remembered after an epoch, counted from 1: with `stopped_at` if the accuracy fell too far.

        `rows` are the numbers of the images of its first batch, `before` is what the epoch before left, and
        the weights are replicated.
        """
        images = np.asarray(data.to_unit(self._dataset.images[rows], self._dataset.scale, np.float32))
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(self._key, epoch), i))(rows)
        count = jax.local_device_count()
        variables = devices.local({'params': params, 'batch_stats': batch_stats})
        shared = variables, devices.replicate(np.float32(1), jax.local_devices())
        each = -(-len(rows) // processes.count())
        arrays = images, self._dataset.labels[rows], keys
        correct = map_over_processes(self._attacked, shared, arrays, -(-each // count) * count)
        accuracy = float(np.mean(correct))
        fell = before.accuracy is not None and before.accuracy - accuracy > self._drop
        return Watched(accuracy, epoch if fell else None)
