"""The pairs of a table: rows compared image by image and seed by seed, from the files of their results.

Two means with an interval each say little of their difference: both were measured on the same images, and
runs of one seed begin with the same weights and see the same batches. So differences are taken first.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from si_jax.evaluation.compare import Difference, compare
from si_jax.evaluation.result import Result
from si_jax.paper.cells import Column, Table
from si_jax.paper.fitting import Value
from si_jax.paper.matching import Filled
from si_jax.runtime.terminal import wrapped

CAPTION = (
    'Differences b - a in points, paired by image and by seed. The first interval draws the test images '
    'again (bootstrap), the second is that of other seeds (Student). Each is a 95 % interval by itself: of '
    'many, some miss. A difference that either interval cannot tell from 0 ranks nothing.'
)


class Pair(NamedTuple):
    """Row b compared with row a in one column.

    Attributes:
        a, b: The rows, by their labels joined with ', '.
        column: What is compared.
        seeds: Those that both rows have.
        difference: Of the accuracies, as fractions.
    """

    a: str
    b: str
    column: Column
    seeds: tuple[int, ...]
    difference: Difference

    @property
    def points(self) -> float:
        """The mean difference in percent points."""
        return float(100 * (self.difference.b - self.difference.a).mean())

    @property
    def by_images(self) -> str:
        """The interval of other images as it is shown."""
        return _interval(self.difference.ci95)

    @property
    def by_seeds(self) -> str:
        """The interval of other seeds as it is shown."""
        return '-' if self.difference.seeds_ci95 is None else _interval(self.difference.seeds_ci95)

    def to_json(self) -> dict[str, Any]:
        """The pair in JSON's types; differences are fractions, and `rows` the names of a and b."""
        return {
            'rows': [self.a, self.b],
            'column': self.column.title,
            'seeds': list(self.seeds),
            **self.difference.to_json(),
        }


def pairs_of(table: Table, filled: list[Filled]) -> list[Pair]:
    """The pairs of a table in its order, in every column of accuracies that both rows have for a common seed.

    Raises:
        si_jax.errors.InputError: Two results were not measured alike, see `si_jax.compare`.
    """
    rows = {', '.join(one.row.labels): one for one in filled}
    pairs = []
    for a, b in table.pairs:
        if a not in rows or b not in rows:  # left out by --rows
            continue
        for number, column in enumerate(table.columns):
            if column.statistic != 'accuracy':
                continue
            of_a, of_b = (rows[name].values[number] for name in (a, b))
            if seeds := tuple(seed for seed in of_a if seed in of_b):
                found = compare([_file(of_a[seed]) for seed in seeds], [_file(of_b[seed]) for seed in seeds])
                pairs.append(Pair(a, b, column, seeds, found.differences[column.attack or 'clean']))
    return pairs


def left_by_screen(table: Table, filled: list[Filled]) -> list[str]:
    """How much of what a table's screen left the stronger attack broke, a sentence; none without a screen."""
    if table.screen is None:
        return []
    titles = [column.title for column in table.columns]
    screen, attack = (titles.index(title) for title in table.screen)
    shares: list[float] = []
    of_rows: dict[str, np.ndarray] = {}  # broken and left
    for one in filled:
        values = one.values
        for seed in values[screen].keys() & values[attack].keys():
            weak, strong = (
                Result.load(_file(values[number][seed])).correct[table.columns[number].attack]
                for number in (screen, attack)
            )
            count = min(len(weak), len(strong))  # both saw the first images
            unbroken = weak[:count]
            found = unbroken & ~strong[:count]
            counts = np.array([found.sum(), unbroken.sum()])
            name = ', '.join(one.row.labels)
            of_rows[name] = of_rows.get(name, 0) + counts
            shares.append(counts[0] / max(1, counts[1]))
    if not shares:
        return []
    broken, left = np.sum([*of_rows.values()], axis=0)
    rows = ', '.join(f'{name} {counts[0]} of {counts[1]}' for name, counts in of_rows.items())
    return [
        f'Of the images that both saw, {table.screen[1]} broke {broken} of the {left} that {table.screen[0]} '
        f'left, {100 * float(np.mean(shares)):.2f} % as a mean over {len(shares)} '
        f'network{"s" if len(shares) > 1 else ""}. By rows: {rows}.'
    ]


def markdown(pairs: list[Pair]) -> list[str]:
    """The lines of a grid; none without pairs."""
    if not pairs:
        return []
    head = '| a | b | | b - a | by images | by seeds | seeds |'
    lines = [
        f'| {one.a} | {one.b} | {one.column.title} | {one.points:+.2f} | {one.by_images} | {one.by_seeds} | '
        f'{len(one.seeds)} |'
        for one in pairs
    ]
    return ['', CAPTION, '', head, '|---|---|---|---|---|---|---|', *lines]


def text(pairs: list[Pair]) -> list[str]:
    """The lines for a terminal of 80 columns; none without pairs."""
    if not pairs:
        return []
    lines = ['', *wrapped('', CAPTION), f'{"":<24}{"b - a":>8}{"by images":>20}{"by seeds":>20}  seeds']
    for (a, b), group in itertools.groupby(pairs, lambda pair: (pair.a, pair.b)):
        lines.append(f'{a} (a), {b} (b)')
        lines += [
            f'  {one.column.title:<22}{one.points:>+8.2f}{one.by_images:>20}{one.by_seeds:>20}'
            f'{len(one.seeds):>7}'
            for one in group
        ]
    return lines


def _file(value: Value) -> str:
    return str(value.paths[0])


def _interval(bounds: tuple[float, float]) -> str:
    return f'[{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]'
