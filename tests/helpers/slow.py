"""Which test files are slow: `make test-quick` leaves them out, and a run names those that became so.

tests/slow.txt holds the seconds and the name of each, from a run of the whole suite. A new file is quick
until it is written there.
"""

import collections
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 12  # seconds of a file, with what its tests share


def files() -> dict[str, float]:
    """Seconds by path."""
    lines = (ROOT / 'tests' / 'slow.txt').read_text().splitlines()
    pairs = (line.split() for line in lines if not line.startswith('#'))
    return {path: float(seconds) for seconds, path in pairs}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = files()
    for item in items:
        if item.path.relative_to(ROOT).as_posix() in slow:
            item.add_marker('slow')


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: collections.Counter[str] = collections.Counter()
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition('::')[0]] += report.duration  # type: ignore[assignment]
    if grown := [name for name, _ in seconds.most_common() if seconds[name] > LIMIT and name not in files()]:
        terminalreporter.section(f'files that took more than {LIMIT} s: for tests/slow.txt if they always do')
        for name in grown:
            terminalreporter.line(f'{seconds[name]:.0f} {name}')
