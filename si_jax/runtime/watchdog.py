"""Notices that another process of the run is dead or hangs, says which, and ends this one.

A collective operation waits for a hung process for ever, and JAX ends the others without saying which one is
missing. So each process writes a beat into the store of the coordination service every few seconds, with the
number of the last step, and looks at the others' beats. That goes on in threads of its own: the main thread
may be inside a collective that never returns, which only the end of the process can leave.
"""

import atexit
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from jax._src import distributed  # the store has no public name

from si_jax.runtime import terminal

STATUS = terminal.LOST
# A process whose threads live but whose main thread stands still while another, steps ahead, waits for it, is
# given so many timeouts: its disk may be slow. In its first steps it may compile what others have.
STALLS, FIRST_STEPS = 5, 10
_current: '_Watchdog | None' = None


def start(rank: int, count: int, timeout: float) -> None:
    """Begins to watch; a process that gives no sign of life for `timeout` seconds ends this one."""
    global _current
    _current = _Watchdog(rank, count, timeout)


def at_step(step: int) -> None:
    """Notes how far this process is, for the message of the others."""
    if _current:
        _current.step = step


def at_checkpoint(step: int) -> None:
    """Notes that a checkpoint is whole, for the message of a process that ends for another."""
    if _current:
        _current.checkpoint = step


def wait_for_verdict() -> None:
    """Waits as long as it takes to find a lost process; then this one has ended."""
    if _current:
        time.sleep(_current.timeout + 3 * _current.every)


def leave(status: int, why: str) -> NoReturn:
    """Tells the others why this process ends, and ends it without waiting for them."""
    if _current:
        _current.leave(why)
    _exit(status)


def leave_in_order(status: int, why: str) -> None:
    """Returns when all processes are here, so that they end in order; else as `leave`, after the timeout."""
    if _current and not _current.meet():
        leave(status, why)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Watchdog:
    def __init__(self, rank: int, count: int, timeout: float):
        self.step, self.timeout, self.me, self.count = 0, timeout, rank, count
        self.every = min(timeout / 8, 5.0)
        self.client: Any = distributed.global_state.client
        self.leaving = False
        self.checkpoint: int | None = None
        now = time.monotonic()
        # By rank: the last beat, and when it was new. That the store answers is the first process's beat too.
        self.beats: dict[int, tuple[str, float]] = {rank: ('', now) for rank in range(count)}
        # By rank: the last step, and when it was new.
        self.steps: dict[int, tuple[int, float]] = {rank: (0, now) for rank in range(count)}
        self.done: set[int] = set()
        self.answered = now
        for loop in (self._beat, self._judge):
            threading.Thread(target=loop, name=f'watchdog {loop.__name__}', daemon=True).start()
        atexit.register(self._publish, 'done', '')  # before JAX's own, which waits for the others
        if rank > 0:
            self._explain_abort()

    def leave(self, why: str) -> None:
        self.leaving = True
        thread = threading.Thread(target=self._publish, args=('left', why), daemon=True)
        thread.start()
        thread.join(self.every)
        if self.me == 0:
            time.sleep(2.5 * self.every)  # its end is that of the store, in which the others read why

    def meet(self) -> bool:
        self._publish('done', '')
        until = time.monotonic() + self.timeout
        while len(self.done | {self.me}) < self.count and time.monotonic() < until:
            time.sleep(self.every / 4)
        return len(self.done | {self.me}) == self.count

    def _publish(self, what: str, text: str) -> None:
        try:
            self.client.key_value_set(f'si_jax/peer/{self.me}/{what}', text, allow_overwrite=True)
        except Exception:  # the store is gone: so is the first process, and nobody could read this
            pass

    def _beat(self) -> None:
        number = 0
        while not self.leaving:
            number += 1
            self._publish('beat', json.dumps([number, self.step, socket.gethostname()]))
            try:
                entries = self.client.key_value_dir_get('si_jax/peer')
            except Exception:  # no answer: the other thread counts the seconds
                entries = []
            now = time.monotonic()
            for key, text in entries:
                rank, what = key.split('/')[-2:]
                self._receive(int(rank), what, text, now)
            time.sleep(self.every)

    def _receive(self, rank: int, what: str, text: str, now: float) -> None:
        if what == 'beat' and (step := json.loads(text)[1]) != self.steps[rank][0]:
            self.steps[rank] = step, now
        if rank == self.me:
            self.answered = now
        elif what == 'beat' and self.beats[rank][0] != text:
            self.beats[rank] = text, now
        elif what == 'done':
            self.done.add(rank)
        elif what == 'left':
            self._end(rank, text)

    def _judge(self) -> None:
        before = time.monotonic()
        while not self.leaving:
            time.sleep(self.every / 2)
            now = time.monotonic()
            if now - before > 2 * self.every:  # this process itself was stopped: what it missed says nothing
                self.beats = {rank: (beat, now) for rank, (beat, _) in self.beats.items()}
                self.steps = {rank: (step, now) for rank, (step, _) in self.steps.items()}
                self.answered = now
            before = now
            if now - self.answered > self.timeout:
                self._end(0, f'gave no sign of life for {self.timeout:g} s')
            for rank, (_, seen) in self.beats.items():
                if rank not in (self.me, *self.done) and now - seen > self.timeout:
                    self._end(rank, f'gave no sign of life for {self.timeout:g} s')
            self._judge_steps(now)

    def _judge_steps(self, now: float) -> None:
        last, limit = max(step for step, _ in self.steps.values()), STALLS * self.timeout
        if any(now - moved <= limit for _, moved in self.steps.values()):
            return
        for rank, (step, _) in self.steps.items():
            if rank != self.me and rank not in self.done and FIRST_STEPS <= step < last:
                self._end(rank, f'stood still for {limit:g} s while others wait at step {last}')

    def _end(self, rank: int, why: str) -> None:
        if not self.leaving:
            os.write(2, self._message(rank, why).encode())
            self.leave(f'stopped because of process {rank}, which {why}')
            os._exit(STATUS)

    def _message(self, rank: int, why: str) -> str:
        _, step, host = json.loads(self.beats[rank][0] or '[0, 0, "?"]')
        kept = '' if self.checkpoint is None else f'The checkpoint of step {self.checkpoint} is whole: '
        return (
            f'si_jax: process {rank} of {self.count} (on {host}, last at step {step}) {why}. Process '
            f'{self.me} stops. {kept}{"start" if kept else "Start"} all again with the same command\n'
        )

    def _explain_abort(self) -> None:
        """Says that the first process is gone before JAX aborts this one, which it does at once."""
        host, _, port = str(distributed.global_state.coordinator_address).rpartition(':')

        def explain(number: int) -> None:
            try:
                socket.create_connection((host.strip('[]'), int(port)), self.every).close()
            except OSError:
                os.write(2, self._message(0, 'is gone').encode())
                os._exit(STATUS)
            ctypes.CDLL(None).signal(signal.SIGABRT, None)  # it was something else: abort() goes on

        # A handler of Python's would run in the main thread, later. abort() calls this one in its own.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)
