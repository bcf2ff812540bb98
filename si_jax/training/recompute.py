"""Statistics of batch normalisation taken anew: those of averaged weights, which no step has trained with.

After an epoch its batches are passed once more through the averaged network, augmented as they were and
without an attack. The statistics are the mean of those of the batches, as `torch.optim.swa_utils.update_bn`
has them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.data import Dataset
from si_jax.runtime import devices
from si_jax.training.feed import with_data
from si_jax.training.state import Batch
from si_jax.training.update import Ingredients, rows_of

Array = jax.Array


class Recount(NamedTuple):
    """What passes from batch to batch.

    Attributes:
        step: The number of the step whose batch comes next.
        params: Of the network.
        batch_stats: The mean of the statistics of the batches so far.
        seen: How many there were.
    """

    step: Array
    params: Any
    batch_stats: Any
    seen: Array


def make_recount(parts: Ingredients) -> Callable[..., tuple[Recount, Any, dict[str, Array]]]:
    """The step (recount, carry, batch) -> (recount, carry, {}): one batch more."""
    # A weight of 1 leaves the statistics of the last batch alone.
    parts = parts.with_model(parts.model.clone(bn_momentum=1.0))

    def step(state: Recount, carry: Any, batch: Batch) -> tuple[Recount, Any, dict[str, Array]]:
        rows = rows_of(batch.mask, parts.axis_name)
        stats, _ = parts.train_pass(state.params, state.batch_stats, batch.images, batch.mask)
        stats = parts.joined(rows, stats)
        seen = state.seen + 1

        def mean(old: Array, new: Array) -> Array:
            return old + (new - old) / seen.astype(old.dtype)

        merged = jax.tree.map(mean, state.batch_stats, stats)
        return state._replace(step=state.step + 1, batch_stats=merged, seen=seen), carry, {}

    return step


class Recompute:
    """The compiled pass over an epoch: takes weights, and returns them with the statistics of its batches."""

    def __init__(self, parts: Ingredients, train: Dataset, replays: int, mixtures: int = 0, **how: bool):
        """The arguments are those of `with_data`, as are `how`: `streamed` and `repeats`."""
        whole = with_data(make_recount(parts), train, replays, mixtures, **how)
        self._step = devices.compile_step(whole)

    def __call__(self, average: dict[str, Any], feed: Callable[[int], Any], steps: range) -> dict[str, Any]:
        """The average (replicated, and donated) with new 'batch_stats', from the batches of these steps.

        `feed` gives what the training step takes beside state and carry, by the number of the step.
        """
        first, none = devices.replicate((jnp.int32(steps.start), jnp.int32(0)))
        state, carry = Recount(first, average['params'], average['batch_stats'], none), ()
        for step in steps:
            state, carry, _ = self._step(state, carry, *feed(step))
        return {'params': state.params, 'batch_stats': state.batch_stats}
