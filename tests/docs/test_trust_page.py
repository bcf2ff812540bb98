"""docs/trust.md names a test for each guarantee, and these tests exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'trust.md').read_text()


def test_every_line_names_tests_that_exist():
    rows = [line for line in PAGE.split('<!-- selfcheck -->')[0].splitlines() if line.startswith('| ')]
    rows = [line for line in rows if not line.startswith('| what holds')]
    assert len(rows) >= 20
    for row in rows:
        named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', row)
        assert named, f'no test is named: {row[:80]}'
        for file, test in named:
            assert f'def {test}(' in (ROOT / file).read_text(), f'{file} has no {test}'


def test_the_command_of_the_page_runs_every_test_that_it_names():
    (command,) = re.findall(r'^    python -m pytest -q (.+)$', PAGE, re.MULTILINE)
    given = command.split()
    assert all((ROOT / path).exists() for path in given)
    for file in re.findall(r'`(tests/[\w/]+\.py)(?:::\w+)?`', PAGE):
        assert any(file == path or file.startswith(f'{path}/') for path in given), file


def test_the_place_of_the_selfcheck_is_there():
    assert PAGE.index('<!-- selfcheck -->') < PAGE.index('<!-- end of selfcheck -->')
