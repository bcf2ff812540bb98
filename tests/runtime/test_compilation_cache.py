"""Compiled programs are kept on disk, where the user wants them."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import jax
from si_jax.runtime import compilation_cache

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(compilation_cache.enable())
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
print(hits.count('/jax/compilation_cache/cache_hits') > 0)
"""


def run(**variables) -> list[str]:
    unset = ('JAX_COMPILATION_CACHE_DIR', 'SI_JAX_COMPILATION_CACHE', 'XDG_CACHE_HOME')
    environment = {key: value for key, value in os.environ.items() if key not in unset} | variables
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    'variable, below',
    [('XDG_CACHE_HOME', 'si_jax/compiled'), ('SI_JAX_COMPILATION_CACHE', '')],
)
def test_the_second_process_finds_what_the_first_compiled(tmp_path, variable, below):
    folder = tmp_path / 'cache'
    kept = str(folder / below) if below else str(folder)
    assert run(**{variable: str(folder)}) == [kept, 'False']
    assert os.listdir(kept)
    assert run(**{variable: str(folder)}) == [kept, 'True']


def test_it_can_be_switched_off_and_needs_no_place(tmp_path):
    assert run(SI_JAX_COMPILATION_CACHE='off', XDG_CACHE_HOME=str(tmp_path)) == ['None', 'False']
    (tmp_path / 'file').write_text('')
    assert run(SI_JAX_COMPILATION_CACHE=str(tmp_path / 'file')) == ['None', 'False']
    assert os.listdir(tmp_path) == ['file']


EXCHANGED = """
import pathlib
import sys
import jax
import numpy as np
from si_jax.runtime import compilation_cache, terminal

folder = compilation_cache.enable()
three, four = np.ones(3, np.float32), np.ones(4, np.float32)
jax.jit(lambda x: x * 3 + 1)(three).block_until_ready()
first = {path: path.read_bytes() for path in folder.iterdir() if path.name.endswith('cache')}
jax.jit(lambda x: x * 5 + 2)(four).block_until_ready()
second = [path for path in folder.iterdir() if path.name.endswith('cache') and path not in first]
assert len(first) == len(second) == 1
second[0].write_bytes(*first.values())
jax.clear_caches()
sys.exit(terminal.run('evaluate.py', lambda: jax.jit(lambda x: x * 5 + 2)(four).block_until_ready() is None))
"""


def test_exchanged_programs_are_named_as_the_cause(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', EXCHANGED],
        env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert f'kept in {tmp_path} are not the ones' in done.stderr and 'Traceback' not in done.stderr
