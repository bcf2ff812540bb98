"""Commands that start in half the time: in forks of a process that has imported the libraries already.

Each is a process of its own, that runs the program's file as Python would and can be killed like any other.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_context = multiprocessing.get_context('forkserver')
_one_at_a_time = threading.Lock()
_context.set_forkserver_preload(['tests.chaos.preload'])


class Forked:
    """Like `subprocess.Popen`, of a command that begins with the interpreter."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]):
        self._process = _context.Process(target=_run, args=(command[1:], str(log), environment))
        with _one_at_a_time:
            self._process.start()

    @property
    def returncode(self) -> int | None:
        with _one_at_a_time:  # starting one reads the end of all, and an end can be read once
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self._process.pid:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout = open(1, 'w', buffering=1, closefd=False)
    sys.stderr = open(2, 'w', buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv, sys.orig_argv[:] = arguments, [sys.executable, *arguments]
    sys.path.insert(0, str(ROOT))
    code: object = 0
    try:
        runpy.run_path(arguments[0], run_name='__main__')
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
