"""The command line of the report page: `report.py --workdirs=A,B --out=FOLDER`."""

import argparse
import sys
from pathlib import Path

from si_jax.cli import outputs
from si_jax.reports.labels import split_workdirs
from si_jax.reports.render import GALLERY, write
from si_jax.runtime import compilation_cache, terminal
from si_jax.runtime.terminal import Flag


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
    python report.py --workdirs=runs/at_cifar10/A,runs/atsi_cifar10/B \\
        --names=AT,AT-SI --out=page
  your own model, from the result of evaluate.py
    python report.py --workdirs=evaluation/my_model.json
  all runs of a folder, without the images before and after an attack
    python report.py --workdirs=runs --gallery=0
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    table = {
        'workdirs': Flag(
            'A,B',
            'folders of runs of train.py, folders above them, or JSON files of evaluate.py',
            required=True,
        ),
        'names': Flag('A,B', 'what to call them, in this order (default: the shortest that tell them apart)'),
        'out': Flag('FOLDER', 'gets index.html', default='report'),
        'gallery': Flag(
            'N', 'test images shown before and after an attack; 0 reads no checkpoint', int, GALLERY
        ),
        'data_dir': Flag('FOLDER', "of these images (default: the runs')"),
        'figures': Flag(
            'FOLDER', 'of --figure, whose figures of these runs are shown too', default='runs/figures'
        ),
    }
    terminal.add(flags, table)
    return flags


def run(
    *, workdirs: str, names: str | None, out: str, gallery: int, data_dir: str | None, figures: str
) -> None:
    """Writes the page, says where it lies, and on stderr what could not be shown.

    Raises:
        InputError: See `write`.
    """
    sources = split_workdirs(workdirs)
    outputs.check('--out=FOLDER', [Path(out) / 'index.html'], [*sources, data_dir, figures])
    compilation_cache.enable()
    called = None if names is None else [name.strip() for name in names.split(',')]
    path, problems = write(sources, out, gallery=gallery, data_dir=data_dir, figures=figures, names=called)
    for problem in problems:
        print(f'report.py: not shown: {problem}', file=sys.stderr)
    print(f'written to {path}')
