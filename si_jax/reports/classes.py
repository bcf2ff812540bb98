"""Accuracy by class, from the flags of each image."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from si_jax import data
from si_jax.evaluation.intervals import interval
from si_jax.reports.accuracy import Cell, Group


class ClassRow(NamedTuple):
    """A class."""

    name: str  # its number, with its name where it has one
    images: int  # how many there are
    # (natural, worst case) for each column; None where it has no such image.
    cells: list[tuple[Cell, Cell] | None]


class ByClass(NamedTuple):
    """The accuracies of a group by class."""

    heads: list[tuple[int, str, str]]  # (number, label, worst case of which attacks) of each column
    rows: list[ClassRow]  # the classes that have images, in order

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Number and label of each network, once."""
        return list(dict.fromkeys((number, label) for number, label, _ in self.heads))


def name_of(names: Sequence[str], label: int) -> str:
    """What the page calls a class: its name, if the data set has names, or its number."""
    return str(names[label]) if 0 <= label < len(names) else str(label)


def names_of(dataset: Mapping[str, Any]) -> Sequence[str]:
    """The names of classes by what a result says of its data set; () where labels were mapped."""
    if 'class_map' in dataset:
        return ()
    names, known = dataset.get('class_names'), data.SOURCES.get(str(dataset.get('name') or ''))
    return names if isinstance(names, list) else known.classes if known else ()


def by_class(group: Group) -> ByClass | None:
    """The natural accuracy and the worst case of every class; None if there are no flags of images."""
    columns = [
        (column, result.flags) for column in group.columns for result in column.results if result.flags
    ]
    if not columns:
        return None
    names = names_of(group.about['dataset'])
    rows = []
    for label in np.unique(np.concatenate([flags.labels for _, flags in columns])):
        cells: list[tuple[Cell, Cell] | None] = []
        count = 0
        for _, flags in columns:
            mine = flags.labels == label
            count = max(count, int(mine.sum()))
            shares = [_share(flags.share[name][mine]) for name in ('clean', 'worst_case') if mine.any()]
            cells.append((shares[0], shares[1]) if shares else None)
        rows.append(ClassRow(name_of(names, int(label)), count, cells))
    heads = [(column.number, column.label, ', '.join(flags.about['attacks'])) for column, flags in columns]
    return ByClass(heads, rows)


def _share(counted: np.ndarray) -> Cell:
    """The mean of what images count [M]: flags, or shares of a random classifier."""
    return Cell(float(counted.mean()), *interval(counted))
