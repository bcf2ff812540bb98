"""How data reach the compiled step, which augments them: from the device, or from the host batch by batch.

Resident data are uploaded once, as bytes, and the indices of all batches once a pass: a step finds its own by
its number, and the host hands over nothing. Streamed data stay on the host, in memory or in their files: a
thread reads the bytes of the next batches, or has worker processes read them (`si_jax.data.workers`), and
hands them over while the devices are busy. All give the same batches, whose images and random numbers follow
from the number of the step, and the same parameters.
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import data
from si_jax.data import Dataset
from si_jax.data.stream import Joined
from si_jax.data.workers import Workers
from si_jax.draws import key_of
from si_jax.runtime.devices import AXIS, place_rows, replicate
from si_jax.training.state import Batch, TrainState
from si_jax.training.step import Carry

Array = jax.Array
# Of a step's key, where no image has its number.
_MIXING = 2**32 - 1
_AGAIN = 2**31  # of an image's key; how often it came before in the batch is added
_COPY = 1  # of an image's key for augmentation; a copy's number is added
AHEAD = 2  # batches that are prepared before they are asked for


class Batches:
    """Which images each batch of a run has.

    Args:
        of_pass: Number of a pass over the data -> indices [S, B] int32 and mask [S, B] of its batches.
        steps: S, batches of a pass.
        replays: Steps in a row that see the same batch.
    """

    def __init__(self, of_pass: Callable[[int], tuple[np.ndarray, np.ndarray]], steps: int, replays: int):
        self.of_pass, self.steps, self.replays = of_pass, steps, replays
        self.last: tuple[int, Any] = (-1, None)

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices [B] int32 and mask [B] of the batch of this number."""
        pass_, position = divmod(number, self.steps)
        if self.last[0] != pass_:
            self.last = pass_, self.of_pass(pass_)
        indices, mask = self.last[1]
        return indices[position], mask[position]


def read_batch(images: Joined, batches: Batches, own: slice, number: int) -> np.ndarray:
    """The images uint8 [rows, H, W, C] of a batch by its number, of the rows that a process has."""
    return images[batches.of(number)[0][own]]


class Resident:
    """Step number -> (images and labels, rows of the pass, key): what the step takes from the devices.

    Args:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        batches: Which of them each batch has.
        seed: Of the run.
    """

    def __init__(self, images: Joined, labels: np.ndarray, batches: Batches, seed: int):
        self.batches, self.key = batches, replicate(key_of(seed))
        self.data = replicate((images.whole(), labels))
        self.rows: tuple[int, Any] = (-1, None)

    def __call__(self, step: int) -> tuple[Any, Any, Any]:
        number = step // self.batches.replays // self.batches.steps
        if self.rows[0] != number:
            indices, mask = self.batches.of_pass(number)
            self.rows = number, place_rows((indices.T, mask.T))
        return self.data, self.rows[1], self.key

    def close(self) -> None:
        """Nothing is under way."""


class Streamed:
    """Step number -> ((), rows of the batch, key): bytes of the images, labels, indices and mask.

    A thread prepares the next `AHEAD` batches, whichever step is asked for. Images that lie in files
    are read there.

    Args:
        images, labels, batches, seed: As for `Resident`.
        own: The rows of a batch that this process reads, those of its devices.
        workers: Processes that read the images in place of the thread; 0 for none.

    Raises:
        InputError: There are to be workers, and grain is not installed.
    """

    def __init__(
        self,
        images: Joined,
        labels: np.ndarray,
        batches: Batches,
        seed: int,
        *,
        own: slice = slice(None),
        workers: int = 0,
    ):
        self.labels, self.batches, self.own = labels, batches, own
        self.read: Any = functools.partial(read_batch, images, batches, own)
        if workers:
            self.read = Workers(self.read, workers)
        self.key = replicate(key_of(seed))
        self.under_way: dict[int, Future[Any]] = {}
        self.thread = ThreadPoolExecutor(1, 'feed')

    def __call__(self, step: int) -> tuple[Any, Any, Any]:
        number = step // self.batches.replays
        wanted = range(number, number + 1 + AHEAD)
        self.under_way = {
            one: self.under_way.get(one) or self.thread.submit(self._prepared, one) for one in wanted
        }
        return (), self.under_way[number].result(), self.key

    def _prepared(self, number: int) -> Any:
        indices, mask = self.batches.of(number)
        images = self.read(number)
        if len(images) < len(indices):  # other processes have the other rows
            mine, images = images, np.zeros((len(indices), *images.shape[1:]), images.dtype)
            images[self.own] = mine
        return place_rows((images, self.labels[indices], indices, mask))

    def close(self) -> None:
        """Ends the thread, after the batch that it is at, and the workers; no batch is left under way."""
        self.thread.shutdown(cancel_futures=True)
        self.under_way = {}
        if isinstance(self.read, Workers):
            self.read.close()


