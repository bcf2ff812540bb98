"""Batches that worker processes read and decode, by the package grain, which is optional.

A batch follows from its number alone, and grain hands them over in the order of their numbers. So they do not
depend on how many workers there are, and a run that goes on needs no more of its reader than the number of
its step.
"""

import importlib.util
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

from si_jax.errors import InputError

PACKAGE = 'grain>=0.2.18,<0.3'
AHEAD = 2  # batches that each worker reads before they are asked for
LAST = 2**62  # more batches than any run has


def check(count: int) -> None:
    """Refuses a number of workers that cannot be.

    Raises:
        InputError: It is negative; or grain is not installed, with the command that installs it.
    """
    if count < 0:
        raise InputError(f'data.workers={count} is negative: give a number of processes, or 0 for none')
    if count and importlib.util.find_spec('grain') is None:
        raise InputError(
            f"data.workers={count} needs the package grain: pip install '{PACKAGE}'; or give "
            '--config.data.workers=0, with which this process reads the images itself'
        )


class Workers:
    """Number of a batch -> what `read` gives of it, read ahead where numbers follow each other.

    Args:
        read: Number -> an array. Each worker gets a copy of it, pickled.
        count: Worker processes, at least 1. A program that trains in them by `si_jax.training` must not start
            it while it is imported, as it is imported again there (`if __name__ == '__main__':`).

    Raises:
        InputError: grain is not installed.
    """

    def __init__(self, read: Callable[[int], np.ndarray], count: int):
        check(count)
        self.read, self.count = read, count
        self.next = -1
        self.batches: Any = None

    def __call__(self, number: int) -> np.ndarray:
        """The batch of this number; what `read` raises is raised here."""
        if number != self.next:
            self.close()
            self.batches = iter(self._from(number))
        self.next = number + 1
        found: np.ndarray = next(self.batches)
        return found

    def _from(self, number: int) -> Any:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads its own, where a program may have none
            flags.FLAGS.mark_as_parsed()
        one_by_one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        processes = grain.MultiprocessingOptions(num_workers=self.count, per_worker_buffer_size=AHEAD)
        numbers = grain.MapDataset.range(number, LAST)
        return numbers.map(self.read).to_iter_dataset(one_by_one).mp_prefetch(processes, _started)

    def close(self) -> None:
        """Ends the workers; they start again when a batch is asked for."""
        if self.batches is not None:
            self.batches.close()
        self.next, self.batches = -1, None


def _started(number: int, count: int) -> None:
    """In a worker: an interrupt from the keyboard is for the process that trains, and it ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
