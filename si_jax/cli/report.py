"""Shows what runs measured beside what the paper reports, and the commands that measure it."""

import argparse
import importlib
import sys

from si_jax.paper import report
from si_jax.runtime import terminal
from si_jax.runtime.extras import extra
from si_jax.runtime.terminal import Flag

USAGE = """
  report.py --table=NAME [flags]
  report.py --figure=NAME [flags]
  report.py --workdirs=A,B --out=FOLDER [flags]"""
ABOUT = """
Shows what runs measured beside what the paper reports, and the commands that
measure it. A table finds its runs in a folder by their configs, and their
results beside them, whatever the folders are called.

examples:
  a table of the paper, and what is missing of ours
    python report.py --table=6
  over three seeds, from another folder, the rows of one network
    python report.py --table=6 --seeds=0,1,2 --runs=FOLDER --rows=ResNet18
  all commands of the table in order, one a line; those that are missing, run
    python report.py --table=6 --commands
    python report.py --table=6 --commands=missing | sh
  a shorter recipe than the paper's, as a grid for a page
    python report.py --table=6 --override=epochs=30 --markdown
  a figure of two runs, and the flags of figures
    python report.py --figure=1 --workdirs=A,B
    python report.py --figure=1 --help
  one page of runs, to be read in a browser: report/index.html
    python report.py --workdirs=A,B --out=report
"""
EXIT = terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept')


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser('report.py', USAGE, ABOUT, EXIT)
    table = {
        'table': Flag(
            'NAME',
            f'{report.METHODS} for the defenses as the code has them; or of results, of the paper and '
            f'studies of ours, {", ".join(report.TABLES)}',
            required=True,
        ),
        'runs': Flag('FOLDER', 'of all runs', default='runs'),
        'seeds': Flag(None, 'with commas between', default='0'),
        'rows': Flag('LABELS', "only rows that bear each of these labels, as in 'ResNet18,CIFAR-10'"),
        'checkpoint': Flag(None, 'best or last, of each run', default='best'),
        'num_examples': Flag('N', "the first N test images (default: the table's)", int),
        'data_dir': Flag('FOLDER', 'goes into the commands'),
        'torch_checkpoints': Flag('FOLDER', "of Table 5's files, for the commands", default='checkpoints'),
    }
    terminal.add(flags, table)
    flags.add_argument(
        '--override',
        action='append',
        metavar='FIELD=VALUE',
        help='a field of every config, as in epochs=30: the rows of another recipe; can be repeated',
    )
    shown = flags.add_mutually_exclusive_group()
    shown.add_argument(
        '--commands',
        nargs='?',
        const='all',
        choices=('all', 'missing'),
        help='the commands alone, one a line in order: all of the table, or what is missing',
    )
    shown.add_argument('--json', action='store_true', help='the table as JSON')
    shown.add_argument('--markdown', action='store_true', help='the table as Markdown')
    return flags


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return terminal.run('report.py', lambda: show(argv))


def show(argv: list[str]) -> None:
    if not argv:
        parser().print_help()
        return
    given = {flag.split('=')[0] for flag in argv}
    if '--figure' in given:
        extra('matplotlib', 'matplotlib', 'plots')
        figures = importlib.import_module('si_jax.cli.figures')
        figures.run(**vars(figures.parser().parse_args(argv)))
    elif '--table' not in given and given & {'--workdirs', '--out'}:
        page = importlib.import_module('si_jax.cli.page')
        page.run(**vars(page.parser().parse_args(argv)))
    else:
        print(terminal.spelled(report.run(**vars(parser().parse_args(argv)))))
