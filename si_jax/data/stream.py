"""Sets of images that need not fit a device: arrays joined without a copy, and when batches are handed over.

A set that fits is uploaded once and lives on the devices (resident). A larger one stays on the host, in
memory or in its file, and each batch is handed over when it is due (streamed).
"""

from collections.abc import Sequence

import numpy as np

from si_jax.errors import InputError, unknown

STREAMS = ('auto', 'always', 'never')
# The share of a device's memory up to which a set is resident: the rest is for weights and a step.
RESIDENT = 0.5


def is_streamed(stream: str, size: int, memory: float) -> bool:
    """Whether a set of `size` bytes is handed over batch by batch.

    Args:
        stream: 'always', 'never', or 'auto': where the set takes more than half of a device's memory.
        size: Bytes of all images.
        memory: Bytes of a device.

    Raises:
        InputError: `stream` is none of these, or 'never' for a set that no device can hold.
    """
    if stream not in STREAMS:
        raise unknown('data.stream', stream, STREAMS)
    if stream == 'never' and size > memory:
        raise InputError(
            f"data.stream='never' puts {size / 1e9:.2f} GB of images on a device with {memory / 1e9:.2f} GB: "
            'use --config.data.stream=auto'
        )
    return stream == 'always' or (stream == 'auto' and size > RESIDENT * memory)


class Joined:
    """Arrays [N, ...] one behind another, indexed as one; each in memory, or mapped from its file."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Rows [B, ...] at these indices [B], in memory."""
        first = self.parts[0]
        found = np.empty((len(indices), *first.shape[1:]), first.dtype)
        which = np.searchsorted(self._ends, indices, side='right')
        for number, part in enumerate(self.parts):
            here = which == number
            found[here] = part[indices[here] - (self._ends[number] - len(part))]
        return found

    def whole(self) -> np.ndarray:
        """All rows, in memory."""
        return np.concatenate(self.parts) if len(self.parts) > 1 else np.asarray(self.parts[0])
