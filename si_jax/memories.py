"""What a term of a defense remembers from batch to batch: a pytree of arrays that is part of the train state.

A training step reads it, and moves it under the same guard as the parameters; a checkpoint holds it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Memory(NamedTuple):
    """What a term remembers; its `schedule` may read it, and an objective that is `of_memory`.

    Attributes:
        first: Number of classes -> the memory before the first batch.
        update: (memory, what was seen of a batch, whether the batch is the first of an epoch) -> the memory
            for the next batch.
        seen: (adversarial score, natural score, labels [B], mask [B]) -> what is seen of a shard, an array of
            sums over its real rows, which are added over the devices; None for the term's value, without its
            weight, or for what the step counted.
        read: (memory, whether the batch is the first of an epoch) -> what an objective is given of it.
    """

    first: Callable[[int], Any]
    update: Callable[[Any, Any, Array], Any]
    seen: Callable[[Array | None, Array | None, Array, Array], Array] | None = None
    read: Callable[[Any, Array], Any] = lambda memory, new_epoch: memory


class ClassMeans(NamedTuple):
    """Mean probabilities of the images of each class, one class a row.

    Attributes:
        means: [K, K], those of the epoch before the present one; 1 / K in the first.
        sums: [K, K], sums over the images of the present epoch so far.
    """

    means: Array
    sums: Array

    def at(self, new_epoch: Array) -> Array:
        """The means [K, K] for a batch: with the first of an epoch, those of the epoch that has ended.

        A class that it had no image of keeps its row.
        """
        count = jnp.sum(self.sums, axis=1, keepdims=True)
        fresh = jnp.where(count > 0, self.sums / jnp.where(count > 0, count, 1), self.means)
        return jnp.where(new_epoch, fresh, self.means)


def class_means(temperature: float) -> Memory:
    """Means over an epoch of softmax(natural score / temperature), by class, for the next epoch.

    Source: IKL, Cui et al. (2023), repository jiequancui/DKL, train_dkl_cifar10.py: of the training pass.
    """

    def first(classes: int) -> ClassMeans:
        even = jnp.full((classes, classes), 1 / classes, jnp.float32)
        return ClassMeans(even, jnp.zeros_like(even))

    def seen(adv: Array | None, nat: Array | None, labels: Array, mask: Array) -> Array:
        assert nat is not None
        p = jax.nn.softmax(jax.lax.stop_gradient(nat) / temperature, axis=1)
        real = jnp.where(mask[:, None], p, 0)
        return jnp.zeros((p.shape[1], p.shape[1]), p.dtype).at[labels].add(real)

    def update(memory: ClassMeans, sums: Array, new_epoch: Array) -> ClassMeans:
        return ClassMeans(memory.at(new_epoch), jnp.where(new_epoch, 0, memory.sums) + sums)

    return Memory(first, update, seen, ClassMeans.at)
