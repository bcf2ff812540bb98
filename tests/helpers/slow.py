"""Which test files are slow, and what the slowest tests pay for.

tests/slow.txt holds the seconds and the name of each slow file, from a run of the whole suite. A run names
those that became slow. A new file is quick until it is written there. `make test-quick` leaves slow ones out,
and all others run after them, so that no worker is left with a slow file at the end.
`pytest --slowest=50` ends with the slowest tests and where their seconds went.
`pytest --spent=FILE` writes what the run paid for to a JSON file, of which docs/performance.md shows one.
"""

import collections
import json
import os
import pathlib
import resource
import time
from collections.abc import Generator

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 12  # seconds of a file, with what its tests share
# What JAX says of its own time. A traced function that calls another counts the other's time too.
STAGES = {
    '/jax/core/compile/jaxpr_trace_duration': 'tracing',
    '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lowering',
    '/jax/core/compile/backend_compile_duration': 'compiling',
}
COLUMNS = ('seconds', *STAGES.values(), 'processor', 'children')

spent: collections.Counter[str] = collections.Counter()
before: dict[str, float] = {}  # what was spent when the last report was made
BEGAN = time.time()


def listen(event: str, seconds: float, **_: object) -> None:
    if event in STAGES:
        spent[STAGES[event]] += seconds  # type: ignore[assignment]


def files() -> dict[str, float]:
    """Seconds by path."""
    lines = (ROOT / 'tests' / 'slow.txt').read_text().splitlines()
    pairs = (line.split() for line in lines if not line.startswith('#'))
    return {path: float(seconds) for seconds, path in pairs}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--slowest', type=int, default=0, help='end with so many of the slowest tests and what they pay for'
    )
    parser.addoption('--spent', type=pathlib.Path, help='a JSON file for what the tests paid for, in seconds')


def pytest_configure() -> None:
    jax.monitoring.register_event_duration_secs_listener(listen)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = files()
    seconds = {item: slow.get(item.path.relative_to(ROOT).as_posix(), 0) for item in items}
    for item in items:
        if seconds[item]:
            item.add_marker('slow')
    items.sort(key=lambda item: -seconds[item])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Each report (of a set-up, a test, a tear-down) carries what was spent since the one before."""
    report = yield
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = spent | {'processor': time.process_time(), 'children': children.ru_utime + children.ru_stime}
    report.user_properties.append(('spent', {name: total[name] - before.get(name, 0) for name in total}))
    before.update(total)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    of_files: collections.Counter[str] = collections.Counter()
    of_tests: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        if isinstance(report, pytest.TestReport):
            of_files[report.nodeid.partition('::')[0]] += report.duration  # type: ignore[assignment]
            of_tests[report.nodeid].update({'seconds': report.duration})  # type: ignore[dict-item]
            of_tests[report.nodeid].update(dict(report.user_properties).get('spent', {}))  # type: ignore[arg-type]
    if grown := [
        name for name, _ in of_files.most_common() if of_files[name] > LIMIT and name not in files()
    ]:
        terminalreporter.section(f'files that took more than {LIMIT} s: for tests/slow.txt if they always do')
        for name in grown:
            terminalreporter.line(f'{of_files[name]:.0f} {name}')
    if count := terminalreporter.config.getoption('slowest'):
        terminalreporter.section(f'the slowest {count} tests: {", ".join(COLUMNS)}')
        for name in sorted(of_tests, key=lambda one: -of_tests[one]['seconds'])[:count]:
            terminalreporter.line(
                ' '.join(f'{of_tests[name][column]:9.1f}' for column in COLUMNS) + f' {name}'
            )
    if file := terminalreporter.config.getoption('spent'):
        file.write_text(json.dumps(summary(of_tests, time.time() - BEGAN), indent=2) + '\n')


def summary(of_tests: dict[str, collections.Counter[str]], wall: float) -> dict[str, object]:
    """Seconds of all tests, and of the files and the tests that took most of the processors.

    `processor` is the time on all cores of the processes that run the tests, `children` that of the commands
    that tests start; `tracing`, `lowering` and `compiling` are parts of the first.
    """
    of_files: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, seconds in of_tests.items():
        of_files[name.partition('::')[0]].update(seconds)
    whole: collections.Counter[str] = sum(of_files.values(), collections.Counter())

    def rounded(seconds: collections.Counter[str]) -> dict[str, float]:
        return {column: round(seconds[column], 1) for column in COLUMNS[1:]}

    def most(of: dict[str, collections.Counter[str]]) -> dict[str, dict[str, float]]:
        slowest = sorted(of, key=lambda name: -of[name]['processor'] - of[name]['children'])
        return {name: rounded(of[name]) for name in slowest[:50]}

    return {
        'count': len(of_tests),
        'cores': os.cpu_count(),
        'wall': round(wall, 1),
        'spent': rounded(whole),
        'files': most(of_files),
        'slowest': most(of_tests),
    }
