"""Manners that all commands share: exit status, what to type after an interruption, and sparing colours."""

import argparse
import contextlib
import difflib
import fractions
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from absl import flags as absl_flags
from absl import logging

from si_jax.errors import InputError
from si_jax.storage.files import no_room

OK, FAILED, BAD_INPUT, LOST = 0, 1, 2, 3
WIDTH = 80  # of tables and of what --help prints
_BOLD, _RED, _YELLOW = '1', '31', '33'
# What stands out in a table: the accuracy that counts, and what a reader must not miss.
_COLOURS = (
    (r'^(worst case(?!:)|verdict: PASS)\b.*', _BOLD),
    (r'^(warning: |warn |few |verdict: (WARN|FEW)\b).*(\n {2,}.*)*', _YELLOW),
    (r'^(FAIL |verdict: FAIL\b).*(\n {2,}.*)*', _RED),
)


# How a command is named in what it prints: as typed in a checkout, and as the installed command spells it.
_SPELLINGS = (
    (r'(?:python )?\bevaluate\.py (audit|compare)\b', r'si-jax \1'),
    (r'(?:python )?\b(train|evaluate|report)\.py\b', r'si-jax \1'),
    (r'\bpython -m si_jax(?:\.cli)?\.(plan|launch|export|zoo)\b', r'si-jax \1'),
    (r'(?<=--config=)configs/(\w+)\.py', r'\1'),
)
_spelled: list[str] = []  # the name of the installed command, once it runs
_from_python: ContextVar[bool] = ContextVar('si_jax_from_python', default=False)


def installed_as(name: str) -> None:
    """From now on what is printed names the verbs of this command in place of scripts of a checkout."""
    _spelled[:] = [name]


def spelled(text: str) -> str:
    """The text with its commands as the one that runs would be typed: `train.py` or `si-jax train`."""
    for pattern, words in _SPELLINGS if _spelled else ():
        text = re.sub(pattern, words.replace('si-jax', _spelled[0]), text)
    return text


@contextlib.contextmanager
def from_python() -> Iterator[None]:
    """Within this context no command runs, but a call from Python: what `advice` says is for its caller."""
    token = _from_python.set(True)
    try:
        yield
    finally:
        _from_python.reset(token)


def advice(text: str) -> str:
    """Advice that names flags of train.py; `from_python` it names the fields and arguments instead."""
    if not _from_python.get():
        return text
    return text.replace('--config.', 'config.').replace('--workdir', 'workdir')


def recipe_files() -> dict[str, Path]:
    """The files of the recipes by name: in the package where it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside, beside = package / 'configs', package.parent / 'configs'
    found = (inside if inside.is_dir() else beside).glob('[a-z]*.py')
    return {path.stem: path for path in sorted(found)}


class Stopped(SystemExit):
    """A signal (SIGINT or SIGTERM) ended the command, and its exit status is 128 + the signal's number."""

    def __init__(self, name: str):
        super().__init__(128 + signal.Signals[name])
        self.name = name


def exit_status(
    failed: str,
    stopped: str = 'the same command goes on from what was finished',
    *,
    several: bool = False,
) -> str:
    """The lines about exit status for --help: when it is 1, and what a signal leaves behind.

    `several` says whether several processes can run the command.
    """
    meaning = {
        '0': 'done',
        '1': failed,
        '2': 'bad input: a wrong flag, value or file; the message names the remedy',
        **({str(LOST): 'another process of the run was lost; the message names it'} if several else {}),
        '130, 143': f'stopped by Ctrl-C, by SIGTERM; {stopped}',
    }
    lines = [line for number, words in meaning.items() for line in wrapped(f'  {number:<10}', words)]
    return '\n'.join(['exit status:', *lines])


def stopped(name: str, kept: str) -> Stopped:
    """Says on standard error what a signal left behind and which command goes on; returns what to raise."""
    print(f'{name}: {kept}. To go on:\n    {shlex.join(sys.orig_argv)}', file=sys.stderr, flush=True)
    return Stopped(name)


@contextlib.contextmanager
def resumable(kept: str) -> Iterator[None]:
    """What is inside may be stopped at any time by Ctrl-C or SIGTERM, as it keeps what is finished.

    Then it raises Stopped, and `kept` tells the reader what is left.
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
    """The exit status of a command; a wrong input, a full disk and Ctrl-C are one line on standard error."""
    quieten()
    try:
        return command() or OK
    except (Exception, KeyboardInterrupt) as error:
        status = ended_by(name, error)
        if status is None:
            raise
        return status


def quieten() -> None:
    """Hides what libraries warn of: it comes before an error of ours that says what to do."""
    logging.set_verbosity(logging.ERROR)


def ended_by(name: str, error: BaseException) -> int | None:
    """The exit status of a command that an error ended, which is one line on standard error.

    None, and no line, for an error that nobody expected.

    Raises:
        Stopped: By Ctrl-C.
    """
    match error:
        case InputError():
            print(spelled(f'{name}: {error}'), file=sys.stderr)
            return BAD_INPUT
        case OSError():  # disk full, for example: what was written before is whole
            reason = error if error.filename or not error.strerror else error.strerror
            if no_room(error) and 'same command' not in str(error):
                reason = f'{reason}. Make room, or raise the limit on the size of files (ulimit -f), and run '
                reason += 'the same command again'
            print(spelled(f'{name}: {reason}'), file=sys.stderr)
            return FAILED
        case KeyboardInterrupt():
            raise stopped('SIGINT', 'stopped at once') from None
    from si_jax.runtime import compilation_cache  # with JAX, which a command may not need

    if not isinstance(error, Exception) or not compilation_cache.is_of_another_program(error):
        return None
    words = str(error).splitlines()[0]
    print(
        f'{name}: JAX ran another program than it was asked for ({words.strip(":")})',
        end='',
        file=sys.stderr,
    )
    print(compilation_cache.suspected(), file=sys.stderr)
    return FAILED


def wrapped(start: str, text: str) -> list[str]:
    """The text in lines of 80 columns, indented below what it starts with."""
    return textwrap.wrap(start + text, WIDTH, subsequent_indent=' ' * len(start), break_on_hyphens=False)


def listed(title: str, names: Iterable[str]) -> str:
    """A title and names, for --help."""
    return '\n'.join(wrapped(f'  {title:<12}', ', '.join(names)))


def parser(prog: str, usage: str, about: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose --help shows these texts as they are; `prog` stands before its messages."""
    return argparse.ArgumentParser(
        prog=spelled(prog),
        usage=spelled(usage),
        description=spelled(about.strip()),
        epilog=spelled(epilog.strip()),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=24, width=WIDTH
        ),
    )


