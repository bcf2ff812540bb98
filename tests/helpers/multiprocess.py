"""Commands in several processes that find each other, each with simulated devices of its own."""

import os
import pathlib
import subprocess
import sys

from si_jax.cli import launch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def environment(**changes: str) -> dict[str, str]:
    """Of the processes: compiled as the suite is, but not for its eight devices."""
    flags = os.environ['XLA_FLAGS'].split()
    kept = [flag for flag in flags if 'device_count' not in flag]
    return (
        os.environ | {'XLA_FLAGS': ' '.join(kept), 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'} | changes
    )


def start(count: int, devices: int, *command: object, **changes: str) -> list[subprocess.Popen]:
    """`python COMMAND` in `count` processes of so many devices, in the project's folder."""
    words = [str(word) for word in command]
    return launch.start(words, count, cpu_devices=devices, environment=environment(**changes), folder=ROOT)


def finish(processes: list[subprocess.Popen], timeout: float = 240) -> list[tuple[int, str, str]]:
    """Status, standard output and standard error of each."""
    return [
        (process.returncode, *said)
        for process, said in [(process, process.communicate(timeout=timeout)) for process in processes]
    ]


def with_tools(folder: pathlib.Path, **tools: str) -> dict[str, str]:
    """The environment in which these scripts, and `python` for this interpreter, are found first."""
    tools = {name: f'#!/bin/sh\nexec {sys.executable} "$@"\n' for name in ('python', 'python3')} | tools
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    found = environment(JAX_PLATFORMS='cpu', CONFIG='configs/quickstart.py')
    found['XLA_FLAGS'] += ' --xla_force_host_platform_device_count=2'
    return found | {'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}'}
