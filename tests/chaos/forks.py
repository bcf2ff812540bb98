"""Commands that start in half the time: in forks of a process that has imported the libraries already.

Each is a process of its own, that runs the program's file as Python would and can be killed like any other.
"""

import atexit
import contextlib
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
    """Like `subprocess.Popen`, of a command that begins with the interpreter.

    Attributes:
        args: The command.
        log: The file that gets what it prints.
        errors: That of its standard error, the same unless another is given.
    """

    def __init__(
        self, command: list[str], log: Path, environment: dict[str, str], errors: Path | None = None
    ):
        self.args, self.log, self.errors = command, log, errors or log
        self.log.touch()
        files = str(self.log), str(self.errors)
        self._process = _context.Process(target=_run, args=(command[1:], files, environment))
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
            with contextlib.suppress(ProcessLookupError):  # it may end between the two lines
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = float('inf')) -> None:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f'{self.args} did not end within {timeout} s')
            time.sleep(0.01)

    def communicate(self, timeout: float = float('inf')) -> tuple[str, str]:
        """What it printed and its errors, after its end."""
        self.wait(timeout)
        return self.log.read_text(), self.errors.read_text()


def _run(arguments: list[str], files: tuple[str, str], environment: dict[str, str]) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
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
