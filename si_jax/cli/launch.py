"""Several processes on this machine, for trying out what a pod or cluster runs."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from si_jax.runtime import terminal
from si_jax.runtime.terminal import Flag

VERBS = ('train', 'evaluate')  # of the command si-jax, which several processes can run
ABOUT = """
Starts a script in several processes on this machine, joined as those of a pod
or cluster are, to try out what runs there. Each line that a process prints is
preceded by its rank.

examples:
  a training in two processes
    python -m si_jax.cli.launch --processes=2 -- train.py \\
        --config=configs/quickstart.py --workdir=runs/two
  an evaluation in two, each with two simulated devices
    python -m si_jax.cli.launch --processes=2 --cpu_devices=2 -- evaluate.py \\
        --workdir=runs/two --attacks=pgd
  four processes on the devices that there are
    python -m si_jax.cli.launch --processes=4 -- evaluate.py --workdir=runs/two
"""


def start(
    command: Sequence[str],
    count: int,
    *,
    cpu_devices: int | None = None,
    environment: Mapping[str, str],
    folder: str | os.PathLike | None = None,
) -> list[subprocess.Popen]:
    """Starts `python COMMAND` in `count` processes that find each other on a free port of this machine.

    The command is a script, which knows the flags of `si_jax.runtime.processes.FLAGS`, with its own. Each
    process has so many simulated devices on the CPU, or (None) the devices that there are.
    """
    environment = dict(environment)
    if cpu_devices is not None:
        flags = environment.get('XLA_FLAGS', '')
        environment |= {
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={cpu_devices}'.strip(),
        }
    address = f'localhost:{free_port()}'
    command = [sys.executable, *command, f'--coordinator_address={address}', f'--num_processes={count}']
    pipes: Any = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    # Each in a group of its own: the signal of a Ctrl-C reaches it from here alone, and so but once.
    return [
        subprocess.Popen(
            [*command, f'--process_id={rank}'], env=environment, cwd=folder, process_group=0, **pipes
        )
        for rank in range(count)
    ]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as one:
        one.bind(('localhost', 0))
        return one.getsockname()[1]


def _pass_on(rank: int, source: IO[str], target: IO[str]) -> None:
    for line in source:
        target.write(f'[{rank}] {line}')
        target.flush()


def main(argv: list[str] | None = None) -> int:
    prog = 'python -m si_jax.cli.launch'
    exits = terminal.exit_status(
        'a process failed; whatever its status, that of the first to fail', 'passed on to all processes'
    )
    parser = terminal.parser(prog, f'{prog} [flags] -- SCRIPT.py [its flags]', ABOUT, exits)
    table = {
        'processes': Flag('N', 'how many', int, 2),
        'cpu_devices': Flag(
            'N', 'simulated devices of each, on the CPU (default: the devices that there are)', int
        ),
    }
    terminal.add(parser, table)
    parser.add_argument(
        'command', nargs='+', help='after --: a script, or the verb train or evaluate, and its flags'
    )
    arguments = parser.parse_args(argv)
    for name in ('processes', 'cpu_devices'):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f'--{name}={value} is below 1')
    command = arguments.command
    if command[0] in VERBS and not Path(command[0]).is_file():
        command = ['-m', 'si_jax', *command]
    started = start(command, arguments.processes, cpu_devices=arguments.cpu_devices, environment=os.environ)

    def pass_signal(number: int, _: Any) -> None:
        for process in started:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_signal)
    readers = [
        threading.Thread(target=_pass_on, args=(rank, source, target))
        for rank, process in enumerate(started)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    first: list[int] = []

    def wait(process: subprocess.Popen) -> None:
        if status := process.wait():
            first.append(status)

    waiting = [threading.Thread(target=wait, args=(process,)) for process in started]
    for thread in waiting:
        thread.start()
    for thread in (*waiting, *readers):
        thread.join()
    status = first[0] if first else 0
    return status if status >= 0 else 128 - status


if __name__ == '__main__':
    sys.exit(main())
