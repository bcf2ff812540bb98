"""The tree of the package: floors of folders, no rings, and doors for the commands that have moved.

A module of the package lies in a folder, and a folder on a floor. A module may import from its own floor and
from the floors below it, so that each folder can be read, tested and changed without those above it.
Imports inside functions count, and so does `importlib.import_module` with a name that is written there.
"""

import ast
import collections
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import slow

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    ('errors', 'storage', 'draws'),
    ('runtime', 'l1', 'threat', 'outputs', 'losses', 'objectives', 'memories', 'data'),
    ('models', 'attacks', 'interop'),
    ('evaluation', 'cost', 'defenses'),
    ('auditing', 'training'),
    ('zoo',),
    ('reports', 'paper'),
    ('cli', 'plan', 'launch', '__main__'),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Modules that have moved: each runs the new one, for a release. Module -> the command's new module.
DOORS = {
    'si_jax.plan': 'si_jax.cli.plan',
    'si_jax.launch': 'si_jax.cli.launch',
    'si_jax.zoo': 'si_jax.cli.zoo',
    'si_jax.interop.export': 'si_jax.cli.export',
    'si_jax.evaluation.conformance': 'benchmarks.conformance',
}


def module_name(path: Path, root: Path) -> str:
    """`si_jax.zoo.load` for si_jax/zoo/load.py, `si_jax.zoo` for its `__init__.py`."""
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, on any of Python's ways to write it."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = '.'.join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f'{start}.{one.name}') for one in node.names)
        elif isinstance(node, ast.Call) and node.args and _imports(node.func):
            if name := _start_of(node.args[0]):
                yield node.lineno, name


def _imports(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', '')
    return name in ('import_module', '__import__')


def _start_of(text: ast.expr) -> str:
    """The name that a string gives, or the start of it that an f-string gives; '' for anything else."""
    if isinstance(text, ast.JoinedStr):
        text = text.values[0]
    return text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ''


def arrows(root: Path) -> Iterator[tuple[str, str, str]]:
    """(room, imported room, where) for each import in the package that leaves its room."""
    for path in sorted(root.glob('si_jax/**/*.py')):
        room = module_name(path, root).split('.')[1:2]
        if not room:
            continue  # si_jax/__init__.py offers the whole house
        for line, name in imported(path, root):
            parts = name.split('.')
            if parts[0] == 'si_jax' and parts[1:2] != room:
                yield room[0], '.'.join(parts[1:2]) or 'si_jax', f'{path.relative_to(root)}:{line} {name}'


def too_high(root: Path) -> list[str]:
    """The imports of a higher floor, or of something that has none."""
    return [where for a, b, where in arrows(root) if FLOOR.get(b, len(FLOORS)) > FLOOR.get(a, -1)]


def rings(root: Path) -> list[list[str]]:
    """The sets of rooms that reach each other over imports."""
    next_rooms: dict[str, set[str]] = {}
    for a, b, _ in arrows(root):
        next_rooms.setdefault(a, set()).add(b)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = next_rooms.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {room: reached(room) for room in next_rooms}
    found = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in reach if a in reach[a]}
    return sorted(map(list, found))


def configs_imports(root: Path) -> list[str]:
    """Where the package imports the folder configs/, which is not part of what is installed."""
    return [
        f'{path.relative_to(root)}:{line} {name}'
        for path in sorted(root.glob('si_jax/**/*.py'))
        for line, name in imported(path, root)
        if name.split('.')[0] == 'configs'
    ]


def test_every_room_has_a_floor():
    rooms = {path.stem for path in ROOT.glob('si_jax/*') if path.suffix == '.py' or any(path.glob('*.py'))}
    assert rooms - {'__init__'} == set(FLOOR), 'give the new room a floor in FLOORS'


def test_no_room_imports_a_higher_floor():
    assert too_high(ROOT) == []


def test_no_ring_of_rooms():
    assert rings(ROOT) == []


def test_the_package_does_not_import_configs():
    assert configs_imports(ROOT) == []


def test_every_room_says_what_it_is_for():
    short = [
        str(path.parent.relative_to(ROOT))
        for path in sorted(ROOT.glob('si_jax/*/__init__.py'))
        if len((ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()) < 3
    ]
    assert short == [], 'a docstring of a folder says what may be in it and how its modules work together'


@pytest.mark.parametrize(
    'line',
    [
        'from si_jax.cli import evaluate',
        'import si_jax.cli.evaluate',
        'from si_jax import cli',
        'from .. import cli',
        'from ..cli.evaluate import main',
        "import importlib; importlib.import_module('si_jax.cli.evaluate')",
        "name = 'x'; __import__(f'si_jax.cli.{name}')",
        'def f():\n    from si_jax.cli import evaluate',
    ],
)
def test_an_import_of_a_higher_floor_is_found(tmp_path, line):
    write(tmp_path, 'si_jax/storage/one.py', line)
    assert len(too_high(tmp_path)) == 1


def test_a_room_without_a_floor_is_found(tmp_path):
    write(tmp_path, 'si_jax/storage/one.py', 'from si_jax import stairs')
    assert len(too_high(tmp_path)) == 1


def test_a_ring_on_one_floor_is_found(tmp_path):
    write(tmp_path, 'si_jax/runtime/one.py', 'from si_jax.data import load')
    write(tmp_path, 'si_jax/data/one.py', 'def f():\n    from si_jax import threat')
    write(tmp_path, 'si_jax/threat.py', 'from si_jax.runtime import one')
    assert too_high(tmp_path) == []
    assert rings(tmp_path) == [['data', 'runtime', 'threat']]


@pytest.mark.parametrize(
    'line',
    [
        'from configs import quickstart',
        'import configs.quickstart',
        "import importlib; importlib.import_module('configs.quickstart')",
        "name = 'x'; import importlib; importlib.import_module(f'configs.{name}')",
    ],
)
def test_an_import_of_configs_is_found(tmp_path, line):
    write(tmp_path, 'si_jax/paper/one.py', line)
    assert len(configs_imports(tmp_path)) == 1


def test_the_slow_files_are_there():
    assert not [name for name in slow.files() if not (ROOT / name).is_file()]


def test_what_the_tests_paid_for_is_added_up():
    def one(processor, **others):
        return collections.Counter({'processor': processor, **others})

    tests = {
        'a.py::one': one(1.0, tracing=0.25),
        'b.py::two': one(2.0, children=9.0),
        'a.py::three': one(3.0),
    }
    found = slow.summary(tests, 10.04)
    assert (found['count'], found['wall']) == (3, 10.0)
    nothing = dict.fromkeys(slow.COLUMNS[1:], 0)
    assert found['spent'] == nothing | {'processor': 6.0, 'tracing': 0.2, 'children': 9.0}
    assert list(found['files']) == ['b.py', 'a.py'] and found['files']['a.py']['processor'] == 4.0
    assert list(found['slowest']) == ['b.py::two', 'a.py::three', 'a.py::one']


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + '\n')


@pytest.mark.parametrize('door', DOORS)
def test_a_door_shows_the_page_of_the_new_command(door):
    pages = [_help(module) for module in (door, DOORS[door])]
    assert pages[0] == pages[1]
    assert 'usage' in pages[0]


def _help(module: str) -> str:
    done = subprocess.run(
        [sys.executable, '-m', module, '--help'],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''  # a module that is imported twice makes Python warn, for example
    return done.stdout
