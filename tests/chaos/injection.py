"""Runs of a scenario that are killed at random points and started again, until they end by themselves.

In place of a signal the folder of a run may be replaced under it, which it has to notice. After a fault
something may be done to what it left: a file damaged, a checkpoint renamed, or other data put in place of
those that it reads.
"""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.forks import Forked
from tests.chaos.scenarios import PEER_TIMEOUT, ROOT, Scenario, damage, differences, environment

# Seconds after which a start hangs; several processes on one busy core take their time.
HANGS = 900
ATTEMPTS = 3


class Fault(NamedTuple):
    """One kill.

    Attributes:
        signal: SIGKILL or SIGTERM; REPLACED where the folder was replaced.
        target: 'all' processes, or the rank of the one that got it; the others have to end by themselves.
        progress: How far the run was, see `Scenario.progress`.
        damage: What was done to what it left, '' for nothing.
    """

    signal: str
    target: str
    progress: int
    damage: str


class Chain(NamedTuple):
    """A run with its kills, up to its end.

    Attributes:
        faults: In their order.
        lost: What is not as it should be; empty if the run survived all of them.
        failed: The last line of each start that failed by itself, as where a busy machine lets the processes
            time out before they have met, and was repeated, as a scheduler does it.
    """

    faults: list[Fault]
    lost: list[str]
    failed: list[str]


