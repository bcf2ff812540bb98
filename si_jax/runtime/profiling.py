"""Profiles of a few steps, once they are compiled, for TensorBoard and Perfetto (docs/performance.md).

A folder gets `plugins/profile/<time>/` with an `xplane.pb` for TensorBoard and a `perfetto_trace.json.gz` for
https://ui.perfetto.dev.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax

from si_jax.errors import InputError

# The first call of a training step compiles it; the second finds everything where the first left it.
SKIPPED, TRACED = 2, 3
_wanted: ContextVar['Profile | None'] = ContextVar('si_jax_profile', default=None)


class Profile:
    """A profile to be written to a folder, which is made if it does not exist.

    Raises:
        InputError: It is a file, or cannot be made.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f'--profile={folder} cannot be made ({error.strerror}): name a folder') from None
        self.done = False
        self._calls = 0
        self._under_way = contextlib.ExitStack()

    def tick(self, results: Any) -> None:
        """Tells of a step that was started, with what it returns: the first are skipped, some traced."""
        self._calls += 1
        if self.done or self._calls not in (SKIPPED, SKIPPED + TRACED):
            return
        jax.block_until_ready(results)
        if self._calls == SKIPPED:
            self._under_way.enter_context(self.traced())
        else:
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        self._under_way.close()

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Traces what is inside, and is done then."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's own calls would fill the trace
        with jax.profiler.trace(str(self.folder), create_perfetto_trace=True, profiler_options=options):
            yield
        self.done = True

    def report(self) -> str:
        """One line on what became of it."""
        if self.done:
            return f'profile written to {self.folder}'
        return f'no profile in {self.folder}: nothing was left to trace after compilation'


@contextlib.contextmanager
def wanted(folder: str | Path | None) -> Iterator[Profile | None]:
    """Within this context the first attack of an evaluation is profiled; None: nothing is."""
    profile = None if folder is None else Profile(folder)
    token = _wanted.set(profile)
    try:
        yield profile
    finally:
        _wanted.reset(token)


def warm_up(call: Callable[[], Any]) -> None:
    """If a profile is wanted here and not done: calls once to compile, and once more to trace.

    It comes before the work itself, of which it is no part; `call` waits for its results.
    """
    profile = _wanted.get()
    if profile is not None and not profile.done:
        call()
        with profile.traced():
            call()
