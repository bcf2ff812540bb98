"""Preemption: a request to save or to stop, which all processes act on after one and the same step."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.runtime import devices, processes

# Steps between a request and its answer. By then the step that it went along with is over, or nearly: the
# devices have the next ones to go on with, and no process waits for the request of another.
DELAY = 3
_SAVE, _STOP = 1, 2


class PreemptionBarrier:
    """The requests of all processes to save or to stop, answered in all of them after the same step.

    They go over the devices, behind the steps, as a small program of their own. In a run of one process a
    request is answered at once.
    """

    def __init__(self) -> None:
        self._waiting: collections.deque[jax.Array] = collections.deque()
        self._any = devices.compile_step(_union) if processes.count() > 1 else None

    def after_step(self, *, save: bool, stop: bool) -> tuple[bool, bool]:
        """Whether to save, and whether to stop, after this step.

        Args:
            save: This process wants to save.
            stop: This process wants to stop.
        """
        if self._any is None:
            return save, stop
        self._send(save, stop)
        return self._receive() if len(self._waiting) > DELAY else (False, False)

    def final_stop(self, stop: bool) -> bool:
        """Whether any process wants to stop, all requests before included: all wait for the answer."""
        if self._any is None:
            return stop
        self._send(False, stop)
        return any([self._receive()[1] for _ in range(len(self._waiting))])

    def _send(self, save: bool, stop: bool) -> None:
        mine = np.array([save * _SAVE, stop * _STOP], np.int32)
        over = devices.from_every_process(mine)
        assert self._any is not None
        self._waiting.append(self._any((), (), (), over, ())[2])

    def _receive(self) -> tuple[bool, bool]:
        save, stop = np.asarray(self._waiting.popleft())
        return bool(save), bool(stop)


def _union(state: Any, carry: Any, data: Any, request: jax.Array, key: Any) -> tuple[Any, Any, jax.Array]:
    del data, key
    return state, carry, jax.lax.pmax(jnp.asarray(request), devices.AXIS)
