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
from si_jax.runtime.devices import AXIS
from si_jax.training.state import Batch, TrainState
from si_jax.training.step import Carry

Array = jax.Array
# Of a step's key, where no image has its number.
_MIXING = 2**32 - 1


def with_resident_data(
    step: Callable[..., Any], train: Dataset, replays: int, mixtures: int = 0
) -> Callable[..., Any]:
    """(state, carry, (images, labels), (indices, mask), key) -> what `step` returns.

    Indices and mask [rows, S] are those of the S batches of a pass; a step takes column
    (step // replays) % S.

    Every random number of a row comes from fold_in(fold_in(key, step // replays), image index): it depends
    neither on the number of devices nor on whether the run was interrupted. `replays` steps in a row see the
    same batch with the same random numbers.

    With `mixtures` N the step gets N mixtures of each image with others of the whole batch (CutMix): in each
    repetition one box and one order of the batch serve all images, as in wzekai99/DM-Improves-AT. It then has
    N times as many rows, and soft labels. Call it under the axis of `runtime.devices`.
    """

    def call(
        state: TrainState, carry: Carry, resident: tuple[Array, Array], rows: tuple[Array, Array], key: Array
    ) -> tuple[TrainState, Carry, dict[str, Array]]:
        images, labels = resident
        number = state.step // replays
        indices, mask = (batches[:, number % batches.shape[1]] for batches in rows)
        step_key = jax.random.fold_in(key, number)

        def keys_of(indices: Array) -> Array:
            return jax.vmap(lambda index: jax.random.split(jax.random.fold_in(step_key, index)))(indices)

        keys = keys_of(indices)

        def pixels(indices: Array, keys: Array) -> Array:
            augmented = data.augment(images[indices], keys[:, 0], crop=train.crop, flip=train.flip)
            return data.to_unit(augmented, train.scale, jnp.float32)

        batch = Batch(pixels(indices, keys), labels[indices], mask, keys[:, 1])
        if mixtures:
            others, real = (jax.lax.all_gather(part, AXIS, tiled=True) for part in (indices, mask))
            own = jax.lax.axis_index(AXIS) * len(indices) + jnp.arange(len(indices))

            def mixed(number: Array) -> Batch:
                for_order, for_box = jax.random.split(jax.random.fold_in(mixing, number))
                # The real rows come first, in a batch and in this order of it.
                order = jnp.argsort(
                    jnp.where(real, jax.random.uniform(for_order, real.shape, jnp.float32), 2)
                )
                other = others[order[own]]
                theirs = pixels(other, keys_of(other))
                box = data.random_box(for_box, *batch.images.shape[1:3])
                return mixture(batch, theirs, labels[other], box, train.num_classes, number)

            mixing = jax.random.fold_in(step_key, _MIXING)
            batch = jax.tree.map(
                lambda *parts: jnp.concatenate(parts), *[mixed(jnp.int32(n)) for n in range(mixtures)]
            )
        return step(state, carry, batch)

    return call


def mixture(
    batch: Batch, images: Array, labels: Array, box: tuple[Array, Array], classes: int, number: Array
) -> Batch:
    """The batch with the box [H, W] of its images taken from others, and labels mixed by `box[1]`.

    Accuracies count the label of the larger part. `number` makes the keys those of this repetition.
    """
    inside, share = box
    first, second = (jax.nn.one_hot(which, classes, dtype=jnp.float32) for which in (batch.labels, labels))
    return Batch(
        images=jnp.where(inside[None, :, :, None], images, batch.images),
        labels=jnp.where(share >= 0.5, batch.labels, labels),
        mask=batch.mask,
        keys=jax.vmap(lambda key: jax.random.fold_in(key, number))(batch.keys),
        soft=share * first + (1 - share) * second,
    )
