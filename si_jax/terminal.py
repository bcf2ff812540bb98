"""Manners that all commands share: exit status, what to type after an interruption, and sparing colours."""

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from si_jax.errors import InputError

OK, FAILED, BAD_INPUT = 0, 1, 2
WIDTH = 80  # of tables and of what --help prints
_BOLD, _RED, _YELLOW = '1', '31', '33'
# What stands out in a table: the accuracy that counts, and what a reader must not miss.
_COLOURS = (
    (r'^(worst case|verdict: PASS)\b.*', _BOLD),
    (r'^(warning: |warn |verdict: WARN\b).*(\n {2,}.*)*', _YELLOW),
    (r'^(FAIL |verdict: FAIL\b).*(\n {2,}.*)*', _RED),
)


class Stopped(SystemExit):
    """A signal ended the command, and what was finished is kept. Its exit status is 128 + the signal's number.

    Attributes:
        name: `'SIGINT'` or `'SIGTERM'`.
    """

    def __init__(self, name: str):
        super().__init__(128 + signal.Signals[name])
        self.name = name


def exit_status(failed: str, stopped: str = 'what was finished is kept: the same command goes on') -> str:
    """The lines about exit status for --help.

    Args:
        failed: When it is 1.
        stopped: What a signal leaves behind.
    """
    return (
        'exit status:\n'
        f'  0    done\n'
        f'  1    {failed}\n'
        f'  2    bad input: a wrong flag, value or file; the message names the remedy\n'
        f'  130  stopped by Ctrl-C, and 143 by SIGTERM: {stopped}'
    )


def command_line() -> str:
    """What was typed to start this process, to be typed again."""
    return shlex.join(sys.orig_argv)


def stopped(name: str, kept: str) -> Stopped:
    """Says on standard error what a signal left behind and which command goes on; returns what to raise."""
    print(f'{name}: {kept}. To go on:\n    {command_line()}', file=sys.stderr, flush=True)
    return Stopped(name)


@contextlib.contextmanager
def resumable(kept: str) -> Iterator[None]:
    """What is inside may be stopped at any moment by Ctrl-C or SIGTERM, as it keeps what is finished.

    Args:
        kept: What a signal leaves behind, for the reader.

    Raises:
        Stopped: One of the signals came.
    """

    def handle(number: int, frame: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    in_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    before = signal.signal(signal.SIGTERM, handle) if in_main else None
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        raise stopped(stop.name if isinstance(stop, Stopped) else 'SIGINT', kept) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def run(name: str, command: Callable[[], int | None]) -> int:
    """The exit status of a command; a wrong input is one line on standard error, and so is Ctrl-C."""
    try:
        return command() or OK
    except InputError as error:
        print(f'{name}: {error}', file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        raise stopped('SIGINT', 'stopped at once') from None


def show(text: str, file: TextIO | None = None) -> None:
    """Prints a table; on a terminal, unless NO_COLOR is set, with what must not be missed in colour."""
    file = file or sys.stdout
    if file.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb':
        for pattern, colour in _COLOURS:
            text = re.sub(pattern, rf'\x1b[{colour}m\g<0>\x1b[0m', text, flags=re.MULTILINE)
    print(text, file=file)
