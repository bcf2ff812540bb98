"""The command line of the report page: `report.py --workdirs=A,B --out=FOLDER`."""

import argparse
import sys

from si_jax.reports.labels import split_workdirs
from si_jax.reports.page import GALLERY, write
from si_jax.runtime import compilation_cache, terminal


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = terminal.parser(
        'report.py',
        'report.py --workdirs=A,B [--out=FOLDER] [flags]',
        """
Writes one page that shows runs and what was measured on them:
FOLDER/index.html. It needs no network and no other file. What cannot be shown
is named.

examples:
  one run with its evaluations: report/index.html
    python report.py --workdirs=runs/quickstart/44136fa3
  two runs beside each other, in a folder of your choice
    python report.py --workdirs=runs/at_cifar10/A,runs/atsi_cifar10/B --out=page
  your own model, from the result of evaluate.py
    python report.py --workdirs=evaluation/my_model.json
  all runs of a folder, without the images before and after an attack
    python report.py --workdirs=runs --gallery=0
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    flags.add_argument(
        '--workdirs',
        required=True,
        metavar='A,B',
        help='folders of runs of train.py, folders above them, or JSON files of evaluate.py',
    )
    flags.add_argument(
        '--out', default='report', metavar='FOLDER', help='gets index.html (default: %(default)s)'
    )
    flags.add_argument(
        '--gallery',
        type=int,
        default=GALLERY,
        metavar='N',
        help='test images shown before and after an attack; 0 reads no checkpoint (default: %(default)s)',
    )
    flags.add_argument('--data_dir', metavar='FOLDER', help="of these images (default: the runs')")
    flags.add_argument(
        '--figures',
        default='runs/figures',
        metavar='FOLDER',
        help='of --figure, whose figures of these runs are shown too (default: %(default)s)',
    )
    return flags


def run(*, workdirs: str, out: str, gallery: int, data_dir: str | None, figures: str) -> None:
    """Writes the page, says where it lies, and on stderr what could not be shown.

    Raises:
        InputError: See `write`.
    """
    compilation_cache.enable()
    path, problems = write(split_workdirs(workdirs), out, gallery=gallery, data_dir=data_dir, figures=figures)
    for problem in problems:
        print(f'report.py: not shown: {problem}', file=sys.stderr)
    print(f'written to {path}')