class Started:
    """The processes of one start, with their output in files."""

    def __init__(self, scenario: Scenario, folder: Path, fork: bool):
        self.logs = [folder / f'log-{rank}' for rank in range(scenario.processes)]
        self.processes: list[Any] = []
        for command, log in zip(scenario.commands(folder), self.logs, strict=True):
            if fork:
                self.processes.append(Forked(command, log, environment()))
                continue
            with open(log, 'w') as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def send(self, number: signal.Signals, ranks: list[int]) -> None:
        for rank in ranks:
            self.processes[rank].send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Waits for the end of all; False if it did not come, and they were killed."""
        until = time.monotonic() + seconds
        while self.running() and time.monotonic() < until:
            time.sleep(0.01)
        ended = not self.running()
        for process in self.processes:
            process.kill()
            process.wait()
        return ended

    def output(self) -> str:
        return '\n'.join(log.read_text(errors='replace') for log in self.logs)

    def codes(self) -> list[int | None]:
        return [process.returncode for process in self.processes]


def uninterrupted(scenario: Scenario, folder: Path, *, fork: bool = False) -> dict[str, Any]:
    """What the scenario comes to if nothing happens to it."""
    for attempt in range(ATTEMPTS):
        place = folder / str(attempt)
        place.mkdir(parents=True)
        run = Started(scenario, place, fork)
        if run.wait(HANGS) and not any(run.codes()):
            return scenario.outcome(place)
    raise RuntimeError(f'{scenario.name} does not run: {run.codes()}\n{run.output()[-3000:]}')


def chain(
    scenario: Scenario,
    folder: Path,
    expected: dict[str, Any],
    kills: int,
    rng: random.Random,
    *,
    fork: bool = False,
    first: Sequence[tuple[str, str]] = (),
    enough: Callable[[], bool] = lambda: False,
) -> Chain:
    """Kills a run so many times (or less, if it ends before), then lets it end and compares.

    Args:
        scenario: What is run.
        folder: An empty place for it.
        expected: Of `uninterrupted`.
        kills: How often.
        rng: Chooses the points.
        first: Faults to begin with, of kind (SIGKILL, SIGTERM, REPLACED) and what follows ('damaged',
            'renamed', 'other data', ''), before those that are chosen.
        fork: Whether to start the commands as `forks` does.
        enough: Asked before each kill whether to leave it at those that were made.
    """
    folder.mkdir(parents=True)
    faults: list[Fault] = []
    lost: list[str] = []
    failed: list[str] = []
    kept = None
    while not lost:
        run = Started(scenario, folder, fork)
        fault = None
        if len(faults) < kills and not enough():
            kind, then = first[len(faults)] if len(faults) < len(first) else _kind(rng)
            fault = _kill(scenario, folder, run, rng, kind)
        ended = run.wait(HANGS if fault is None else _patience(fault))
        output, codes = run.output(), run.codes()
        said = scenario.said(output)
        if kept is not None and said is not None and said < kept:
            lost.append(f'went on at step {said}, though a checkpoint of step {kept} was whole')
        if not ended:
            lost.append(f'hung after {fault or "no fault"}: {codes}\n{output[-1500:]}')
        elif fault is None:
            if not any(codes):
                break
            failed.append(f'{codes}: {output.strip().splitlines()[-1][:200].replace(str(folder), "...")}')
            if len(failed) == ATTEMPTS:
                lost.append(f'did not end well: {codes}\n{output[-1500:]}')
        else:
            if fault.signal == 'REPLACED' and (reason := _put_back(folder, output, codes)):
                lost.append(reason)
            kept = scenario.kept(folder)
            if then == 'damaged' and (files := scenario.damageable(folder)):
                fault, kept = fault._replace(damage=damage(rng.choice(files), rng)), None
            if then == 'renamed' and (words := scenario.rename(folder)):
                fault, kept = fault._replace(damage=words), None
            if then == 'other data' and (restore := scenario.exchange(folder)):
                lost += _refused(scenario, folder, fork)
                restore()
                fault = fault._replace(damage='other data, refused')
            faults.append(fault)
    if not lost:
        try:
            lost += [f'{name} differs' for name in differences(scenario.outcome(folder), expected)]
        except Exception as error:
            lost.append(f'no outcome: {error!r}')
    if not lost:
        shutil.rmtree(folder)
    return Chain(faults, lost, failed)


def _kind(rng: random.Random) -> tuple[str, str]:
    """A fault, and what is done to what it leaves."""
    kind = rng.choices(('SIGKILL', 'SIGTERM', 'REPLACED'), (0.75, 0.15, 0.1))[0]
    after = ('', 'damaged', 'renamed', 'other data')
    return kind, rng.choices(after, (0.6, 0.2, 0.1, 0.1))[0] if kind == 'SIGKILL' else ''


def _put_back(folder: Path, output: str, codes: list[int | None]) -> str:
    """Puts the folder of a run that was replaced back; what is wrong with its end, '' if nothing."""
    shutil.rmtree(folder / 'run', ignore_errors=True)
    (folder / 'away').rename(folder / 'run')
    said = 'replaced' in output or not any(codes)  # or it had saved for the last time
    return '' if said else f'did not notice that its folder was replaced: {codes}\n{output[-1500:]}'


def _refused(scenario: Scenario, folder: Path, fork: bool) -> list[str]:
    """Starts a run on other data; what is wrong if it does not refuse them, or touches anything."""
    before = _contents(folder / 'run')
    run = Started(scenario, folder, fork)
    if not run.wait(HANGS) or set(run.codes()) != {2} or 'digest' not in run.output():
        return [f'other data were not refused: {run.codes()}\n{run.output()[-1500:]}']
    return [] if _contents(folder / 'run') == before else ['the refusal of other data changed a file']


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob('*') if path.is_file() and path.name != '.lock')
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _kill(scenario: Scenario, folder: Path, run: Started, rng: random.Random, kind: str) -> Fault | None:
    """Kills a run at a random point; None if it ended before."""
    at_first = scenario.progress(folder)
    if rng.random() < 0.1:  # wherever it is: importing, compiling, restoring
        time.sleep(rng.uniform(0, 6))
    else:
        wanted = at_first + rng.randint(1, max(1, (scenario.whole() - at_first + 1) // 2))
        until = time.monotonic() + HANGS
        while scenario.progress(folder) < wanted and run.running() and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))  # a checkpoint takes about as long to write
    everyone = list(range(scenario.processes))
    ranks = everyone if len(everyone) == 1 or rng.random() < 0.5 else [rng.choice(everyone)]
    progress = scenario.progress(folder)
    if not run.running():
        return None
    target = 'all' if ranks == everyone else f'rank {ranks[0]}'
    if kind == 'REPLACED':
        if place := scenario.replaceable(folder):
            place.rename(place.with_name('away'))
            place.mkdir()
            return Fault(kind, 'all', progress, '')
        kind = 'SIGKILL'
    run.send(signal.Signals[kind], ranks)
    return Fault(kind, target, progress, '')


def _patience(fault: Fault) -> float:
    """How long the processes may take to end after a fault."""
    return 60 if (fault.signal, fault.target) == ('SIGKILL', 'all') else 180 + 3 * PEER_TIMEOUT


def as_json(chains: list[Chain]) -> dict[str, Any]:
    """Counts and all faults, in JSON's types."""
    faults = [fault for one in chains for fault in one.faults]
    lost = [len(one.faults) for one in chains if one.lost]
    counts = {
        'faults': len(faults),
        'survived': len(faults) - sum(lost),
        'lost': sum(lost),
        'runs': len(chains),
    }
    kinds: dict[str, int] = {}
    for fault in faults:
        kind = f'{fault.signal} to {"all" if fault.target == "all" else "one"}'
        kinds[kind] = kinds.get(kind, 0) + 1
    words = {
        'then a file damaged': ('flipped', 'truncated', 'missing'),
        'then a checkpoint renamed': ('renamed',),
    }
    words['then other data refused'] = ('other data',)
    kinds |= {
        name: sum(fault.damage.startswith(starts) for fault in faults) for name, starts in words.items()
    }
    points = [[list(fault) for fault in one.faults] for one in chains]
    reasons = [one.lost for one in chains if one.lost]
    failed = [line for one in chains for line in one.failed]
    others = {
        'by kind': kinds,
        'starts that failed by themselves': failed,
        'reasons': reasons,
        'points': points,
    }
    return json.loads(json.dumps(counts | others))
