"""How far a long computation is, and how long it will still take; all of it on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TextIO

from tqdm import tqdm

GRADIENT = 3  # the cost of a gradient in forward passes, where work is counted in these
_PERCENT = '{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}'


class Progress(Protocol):
    """What `progress` returns: a context manager that counts the units of work that are done."""

    def update(self, n: int = 1) -> Any:
        """So many units were done."""

    def skip(self, n: int) -> Any:
        """So many units need not be done: they leave the total, and say nothing about the speed."""

    def set_postfix(self, **values: Any) -> None:
        """What is shown behind the time left. Another text tells of new work, as `pause` does."""

    def pause(self) -> None:
        """The time until the next update says nothing about the speed: a program compiles, for example."""

    def close(self) -> None: ...
    def __enter__(self) -> 'Progress': ...
    def __exit__(self, *args: Any) -> Any: ...


def progress(
    total: int | None,
    description: str,
    unit: str | None = None,
    *,
    initial: int = 0,
    passing: bool = False,
    seconds: float = 30.0,
    file: TextIO | None = None,
) -> Progress:
    """A progress bar with the time left on a terminal and in a notebook, plain lines elsewhere.

    Args:
        total: How many units there are, None when that is not known.
        description: What is being done, for example `'epoch 3/120'`.
        unit: What is counted, in the singular; None if only the share of the total says anything.
        initial: How many units were done before, as after a resume.
        passing: Whether it is a part of something else: it is shown only where it takes seconds, and leaves
            nothing behind on a terminal.
        seconds: Elsewhere than on a terminal: the least time between two lines. A last one comes at the end.
        file: Where to write; standard error by default.
    """
    file = file or sys.stderr
    if file.isatty() or (file is sys.stderr and in_notebook()):
        shown: dict[str, Any] = {'unit': unit} if unit else {'bar_format': _PERCENT}
        if passing:
            shown |= {'leave': False, 'delay': 3}
        return _Bar(total=total, desc=description, initial=initial, file=file, dynamic_ncols=True, **shown)
    return _PlainLines(total, description, unit, initial, seconds, file, passing)


def wanted(asked: bool | None) -> bool:
    """Whether to show progress: as asked, and if nobody said, on a terminal and in a notebook."""
    return sys.stderr.isatty() or in_notebook() if asked is None else asked


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, found out without importing IPython."""
    ipython = sys.modules.get('IPython')
    return ipython is not None and hasattr(ipython.get_ipython(), 'kernel')


def silent() -> Progress:
    """A progress that shows nothing."""
    return _Bar(disable=True)


class Pace:
    """Units a second, of the time that was spent on units.

    The time until the first update does not count, nor that after a `pause`: most of it goes into compiling.
    """

    def __init__(self) -> None:
        self.units, self.seconds = 0, 0.0
        self._last: float | None = None
        self._texts: list[str] = []

    def update(self, n: int) -> None:
        """So many units were done since the last call."""
        now = time.monotonic()
        if self._last is not None:
            self.units, self.seconds = self.units + n, self.seconds + now - self._last
        self._last = now

    def pause(self) -> None:
        """What comes next does not count."""
        self._last = None

    def about(self, values: dict[str, Any]) -> None:
        """What is being done, as in `Progress.set_postfix`."""
        texts = [value for value in values.values() if isinstance(value, str)]
        if texts != self._texts:
            self.pause()
        self._texts = texts

    @property
    def rate(self) -> float:
        """Units a second; 0 while it is not known."""
        return self.units / self.seconds if self.seconds > 0 else 0.0


class Part:
    """A part of the work that is under way."""

    def __init__(self, bar: Progress, units: int):
        self._bar, self._units = bar, units
        self.done = 0  # units

    def to(self, share: float) -> None:
        """So much of the part is done, from 0 to 1."""
        now = round(share * self._units)
        if now > self.done:
            self._bar.update(now - self.done)
            self.done = now


# The progress of whoever called, so that no function has to take it as an argument. A thread sees it if it is
# run in a copy of the context that started it (contextvars.copy_context), as `devices.side_by_side` does.
_shown: ContextVar[Progress | None] = ContextVar('si_jax_progress', default=None)
_part: ContextVar[Part | None] = ContextVar('si_jax_part', default=None)


def current() -> Progress:
    """The progress that is shown here; a silent one if there is none."""
    shown = _shown.get()
    return silent() if shown is None else shown


