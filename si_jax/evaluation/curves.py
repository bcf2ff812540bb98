"""Robust accuracy over the radius, as a picture and as columns for a terminal."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.runtime.terminal import WIDTH, wrapped

# Of the lines, one after another; told apart by those who see no colours, too.
COLOURS = ('#2166ac', '#b2182b', '#1b7837', '#762a83', '#e08214', '#4d4d4d')
DASHES = ('-', '--', '-.', ':')


def can_be_drawn() -> bool:
    """Whether matplotlib is installed, which numbers do not need."""
    return find_spec('matplotlib') is not None


def draw(
    path: Path,
    title: str,
    norm: str,
    curves: Mapping[str, tuple[Any, Any]],
    *,
    stairs: bool = False,
) -> None:
    """Writes a picture of curves, name to (radii, accuracies); as `stairs` each holds until the next."""
    # Takes long to import, and only this needs it. No pyplot: it keeps a state of its own.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.spines[['top', 'right']].set_visible(False)
    shape = {'drawstyle': 'steps-post'} if stairs else {'marker': 'o', 'markersize': 4}
    for number, (name, (radii, accuracies)) in enumerate(curves.items()):
        axis.plot(
            radii,
            100 * np.asarray(accuracies),
            DASHES[number // len(COLOURS) % len(DASHES)],
            color=COLOURS[number % len(COLOURS)],
            label=name.replace('_', ' '),
            **shape,
        )
    axis.set(xlim=(0, None), ylim=(-3, 103), xlabel=f'eps ({norm})', ylabel='accuracy in %')
    axis.legend(frameon=False, fontsize=8)
    axis.set_title(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def columns(first: str, names: Sequence[str], lines: Sequence[tuple[str, Sequence[float]]]) -> list[str]:
    """A table of percentages, one line a radius: (its text, a fraction for each name); wide ones in parts."""
    head = max(len(first), *(len(text) for text, _ in lines)) + 2
    found: list[str] = []
    left = list(range(len(names)))
    while left:
        part: list[int] = []
        room = WIDTH - head
        while left and (not part or room >= max(len(names[left[0]]) + 2, 9)):
            room -= max(len(names[left[0]]) + 2, 9)
            part.append(left.pop(0))
        widths = [max(len(names[one]) + 2, 9) for one in part]
        titles = (f'{names[one]:>{width}}' for one, width in zip(part, widths, strict=True))
        found.append(f'{first:<{head}}' + ''.join(titles))
        for text, values in lines:
            cells = (f'{100 * values[one]:>{width}.2f}' for one, width in zip(part, widths, strict=True))
            found.append(f'{text:<{head}}' + ''.join(cells))
    return found


def warnings(texts: Sequence[str]) -> list[str]:
    """Warnings below a table, each once."""
    return [line for text in dict.fromkeys(texts) for line in wrapped('warning: ', text)]
