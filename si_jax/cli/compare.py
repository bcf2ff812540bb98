"""`evaluate.py compare`: two results of evaluate.py held against each other, image by image."""

import argparse
from pathlib import Path

from si_jax.cli import outputs
from si_jax.evaluation.compare import RESAMPLES, Comparison, compare
from si_jax.evaluation.result import check_output
from si_jax.runtime import terminal
from si_jax.runtime.terminal import Flag, show
from si_jax.storage.files import write_json


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser(
        'evaluate.py compare',
        'evaluate.py compare A.json B.json [flags]',
        """
Compares two results of evaluate.py, image by image: McNemar's test, the
bootstrap interval of each difference, and the spread over seeds. Refuses
results that were not measured alike.

examples:
  two networks, or two attacks on one
    python evaluate.py compare at.json atsi.json
  several seeds of each: as many, in the same order
    python evaluate.py compare at0.json,at1.json si0.json,si1.json
  the comparison as a file
    python evaluate.py compare at.json atsi.json --output=difference.json
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    flags.add_argument('a', metavar='A.json', help='a result; several, one a seed, with commas between')
    flags.add_argument('b', metavar='B.json', help='the other one; as many, with the same seeds')
    table = {
        'output': Flag('FILE.json', 'write the comparison too'),
        'resamples': Flag('N', 'of the bootstrap', int, RESAMPLES),
        'seed': Flag('N', 'of the bootstrap', int, 0),
    }
    terminal.add(flags, table)
    return flags


def run(*, a: str, b: str, output: str | None, resamples: int, seed: int) -> Comparison:
    """Compares results of evaluate.py; prints the table and, if asked to, writes the comparison.

    The arguments are the values of the flags.

    Raises:
        InputError: A value is wrong, or the results cannot be compared.
    """
    path = None if output is None else check_output(output)
    if path is not None:
        results = [Path(name.strip()) for name in f'{a},{b}'.split(',')]
        reads = [*results, *(result.with_suffix('.npz') for result in results)]
        outputs.check('--output=FILE.json', [path], reads, 'one of the results compared')
    comparison = compare(a, b, resamples=resamples, seed=seed)
    show(comparison.table())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, comparison.to_json())
        print(f'written to {path}')
    return comparison