def done(share: float) -> None:
    """So much of the part of the work that is under way here is done, from 0 to 1."""
    under_way = _part.get()
    if under_way is not None:
        under_way.to(share)


@contextlib.contextmanager
def showing(bar: Progress) -> Iterator[Progress]:
    """Within this context `bar` is the `current` progress; it is closed at the end."""
    token, within = _shown.set(bar), _part.set(None)
    try:
        with bar:
            yield bar
    finally:
        _shown.reset(token)
        _part.reset(within)


@contextlib.contextmanager
def part(units: int) -> Iterator[Part]:
    """A part of the work of so many units; those that were not done in it at its end are skipped.

    with part(300):
        done(0.5)
    """
    under_way = Part(current(), units)
    token = _part.set(under_way)
    try:
        yield under_way
    finally:
        _part.reset(token)
    current().skip(units - under_way.done)


@contextlib.contextmanager
def passing(units: int, description: str, shown: bool = True) -> Iterator[Callable[[float], None]]:
    """The progress of a step that may take long, as a function of the share that is done.

    with passing(1000, 'clean images') as progressed:
        progressed(0.5)
    """
    bar = progress(units, description, passing=True) if shown else silent()
    with showing(bar), part(units) as under_way:
        yield under_way.to


class _Bar(tqdm):
    def __init__(self, **options: Any):
        self._pace, self._closing = Pace(), False
        super().__init__(**options)

    def update(self, n: int = 1) -> Any:
        self._pace.update(n)
        return super().update(n)

    def skip(self, n: int) -> None:
        if self.total is not None and n:
            self.total -= n
            self.refresh()

    def set_postfix(self, **values: Any) -> None:
        self._pace.about(values)
        super().set_postfix(**values)

    def pause(self) -> None:
        self._pace.pause()

    @property
    def format_dict(self) -> dict[str, Any]:
        """What is shown: `?` for the time left while it is not known, and once all units are done."""
        shown = super().format_dict
        all_done = self.total is not None and self.n >= self.total
        return shown | ({} if self._closing else {'rate': 0 if all_done else self._pace.rate})

    def close(self) -> None:
        self._closing = True
        super().close()


class _PlainLines:
    """Progress for log files: `epoch 3/120: 128/391 steps, 2.10 steps/s, 02:05 left, loss=0.53`."""

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str | None,
        initial: int,
        seconds: float,
        file: TextIO,
        passing: bool,
    ):
        self._total, self._description, self._unit = total, description, unit
        self._done, self._pace = initial, Pace()
        self._seconds, self._file = seconds, file
        self._start = self._printed = time.monotonic()
        self._values: dict[str, Any] = {}
        self._passing, self._closed = passing, False

    def update(self, n: int = 1) -> None:
        self._done += n
        self._pace.update(n)
        if time.monotonic() - self._printed >= self._seconds:
            self._print()

    def skip(self, n: int) -> None:
        if self._total is not None:
            self._total -= n

    def set_postfix(self, **values: Any) -> None:
        self._values = values
        self._pace.about(values)

    def pause(self) -> None:
        self._pace.pause()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._passing:
                self._print()

    def __enter__(self) -> '_PlainLines':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self) -> None:
        self._printed = time.monotonic()
        left = None if self._total is None else self._total - self._done
        rate, parts = self._pace.rate, []
        if self._unit:
            counted = self._done if self._total is None else self._total
            of = '' if self._total is None else f'/{self._total}'
            parts.append(f'{self._done}{of} {self._unit}{"s" * (counted != 1)}')
            if rate:
                pace = f'{rate:.2f} {self._unit}s/s' if rate >= 1 else f'{1 / rate:.1f} s a {self._unit}'
                parts.append(pace)
        elif self._total is not None:
            share = int(100 * self._done / self._total) if self._total else 100
            parts.append(f'{share if self._closed else min(share, 99)} %')
        if self._closed:
            parts.append(f'{tqdm.format_interval(self._printed - self._start)} in all')
        elif left is not None and left <= 0:
            parts.append('finishing')
        elif rate and left is not None:
            parts.append(f'{tqdm.format_interval(max(left / rate, 1))} left')
        for name, value in self._values.items():
            parts.append(f'{name}={value:.4g}' if isinstance(value, float) else f'{name}={value}')
        print(f'{self._description}: {", ".join(parts)}', file=self._file, flush=True)
