"""Stopping a run between two steps instead of in the middle of one."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class InterruptGuard:
    """Turns SIGTERM and the first SIGINT into a flag that the training loop reads.

        with InterruptGuard() as guard:
            while not guard.stop_requested:
                ...

    A second SIGINT (Ctrl-C) raises KeyboardInterrupt at once. The handlers that were there before come back
    at the end. Enter it after `jax.distributed.initialize`, which takes SIGTERM for itself: a handler set
    before it never runs.

    Attributes:
        stop_requested: Whether one of the signals came.
        name: Which was the first, `'SIGTERM'` or `'SIGINT'`; None before.

    Raises:
        RuntimeError: On entering outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    @property
    def stop_requested(self) -> bool:
        return self.name is not None

    def __enter__(self) -> 'InterruptGuard':
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                f'InterruptGuard entered in thread {threading.current_thread().name!r}: '
                'Python delivers signals to the main thread only, so train there'
            )
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not set from Python, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        if self.name is None:
            self.name = signal.Signals(number).name
            # Not print(): the signal may have come in the middle of one, and that is no place for another.
            message = f'\n{self.name}: saving and stopping after this step (a second Ctrl-C stops at once)\n'
            os.write(2, message.encode())
