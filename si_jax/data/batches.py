"""Which image goes where: the validation split, the order of an epoch, padded batches.

All of it follows from seeds, on the host. Raw Philox output is sorted instead of asking NumPy for a
permutation: NumPy keeps the raw stream the same on all platforms and versions (NEP 19), but not what is made
of it.
"""

import functools
import operator
from collections.abc import Callable

import numpy as np

from si_jax.data.dataset import Dataset
from si_jax.data.stream import chosen
from si_jax.errors import InputError

# Streams of one seed that must not meet.
_ORDER, _SPLIT, _MIX, _EXTRA = 0, 1, 2, 3


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f'{name}={value!r} is not a whole number') from None


def _bits(name: str, seed: int, stream: tuple[int, ...], n: int) -> np.ndarray:
    seed = _integer(name, seed)
    if seed < 0:
        raise InputError(f'{name}={seed} is negative: seeds are 0 or greater')
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(n)


def _permutation(name: str, seed: int, stream: tuple[int, ...], n: int) -> np.ndarray:
    return np.argsort(_bits(name, seed, stream, n), kind='stable')


def split_validation(dataset: Dataset, count: int, split_seed: int) -> tuple[Dataset, Dataset]:
    """Takes `count` images out of a training set, to select checkpoints on.

    The split depends on `split_seed` and the size of the set alone, so that runs with different seeds share
    their validation set. Both parts keep the original order.

    Args:
        dataset: The whole training set.
        count: Number of validation images, from 0 to one less than the size of the set.
        split_seed: A seed of its own, apart from that of the run.

    Returns:
        (training set, validation set).

    Raises:
        InputError: `count` is out of range, or the seed is negative.
    """
    n, count = len(dataset.labels), _integer('validation', count)
    if not 0 <= count < n:
        raise InputError(
            f'validation={count} is not in [0, {n - 1}]: {dataset.name} has {n} images, and at least one '
            'must remain to train on'
        )
    order = _permutation('split_seed', split_seed, (_SPLIT,), n)

    def part(indices: np.ndarray) -> Dataset:
        indices = np.sort(indices)
        return dataset._replace(images=chosen(dataset.images, indices), labels=dataset.labels[indices])

    return part(order[count:]), part(order[:count])


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order [n] int32 in which an epoch visits the images, the same on every platform.

    Args:
        seed: The seed of the run, 0 or greater.
        epoch: Number of the epoch, from 0.
        n: Number of images.

    Raises:
        InputError: The seed or the epoch is negative.
    """
    epoch = _integer('epoch', epoch)
    if epoch < 0:
        raise InputError(f'epoch={epoch} is negative: epochs count from 0')
    return _permutation('seed', seed, (_ORDER, epoch), n).astype(np.int32)


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """An order [N] int32 for an epoch in which the classes of the labels [N] are equally frequent.

    Counts of classes differ by one at most. Of a class with too few images some come several times, of one
    with too many some are left out: others in each epoch.

    Raises:
        InputError: The seed or the epoch is negative.
    """
    n = len(labels)
    order = epoch_order(seed, epoch, n)
    classes = np.unique(labels)
    first = epoch % len(classes)  # the classes that get one more take turns
    more = (np.arange(len(classes)) - first) % len(classes) < n % len(classes)
    counts = n // len(classes) + more
    taken = [
        np.resize(order[labels[order] == label], count) for label, count in zip(classes, counts, strict=True)
    ]
    return np.concatenate(taken)[_permutation('seed', seed, (_MIX, epoch), n)]


def in_passes(order: Callable[[int], np.ndarray], n: int, first: int, count: int) -> np.ndarray:
    """`count` images in a row from position `first` of pass after pass over n images.

    `order` gives the order [n] of a pass by its number.
    """
    passes = range(first // n, -(-(first + count) // n))
    rows = np.concatenate([order(number) for number in passes])
    return rows[first - passes.start * n :][:count]


@functools.lru_cache(maxsize=2)  # of millions of images it takes seconds, and an epoch sees a part of them
def extra_order(seed: int, number: int, n: int) -> np.ndarray:
    """The order [n] int32 of a pass over n extra images.

    Raises:
        InputError: The seed is negative.
    """
    return _permutation('seed', seed, (_EXTRA, number), n).astype(np.int32)


def uniform_draws(seed: int, number: int, count: int, n: int) -> np.ndarray:
    """`count` of n extra images [count] int32, each as likely as any other, for the epoch of this number.

    Raises:
        InputError: The seed is negative.
    """
    return (_bits('seed', seed, (_EXTRA, number), count) % n).astype(np.int32)


def epoch_batches(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts an order into batches of one size; the last one is filled up with image 0, masked.

    Args:
        order: Image indices [N].
        batch_size: Rows of a batch, at least 1.

    Returns:
        Indices [S, B] int32 and mask [S, B] bool, with S = ceil(N / B). True marks a real row.

    Raises:
        InputError: The batch size is below 1.
    """
    batch_size = _integer('batch_size', batch_size)
    if batch_size < 1:
        raise InputError(f'batch_size={batch_size} is below 1: give the number of images in a batch')
    padding = -len(order) % batch_size
    indices = np.pad(np.asarray(order, np.int32), (0, padding))
    mask = np.arange(len(indices)) < len(order)
    return indices.reshape(-1, batch_size), mask.reshape(-1, batch_size)
