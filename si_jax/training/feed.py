"""Data that lives on the device: gathered and augmented inside the compiled step.

The images are uploaded once, as bytes, and the indices of all batches once a pass: a step finds its own by
its number, and the host hands over nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from si_jax import data
from si_jax.data import Dataset
from si_jax.training.state import Batch, TrainState
from si_jax.training.step import Carry

Array = jax.Array


def with_resident_data(step: Callable[..., Any], train: Dataset, replays: int) -> Callable[..., Any]:
    """(state, carry, (images, labels), (indices, mask), key) -> what `step` returns.

    Indices and mask [rows, S] are those of the S batches of a pass; a step takes column
    (step // replays) % S.

    Every random number of a row comes from fold_in(fold_in(key, step // replays), image index): it depends
    neither on the number of devices nor on whether the run was interrupted. `replays` steps in a row see the
    same batch with the same random numbers.
    """

    def call(
        state: TrainState, carry: Carry, resident: tuple[Array, Array], rows: tuple[Array, Array], key: Array
    ) -> tuple[TrainState, Carry, dict[str, Array]]:
        images, labels = resident
        number = state.step // replays
        indices, mask = (batches[:, number % batches.shape[1]] for batches in rows)
        step_key = jax.random.fold_in(key, number)
        keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(step_key, index)))(indices)
        augmented = data.augment(images[indices], keys[:, 0], crop=train.crop, flip=train.flip)
        pixels = data.to_unit(augmented, train.scale, jnp.float32)
        return step(state, carry, Batch(pixels, labels[indices], mask, keys[:, 1]))

    return call
