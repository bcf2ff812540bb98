"""The page of a comparison: two results held against each other, as `compare --page` writes it."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.compare import Comparison, Difference, chance
from si_jax.evaluation.intervals import wilson
from si_jax.reports import charts
from si_jax.reports.accuracy import Cell, ball
from si_jax.reports.render import templates
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_atomic


class Row(NamedTuple):
    """A row of the table."""

    name: str  # 'natural', the attack, or 'worst case'
    a: Cell  # with Wilson's interval for the images of one seed
    b: Cell
    difference: Cell  # b - a, with the bootstrap interval
    only_a: str  # images that a alone has right, by seed
    only_b: str
    luck: str  # the probability of such a difference by luck; '' where it is not known


def write(comparison: Comparison, out: str) -> Path:
    """Writes the page of a comparison.

    Args:
        comparison: From `si_jax.compare`.
        out: The folder that gets `index.html`; made if it does not exist.

    Returns:
        The page.

    Raises:
        InputError: `out` is a file.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--page={out} is a file: give the folder that gets index.html')
    rows = [row_of(name, one, comparison) for name, one in comparison.differences.items()]
    ids = charts.Ids()
    lines = [
        charts.Line(row.name, [(0, comparison.names[0], row.a), (1, comparison.names[1], row.b)])
        for row in rows
    ]
    chart = charts.intervals(ids, f'Accuracy of {comparison.names[0]} and {comparison.names[1]}', lines)
    page = (
        templates()
        .get_template('compare.html')
        .render(
            comparison=comparison,
            rows=rows,
            chart=chart,
            ball=ball(comparison.threat),
            command=shlex.join(['python', *sys.orig_argv[1:]]),
            here=environment(),
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / 'index.html', page)
    return folder / 'index.html'


def row_of(name: str, one: Difference, comparison: Comparison) -> Row:
    """A difference as a row."""
    shown = {'clean': 'natural', 'worst_case': 'worst case'}.get(name, name)
    count = comparison.images

    def cell(accuracies: np.ndarray) -> Cell:
        mean = float(np.mean(accuracies))
        return Cell(mean, *wilson(round(mean * count), count))

    p = comparison.luck(one)
    return Row(
        name=shown,
        a=cell(one.a),
        b=cell(one.b),
        difference=Cell(float(np.mean(one.b - one.a)), *one.ci95),
        only_a=', '.join(map(str, one.only_a)),
        only_b=', '.join(map(str, one.only_b)),
        luck='' if p is None else chance(p),
    )
