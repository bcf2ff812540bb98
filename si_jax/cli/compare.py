"""`evaluate.py compare`: two results of evaluate.py held against each other, image by image."""

import argparse
import re
from pathlib import Path

from si_jax.cli import outputs
from si_jax.errors import InputError
from si_jax.evaluation.compare import RESAMPLES, Comparison, compare
from si_jax.evaluation.result import check_output
from si_jax.reports.comparison import write as write_page
from si_jax.runtime import terminal
from si_jax.runtime.terminal import Flag, show
from si_jax.storage.files import write_json


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser(
        'evaluate.py compare',
        'evaluate.py compare A.json [B.json] [flags]',
        """
Compares two results of evaluate.py, image by image: McNemar's test, the
bootstrap interval of each difference, the spread over seeds, and what follows
in a sentence. Refuses results that were not measured alike.

examples:
  two networks under the same attacks
    python evaluate.py compare at.json atsi.json
  two attacks on one network, of one result or of two
    python evaluate.py compare at.json --attacks=pgd,autoattack
  a page to be read in a browser: difference/index.html
    python evaluate.py compare at.json atsi.json --names=AT,AT-SI \\
        --page=difference
  several seeds of each: as many, in the same order
    python evaluate.py compare at0.json,at1.json si0.json,si1.json
  the comparison as a file
    python evaluate.py compare at.json atsi.json --output=difference.json
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    flags.add_argument('a', metavar='A.json', help='a result; several, one a seed, with commas between')
    flags.add_argument(
        'b',
        metavar='B.json',
        nargs='?',
        help='the other one; as many, with the same seeds (default, with --attacks: the same)',
    )
    table = {
        'attacks': Flag('A,B', 'compare these two attacks on one network: A of A.json with B of B.json'),
        'names': Flag('A,B', 'what to call the two (default: the attacks, or a and b)'),
        'output': Flag('FILE.json', 'write the comparison too'),
        'page': Flag('FOLDER', 'write it as a page too, index.html'),
        'resamples': Flag('N', 'of the bootstrap', int, RESAMPLES),
        'seed': Flag('N', 'of the bootstrap', int, 0),
    }
    terminal.add(flags, table)
    return flags


def run(
    *,
    a: str,
    b: str | None,
    output: str | None,
    resamples: int,
    seed: int,
    attacks: str | None = None,
    names: str | None = None,
    page: str | None = None,
) -> Comparison:
    """Compares results of evaluate.py; prints the table and, if asked to, writes the comparison.

    The arguments are the values of the flags.

    Raises:
        InputError: A value is wrong, or the results cannot be compared.
    """
    path = None if output is None else check_output(output)
    if b is None and attacks is None:
        raise InputError('one result is not compared with anything: give B.json too, or --attacks=A,B')
    b = a if b is None else b
    files = [one for one in (path, page and Path(page) / 'index.html') if one]
    if files:
        results = [Path(name.strip()) for name in f'{a},{b}'.split(',')]
        reads = [*results, *(result.with_suffix('.npz') for result in results)]
        outputs.check('--output=FILE.json', files, reads, 'one of the results compared')
    comparison = compare(
        a, b, resamples=resamples, seed=seed, attacks=_two('attacks', attacks), names=_two('names', names)
    )
    show(comparison.table())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, comparison.to_json())
        print(f'written to {path}')
    if page is not None:
        print(f'written to {write_page(comparison, page)}')
    return comparison


def _two(flag: str, text: str | None) -> tuple[str, str] | None:
    """The two parts of a flag; commas inside parentheses do not part."""
    if text is None:
        return None
    parts = [part.strip() for part in re.split(r',(?![^()]*\))', text)]
    if len(parts) != 2:
        raise InputError(f'--{flag}={text} has {len(parts)} parts: give two, with a comma between')
    return parts[0], parts[1]
