"""The figures by name.

A figure is two functions: `measure(...)` returns its numbers as a dictionary of JSON's types and arrays, and
`draw(numbers)` makes the picture of nothing but these. The keyword arguments of `measure` are the options of
the figure, with its defaults. A figure of trained networks has those of `inputs.subject` before them, which
loads what `measure` works on. `make` runs all of them and writes the files.
"""

import inspect
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure as Picture

from si_jax.errors import InputError, unknown
from si_jax.evaluation.result import check_output
from si_jax.paper.figures import cosine_histogram, logit_scale, loss_surface, norms, toy, weight_surface
from si_jax.paper.figures.inputs import Subject, subject
from si_jax.paper.figures.output import read_numbers, write, write_pictures
from si_jax.reports.labels import FIGURE_TITLES
from si_jax.runtime.environment import environment


class Figure(NamedTuple):
    """How a figure is made; `about` says in a line what it shows.

    `load` gives `measure` its first argument, the networks and images; None for a figure that needs none.
    """

    measure: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Picture]
    about: str
    load: Callable[..., Subject] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options and their defaults; `inspect.Parameter.empty` where there is none."""
        functions = [self.measure] if self.load is None else [self.load, self.measure]
        parameters = [row for one in functions for row in inspect.signature(one).parameters.values()]
        return {row.name: row.default for row in parameters if row.name not in ('on', 'most')}

    @property
    def usage(self) -> str:
        """The options as they are typed."""
        shown = {name: 'A,B' if name == 'workdirs' else value for name, value in self.options.items()}
        return ' '.join(f'--{name}={"..." if value is None else value}' for name, value in shown.items())


FIGURES: dict[str, Figure] = {
    name: Figure(figure.measure, figure.draw, FIGURE_TITLES[name], load)
    for name, (figure, load) in {
        '1': (logit_scale, subject),
        '2': (toy, None),
        '3': (loss_surface, partial(subject, num_examples=10)),
        '4': (weight_surface, partial(subject, most=1000)),
        '5': (cosine_histogram, subject),
        'norms': (norms, None),
    }.items()
}


def output_of(name: str, output: str | None) -> Path:
    """The JSON file of a figure, unless one is given."""
    return check_output(output or f'runs/figures/{f"figure{name}" if name.isdigit() else name}.json')


def make(name: str, output: str | None = None, **options: Any) -> Path:
    """Measures and draws a figure; writes FILE.json with the numbers, FILE.png and FILE.pdf.

    Args:
        name: A row of `FIGURES`.
        output: FILE.json; None for `runs/figures/figure<number>.json` or `runs/figures/norms.json`.
        options: Those of the figure; None stands for its default.

    Returns:
        The path of the JSON file.

    Raises:
        InputError: No such figure, an option that it does not have, or a wrong value.
    """
    if name not in FIGURES:
        raise unknown('figure', name, FIGURES)
    figure = FIGURES[name]
    given = {key: value for key, value in options.items() if value is not None}
    for option in given:
        if option not in figure.options:
            takers = [other for other, row in FIGURES.items() if option in row.options]
            belongs = f'it belongs to {", ".join(takers)}; ' if takers else ''
            raise InputError(
                f'figure {name} has no --{option}: {belongs}it has '
                f'{", ".join(f"--{known}" for known in figure.options)}'
            )
    if figure.options.get('workdirs') is inspect.Parameter.empty and 'workdirs' not in given:
        raise InputError(f'figure {name} is measured on trained networks: give --workdirs=FOLDER,FOLDER')
    path = output_of(name, output)
    path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the attacks
    began = time.perf_counter()
    # TF32 and bf16 products, the default of accelerators, are not what is reported.
    with jax.default_matmul_precision('highest'):
        if figure.load is None:
            numbers = figure.measure(**given)
        else:
            loading = inspect.signature(figure.load).parameters.keys()
            on = figure.load(**{key: value for key, value in given.items() if key in loading})
            rest = {key: value for key, value in given.items() if key not in loading}
            numbers = on.about | figure.measure(on, **rest)
    about = {'figure': name, 'options': figure.options | given}
    timing = {'seconds': time.perf_counter() - began}
    write(path, about | numbers | {'environment': environment(), 'timing': timing}, figure.draw)
    return path


def redraw(name: str, path: str) -> Path:
    """Draws the pictures of a file of `make` once more, from the numbers in it.

    Args:
        name: A row of `FIGURES`.
        path: FILE.json.

    Raises:
        InputError: No such figure, or the file does not hold its numbers.
    """
    if name not in FIGURES:
        raise unknown('figure', name, FIGURES)
    write_pictures(Path(path), read_numbers(path, name), FIGURES[name].draw)
    return Path(path)
