"""Kills training and evaluation at random points, and compares what becomes of them with undisturbed runs.

    python -m tests.chaos                      # 100 kills over 1 and 2 processes, at most 40 minutes
    python -m tests.chaos --kills=20 --processes=4 --seed=3

`--output` gets one row a scenario, replaced after every run; rows of other scenarios in the file stay. Exit
status 1 if a kill was not survived or the time did not suffice.
"""

import argparse
import fcntl
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from si_jax.runtime.environment import environment as versions
from si_jax.storage.files import write_json
from tests.chaos.injection import Chain, as_json, chain, uninterrupted
from tests.chaos.scenarios import ROOT, Evaluation, Scenario, Training, environment

# Of 100 kills: most where a start is cheap.
SHARES = {1: 84, 2: 16}


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--kills', type=int, default=100)
    flags.add_argument('--processes', default='2,1', help='numbers of processes (default: %(default)s)')
    flags.add_argument('--only', choices=('training', 'evaluation'), help='leave out the other one')
    flags.add_argument('--minutes', type=float, default=40, help='no kill after these (default: %(default)s)')
    flags.add_argument('--seed', type=int, default=0)
    flags.add_argument('--side_by_side', type=int, default=1, help='runs at once (default: %(default)s)')
    flags.add_argument('--fresh', action='store_true', help='import everything anew in each start')
    flags.add_argument('--output', type=Path, default=ROOT / 'results' / 'chaos.json')
    arguments = flags.parse_args()
    counts = [int(part) for part in arguments.processes.split(',')]
    wanted = _shares(arguments.kills, counts, arguments.only)
    until = time.monotonic() + 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix='chaos-'))
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'compiled'))
    os.environ |= environment()  # what a fork has imported has read this
    lock, fork = threading.Lock(), not arguments.fresh

    began = time.monotonic()
    parts = max(1, arguments.side_by_side // len(wanted))
    wholes: dict[Scenario, tuple[Any, list]] = {scenario: (threading.Lock(), []) for scenario in wanted}
    chains: dict[Scenario, list[Chain]] = {scenario: [] for scenario in wanted}

    def whole(scenario: Scenario) -> dict[str, Any]:
        first, found = wholes[scenario]
        with first:
            if not found:
                found.append(uninterrupted(scenario, folder / scenario.name / 'whole', fork=fork))
        return found[0]

    def work(job: tuple[Scenario, int]) -> None:
        scenario, part = job
        kills = wanted[scenario] // parts + (part < wanted[scenario] % parts)
        rng = random.Random(f'{arguments.seed} {scenario.name} {part}')
        expected, done, number = whole(scenario), 0, 0
        while done < kills and time.monotonic() < until:
            place = folder / scenario.name / f'{part}-{number}'
            most, number = min(rng.randint(1, 5), kills - done), number + 1
            ended = chain(
                scenario, place, expected, most, rng, fork=fork, enough=lambda: time.monotonic() >= until
            )
            done += len(ended.faults)
            for reason in ended.lost:
                print(f'LOST, {scenario.name}, in {place}: {reason}', flush=True)
            # The lock of the system is for a second command with the same output.
            with lock, open(Path(tempfile.gettempdir()) / 'si_jax-chaos.lock', 'w') as others:
                fcntl.flock(others, fcntl.LOCK_EX)
                chains[scenario].append(ended)
                row = as_json(chains[scenario]) | {
                    'wanted': wanted[scenario], 'seed': arguments.seed,
                    'minutes': round((time.monotonic() - began) / 60, 1),
                    'command': f'python -m tests.chaos {" ".join(sys.argv[1:])}'.strip(),
                }  # fmt: skip
                _write(arguments.output, scenario.name, row)
                print(f'{scenario.name}: {row["faults"]} kills, {row["runs"]} runs', flush=True)

    with ThreadPoolExecutor(arguments.side_by_side) as pool:
        list(pool.map(work, [(scenario, part) for part in range(parts) for scenario in wanted]))
    rows = [as_json(chains[scenario]) for scenario in wanted]
    lost = sum(row['lost'] for row in rows)
    missing = arguments.kills - sum(row['faults'] for row in rows)
    injected = arguments.kills - missing
    print(f'faults injected: {injected}, survived: {injected - lost}, lost: {lost}')
    if missing:
        print(f'{missing} of {arguments.kills} kills were not made in {arguments.minutes:g} minutes')
    if not lost:
        shutil.rmtree(folder)
    return int(lost > 0 or missing > 0)


def _shares(kills: int, counts: list[int], only: str | None) -> dict[Scenario, int]:
    """How many kills each scenario gets; together exactly `kills`."""
    # Side by side, so that those of several processes, which wait for each other, do not meet.
    scenarios: list[Scenario] = [*map(Training, counts), *map(Evaluation, reversed(counts))]
    scenarios = [one for one in scenarios if only in (None, one.kind)]
    weights = [SHARES.get(one.processes, 10) for one in scenarios]
    total, given, before = sum(weights), {}, 0.0
    for scenario, weight in zip(scenarios, weights, strict=True):
        given[scenario] = round(kills * (before + weight) / total) - round(kills * before / total)
        before += weight
    return {scenario: share for scenario, share in given.items() if share}


def _write(output: Path, name: str, row: dict) -> None:
    content = json.loads(output.read_text()) if output.exists() else {'scenarios': {}}
    known = versions()
    content['scenarios'][name] = row | {
        'environment': {key: known[key] for key in known if key not in ('command',)}
    }
    rows = content['scenarios'].values()
    content['together'] = {
        key: sum(one[key] for one in rows) for key in ('faults', 'survived', 'lost', 'runs')
    }
    write_json(output, content)


if __name__ == '__main__':
    sys.exit(main())
