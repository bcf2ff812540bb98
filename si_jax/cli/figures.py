"""The command line of the figures: `report.py --figure=NAME`."""

import argparse
from typing import Any

from si_jax.cli import outputs
from si_jax.errors import InputError
from si_jax.paper.figures.table import FIGURES, make, output_of, redraw
from si_jax.reports.labels import split_workdirs
from si_jax.runtime import compilation_cache, terminal
from si_jax.runtime.terminal import Flag


def parser() -> argparse.ArgumentParser:
    """The flags; None stands for the default of the figure."""
    options = [
        line
        for name, figure in FIGURES.items()
        for line in (
            *terminal.wrapped(f'  {name:<7}', figure.about),
            *terminal.wrapped(' ' * 9, figure.usage),
        )
    ]
    flags = terminal.parser(
        'report.py',
        'report.py --figure=NAME [--workdirs=A,B] [flags]',
        """
Measures a figure of the paper on runs of train.py and draws it: FILE.json with
the numbers, FILE.png and FILE.pdf.

examples:
  accuracy against a factor on the logits, for two runs
    python report.py --figure=1 --workdirs=runs/at_cifar10/A,runs/atsi_cifar10/B
  the same, quicker: 7 factors on 100 images
    python report.py --figure=1 --workdirs=A,B --points=7 --num_examples=100
  norms over the epochs, in a file of your choice
    python report.py --figure=norms --workdirs=A,B --output=norms.json
  the pictures once more, from the numbers
    python report.py --figure=1 --redraw=runs/figures/figure1.json
""",
        '\n'.join(['options of each figure, with their defaults:', *options])
        + '\n\n'
        + terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    table = {
        'figure': Flag('NAME', f'one of {", ".join(FIGURES)}', required=True),
        'workdirs': Flag('A,B', 'folders of runs of train.py'),
        'checkpoint': Flag(None, 'best, last or a step of these runs'),
        'data_dir': Flag('FOLDER', "of the images (default: the first run's)"),
        'num_examples': Flag('N', 'only the first N test images', int),
        'points': Flag('N', 'factors, grid points of an axis, or bins', int),
        'steps': Flag('N', 'of the attacks, each eps / 4 long', int),
        'directions': Flag('N', 'random directions of the weights', int),
        'epochs': Flag('N', 'of the training that figure 2 does', int),
        'runs': Flag('N', 'of that training, with different seeds', int),
        'rate': Flag(None, 'its learning rate', float),
        'seed': Flag(None, 'of everything random', int),
        'output': Flag('FILE.json', 'default: runs/figures/figure1.json and so on'),
    }
    terminal.add(flags, table)
    flags.add_argument(
        '--redraw',
        dest='redraw_file',
        metavar='FILE.json',
        help='draw the numbers of this file again; measures nothing',
    )
    return flags


def run(*, figure: str, redraw_file: str | None = None, **options: Any) -> None:
    """Makes a figure with options of `make`, or draws the numbers of a file again, and says where it lies."""
    if redraw_file is None:
        if figure in FIGURES:
            path = output_of(figure, options.get('output'))
            files = [path.with_suffix(suffix) for suffix in ('.json', '.png', '.pdf')]
            folders = split_workdirs(options['workdirs']) if options.get('workdirs') else []
            outputs.check('--output=FILE.json', files, [*folders, options.get('data_dir')])
        compilation_cache.enable()
        path = make(figure, **options)
    else:
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise InputError(
                f'--{given[0]} does not go with --redraw, which measures nothing and draws beside its file'
            )
        path = redraw(figure, redraw_file)
    print(f'written to {path}, {path.with_suffix(".png").name} and {path.with_suffix(".pdf").name}')