class Flag(NamedTuple):
    """A flag of a command. --help gives its default too, unless there is none or the text has one."""

    metavar: str | None
    help: str
    type: Callable[[str], Any] = str  # bool: the flag takes no value
    default: Any = None
    required: bool = False
    const: Any = None  # what it stands for without a value; None where it needs one


def add(flags: Any, table: Mapping[str, Flag]) -> None:
    """Adds flags by their names to a parser, or to a group of one."""
    for name, flag in table.items():
        if flag.type is bool:
            flags.add_argument(f'--{name}', action='store_true', help=spelled(flag.help))
        else:
            shown = flag.default is not None and '(default' not in flag.help
            words = spelled(flag.help) + ' (default: %(default)s)' * shown
            given = flag._replace(help=words)._asdict()
            given |= {} if given.pop('const') is None else {'nargs': '?', 'const': flag.const}
            flags.add_argument(f'--{name}', **given)


def parse_config(values: absl_flags.FlagValues, argv: list[str]) -> None:
    """Sets flags of absl, one of which is --config=FILE of ml_collections, from the command line.

    Raises:
        InputError: A flag is wrong, its file or a field is not there, or the config refuses a value.
    """
    argv = [
        f'--config={_config_file(one.removeprefix("--config="))}' if one.startswith('--config=') else one
        for one in argv
    ]
    try:
        rest = values(argv)
    except (AttributeError, KeyError) as error:  # a field that the config does not have
        # Some come as a repr, in which quotes and new lines are escaped.
        words = re.sub(r'\\(n|[\'"])', lambda found: {'n': ' '}.get(found[1], found[1]), str(error.args[0]))
        quoted = words[:1] in ('"', "'") and words[:1] == words[-1:]
        words = ' '.join((words[1:-1] if quoted else words).split())
        raise InputError(f'no such config field: {words}') from error
    except (absl_flags.Error, ValueError) as error:
        # What a config refuses comes as text, with a traceback before it.
        *_, reason = str(error).split('InputError: ')
        raise InputError(' '.join(reason.split())) from error
    if len(rest) > 1:
        raise InputError(f'{rest[1]!r} is not a flag: did you mean --{rest[1].lstrip("-")}?')
    if values['config'].value is None:
        raise InputError('give --config=FILE, such as --config=configs/tradessi_cifar10.py')


def _config_file(given: str) -> str:
    """The file that --config names, a recipe by its name too, and what follows its colon."""
    file, colon, options = given.partition(':')
    if Path(file).is_file():
        return given
    recipes = recipe_files()
    name = Path(file).stem
    if file in (name, f'configs/{name}.py') and name in recipes:
        return f'{recipes[name]}{colon}{options}'
    near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.5)
    near = near if file == name else [f'configs/{one}.py' for one in near]
    hint = f'did you mean {" or ".join(near)}?' if near else f'known: {", ".join(recipes)}'
    raise InputError(f'--config={file} is neither a file nor one of the {len(recipes)} recipes: {hint}')


def titled(name: str) -> str:
    """The name of a row of a result as a table has it; settings in parentheses stay as they are written."""
    return name if '(' in name else name.replace('_', ' ')


def named(name: str, columns: str, width: int) -> list[str]:
    """A row of a table: a name that is too long for its column stands on a line of its own."""
    if len(name) < width:
        return [f'{name:<{width}}{columns}']
    return [*textwrap.wrap(name, WIDTH), f'{"":<{width}}{columns}']


def shell_lines(command: str) -> list[str]:
    """A command in lines of 80 columns that a shell reads as one, broken before flags."""
    lines = ['']
    for word in re.split(r' (?=--)', command):
        if lines[-1] and len(f'{lines[-1]} {word}') > WIDTH - 2:
            lines[-1] += ' \\'
            lines.append(f'    {word}')
        else:
            lines[-1] += f' {word}' if lines[-1] else word
    return lines


def show(text: str, file: TextIO | None = None) -> None:
    """Prints a table; on a terminal, unless NO_COLOR is set, with what must not be missed in colour."""
    file = file or sys.stdout
    if file.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb':
        for pattern, colour in _COLOURS:
            text = re.sub(pattern, f'\x1b[{colour}m\\g<0>\x1b[0m', text, flags=re.MULTILINE)
    print(text, file=file)


def fraction(text: str) -> float:
    """The number that '8/255', '0.031' or '1e-2' stands for.

    Raises:
        ValueError: It stands for none.
    """
    try:
        return float(fractions.Fraction(text))
    except ZeroDivisionError:
        raise ValueError(f'{text!r} divides by zero') from None