def with_data(
    step: Callable[..., Any],
    train: Dataset,
    replays: int,
    mixtures: int = 0,
    *,
    copies: int = 0,
    streamed: bool = False,
    repeats: bool = False,
) -> Callable[..., Any]:
    """(state, carry, (images, labels), (indices, mask), key) -> what `step` returns.

    Indices and mask [rows, S] are those of the S batches of a pass; a step takes column
    (step // replays) % S. Streamed, it is (state, carry, (), (images, labels, indices, mask), key) with those
    of this batch alone.

    Every random number of a row comes from fold_in(fold_in(key, step // replays), image index): it depends
    neither on the number of devices nor on whether the run was interrupted. `replays` steps in a row see the
    same batch with the same random numbers.

    With `mixtures` N the step gets N mixtures of each image with others of the whole batch (CutMix): in each
    repetition one box and one order of the batch serve all images, as in wzekai99/DM-Improves-AT. It then has
    N times as many rows, and soft labels. Call it under the axis of `runtime.devices`.

    With `repeats` an image may be in a batch more than once: each of its rows but the first takes other
    random numbers, by how many come before it.

    With `copies` the step gets so many copies of each image after AutoAugment, cropped and mirrored anew.
    """

    def call(
        state: TrainState, carry: Carry, resident: tuple[Array, ...], rows: tuple[Array, ...], key: Array
    ) -> tuple[TrainState, Carry, dict[str, Array]]:
        number = state.step // replays
        if streamed:
            images, labels, indices, mask = rows
        else:
            images, labels = resident
            indices, mask = (batches[:, number % batches.shape[1]] for batches in rows)
        found = slice(None) if streamed else indices
        step_key = jax.random.fold_in(key, number)

        place = jnp.arange(len(indices))
        if mixtures or repeats:  # in the batch of all devices
            place += jax.lax.axis_index(AXIS) * len(indices)
        times = _times(jax.lax.all_gather(indices, AXIS, tiled=True)) if repeats else None

        def keys_of(indices: Array, place: Array) -> Array:
            """Two keys for each image [B, 2], by its place [B] in the batch of all devices."""
            own = jax.vmap(lambda index: jax.random.fold_in(step_key, index))(indices)
            if times is not None:
                again = times[place]
                # As JAX's integers are of 32 bits, the sum is one without a sign.
                other = jax.vmap(jax.random.fold_in)(own, jnp.uint32(_AGAIN) + again.astype(jnp.uint32))
                own = jnp.where(again > 0, other, own)
            return jax.vmap(jax.random.split)(own)

        keys = keys_of(indices, place)

        def pixels(stored: Array, keys: Array) -> Array:
            augmented = data.augment(stored, keys[:, 0], crop=train.crop, flip=train.flip)
            return data.to_unit(augmented, train.scale, jnp.float32)

        def copy(number: int) -> Array:
            own = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, _COPY + number)))(keys[:, 0])
            whole = data.autoaugment(data.to_unit(images[found], train.scale, jnp.float32), own[:, 0])
            return data.augment(whole, own[:, 1], crop=train.crop, flip=train.flip)

        batch = Batch(pixels(images[found], keys), labels[found], mask, keys[:, 1])
        if copies:
            batch = batch._replace(augmented=tuple(copy(number) for number in range(copies)))
        if mixtures:
            others, real = (jax.lax.all_gather(part, AXIS, tiled=True) for part in (indices, mask))
            if streamed:  # the images of the whole batch
                images, labels = (jax.lax.all_gather(part, AXIS, tiled=True) for part in (images, labels))

            def mixed(number: Array) -> Batch:
                for_order, for_box = jax.random.split(jax.random.fold_in(mixing, number))
                # The real rows come first, in a batch and in this order of it.
                order = jnp.argsort(
                    jnp.where(real, jax.random.uniform(for_order, real.shape, jnp.float32), 2)
                )
                partner = order[place]
                other = others[partner]
                their_keys, found = keys_of(other, partner), partner if streamed else other
                theirs = pixels(images[found], their_keys)
                box = data.random_box(for_box, *batch.images.shape[1:3])
                return mixture(batch, theirs, labels[found], box, train.num_classes, number)

            mixing = jax.random.fold_in(step_key, _MIXING)
            batch = jax.tree.map(
                lambda *parts: jnp.concatenate(parts), *[mixed(jnp.int32(n)) for n in range(mixtures)]
            )
        return step(state, carry, batch)

    return call


def _times(indices: Array) -> Array:
    """How many earlier rows of a batch have the image of each row, from indices [B]."""
    return jnp.sum(jnp.tril(indices[:, None] == indices[None, :], -1), axis=1)


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
