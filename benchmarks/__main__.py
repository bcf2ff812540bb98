"""Everything that is measured of speed, beside the peers, as one command.

    pip install -r requirements-bench.txt --no-deps && pip install torch
    python -m benchmarks --output=results/speed_cpu.json
    python -m benchmarks --rows=pgd,memory --quick

Rows: pgd (a), steps (b), autoattack (c, with --reference), data (d), compile (e), memory (f), growth (g),
first_result, from a command to its result, waiting, for data before each step, techniques, which turns off
one thing at a time, and hotspots, where the time of an attack goes.
Ours and the peers take turns in one process, after a first time that does not count, so that a machine that
slows down slows all; quoted are medians, and ratios turn by turn with their least and largest. --quick takes
the small networks and few turns. Rows that the output file holds already and that are not named stay.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch

from benchmarks import first_result, growth, hotspots, pgd, resources, steps, techniques, waiting
from benchmarks.turns import CLOCKS, choose_clock, lines
from si_jax.errors import InputError, unknown
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

ROWS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    'pgd': pgd.rows,
    'steps': steps.rows,
    'data': resources.data_rows,
    'waiting': waiting.rows,
    'compile': resources.compile_rows,
    'first_result': first_result.rows,
    'memory': resources.memory_rows,
    'growth': growth.rows,
    'techniques': techniques.rows,
    'hotspots': hotspots.rows,
}


def autoattack_rows(reference: Path, shared: Path, quick: bool) -> list[dict[str, Any]]:
    """Row (c): `benchmarks.autoattack`, whose own command has more to choose."""
    from benchmarks.autoattack import measure

    sys.path.insert(0, str(reference))
    import autoattack

    found = []
    for name in ('cnn_a_adv4',) if quick else ('cnn_a_adv4', 'kw_base'):
        with tempfile.TemporaryDirectory() as cache:
            jax.config.update('jax_compilation_cache_dir', cache)
            compilation_cache.enable()
            images, turns = (100, 1) if quick else (1000, 3)
            one = measure(name, 'autoattack', shared, autoattack, images, turns)
        for part, seconds in one['seconds'].items():
            ratio = seconds['times_faster']
            figures = {'times faster': f'{ratio["median"]:.2f} ({ratio["min"]:.2f} to {ratio["max"]:.2f})'}
            found.append(
                {'what': f'{part} on {images} images, {name}', 'seconds': seconds, 'figures': figures}
            )
    return found


def main() -> int:
    flags = argparse.ArgumentParser(
        prog='python -m benchmarks', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument('--rows', help='with commas between (default: all but autoattack)')
    flags.add_argument('--quick', action='store_true', help='small networks, few turns')
    flags.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='cpu: seconds of all threads, for a machine with other work and one core (default: wall)',
    )
    flags.add_argument('--reference', type=Path, help='a checkout of fra31/auto-attack, for row autoattack')
    flags.add_argument('--shared', type=Path, default=Path(os.environ.get('SI_JAX_SHARED', '../shared')))
    flags.add_argument('--output', type=Path, help='JSON file')
    given = flags.parse_args()
    names = given.rows.split(',') if given.rows else list(ROWS)
    try:
        for name in names:
            if name not in (*ROWS, 'autoattack'):
                raise unknown('row', name, (*ROWS, 'autoattack'))
        if 'autoattack' in names and given.reference is None:
            raise InputError('row autoattack needs --reference=FOLDER, a checkout of fra31/auto-attack')
    except InputError as error:
        print(f'benchmarks: {error}', file=sys.stderr)
        return 2
    # As many threads for PyTorch as there are cores for this process, as XLA has.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    choose_clock(given.clock)
    compilation_cache.enable()
    rows = json.loads(given.output.read_text())['rows'] if given.output and given.output.exists() else {}
    for name in names:
        if name == 'autoattack':
            measured = autoattack_rows(given.reference, given.shared, given.quick)
        else:
            measured = ROWS[name](given.quick)
        for row in measured:
            print('\n'.join(lines(row)), flush=True)
        made_with = {
            **{key: value for key, value in environment().items() if key != 'command'},
            'torch': torch.__version__,
            'threads': torch.get_num_threads(),
            'quick': given.quick,
            'clock': given.clock,
            'xla_flags': os.environ.get('XLA_FLAGS', ''),
        }
        rows[name] = {'rows': measured, 'environment': made_with}
        if given.output:
            write_json(given.output, {'rows': rows})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
