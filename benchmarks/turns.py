"""Programs that take turns: a machine that slows down slows them all, and their ratios stay."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.spread import spread

# 'cpu' is the seconds of all threads, on a machine that has other work; on one core the time that would pass.
CLOCKS: dict[str, Callable[[], float]] = {'wall': time.perf_counter, 'cpu': time.process_time}
_chosen = 'wall'


def choose_clock(name: str) -> None:
    global _chosen
    _chosen = name


def in_turns(
    what: str, programs: dict[str, Callable[[], Any]], amount: float, turns: int, unit: str = 'images/s'
) -> dict[str, Any]:
    """Runs programs in turns, after a first time that does not count.

    Args:
        what: For the table.
        programs: By name; the first is ours. Each waits for its results.
        amount: How much one call does, in the unit.
        turns: How often each is called.
        unit: Of speed.

    Returns:
        The speeds of each, and how much faster ours was than each peer, turn by turn.
    """
    clock = CLOCKS[_chosen]
    for program in programs.values():
        program()
    speeds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, program in programs.items():
            began = clock()
            program()
            speeds[name].append(amount / (clock() - began))
    ours, *peers = speeds
    ratios = {
        peer: spread([a / b for a, b in zip(speeds[ours], speeds[peer], strict=True)]) for peer in peers
    }
    return {
        'what': what,
        'unit': unit,
        'speed': {name: spread(values) for name, values in speeds.items()},
        'times_faster_than': ratios,
    }


def lines(row: dict[str, Any]) -> list[str]:
    """A row of `in_turns`, or one of plain figures, for the terminal."""
    if 'speed' not in row:
        return [f'{row["what"]}: {", ".join(f"{name} {value}" for name, value in row["figures"].items())}']
    found = [row['what']]
    for name, speed in row['speed'].items():
        ratio = row['times_faster_than'].get(name)
        text = f'  {name:<24}{speed["median"]:>10.1f} {row["unit"]}'
        if ratio:
            text += f'   ours {ratio["median"]:.2f} times ({ratio["min"]:.2f} to {ratio["max"]:.2f})'
        found.append(text)
    return found
