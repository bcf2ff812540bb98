"""Commands in processes of their own, compiled as a user's are.

The suite compiles without optimisation, since nearly all of its programs run for milliseconds, and for eight
simulated devices. What runs for many seconds is faster here. Compiled lightly, a program is there in half the
time of an optimised one and runs a third slower: the choice for a few seconds of compute.
"""

import gzip
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def compiled_as_the_suite() -> str:
    """XLA's flags of the suite, but for its eight devices."""
    return re.sub('--xla_force_host_platform_device_count=[0-9]+', '', os.environ['XLA_FLAGS'])


def compiled_lightly() -> str:
    """The same with some optimisation."""
    return compiled_as_the_suite().replace('optimization_level=0', 'optimization_level=1')


def environment(flags: str = '') -> dict[str, str]:
    """That of a command on one device, with XLA's flags; without any it compiles as a user's does."""
    found = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
    found.pop('NPROC', None)
    if not flags:
        found.pop('OMP_NUM_THREADS', None)
    return found


def optimised(*arguments: object) -> str:
    """What `python *arguments` prints, run in the project's folder on one device; it must succeed."""
    return _run(arguments, environment())


def light(*arguments: object) -> str:
    """The same, compiled lightly."""
    return _run(arguments, environment(compiled_lightly()))


def quick(*arguments: object) -> str:
    """The same for many programs that run for milliseconds, compiled without optimisation."""
    return _run(arguments, environment(compiled_as_the_suite()))


def _run(arguments: tuple[object, ...], environment: dict[str, str]) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_traced(folder: pathlib.Path) -> None:
    """The folder holds a profile that TensorBoard and Perfetto open, with what the devices did in it."""
    (place,) = (folder / 'plugins' / 'profile').iterdir()
    (planes,) = place.glob('*.xplane.pb')
    assert planes.stat().st_size > 10_000
    with gzip.open(place / 'perfetto_trace.json.gz') as file:
        events = json.load(file)['traceEvents']
    names = ' '.join(event.get('name', '') for event in events)
    assert 'dot' in names or 'fusion' in names, 'no operation of a compiled program'
