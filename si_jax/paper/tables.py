"""A filled table as text, Markdown or JSON: ours beside the paper's."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from si_jax.evaluation.intervals import wilson
from si_jax.paper import commands, paired
from si_jax.paper.cells import Column, Table, Training
from si_jax.paper.commands import Choice
from si_jax.paper.fitting import Value
from si_jax.paper.matching import Filled
from si_jax.runtime.terminal import WIDTH, shell_lines, wrapped


@dataclasses.dataclass(frozen=True)
class Cell:
    """Ours (seed to value) and the paper's number in one place of a table, in the column's unit."""

    column: Column
    paper: float | None
    values: dict[int, Value]

    @property
    def unit(self) -> float:
        """What a fraction is multiplied by to be shown."""
        return 100.0 if self.column.percent else 1.0

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None if there are none."""
        return float(np.mean(self._shown())) if self.values else None

    @property
    def sd(self) -> float | None:
        """The standard deviation over seeds; None for fewer than two, and for shares of seeds."""
        shown = self._shown()
        if len(shown) < 2 or self.column.statistic == 'collapsed':
            return None
        return float(np.std(shown, ddof=1)) if np.ptp(shown) else 0.0  # and not what rounding leaves

    def _shown(self) -> list[float]:
        return [self.unit * value.value for value in self.values.values()]

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean.

        For one seed Wilson's, of another sample of as many test images; for several Student's, of other
        seeds, cut to the range of the column; for a share of seeds Wilson's, of other seeds. None where it
        is not defined: for one distance, and for several seeds that are all equal.
        """
        values = list(self.values.values())
        if not values or self.mean is None:
            return None
        if self.column.statistic == 'collapsed':
            return self._scaled_wilson(sum(value.value for value in values), len(values))
        if len(values) == 1:
            images = values[0].images
            return None if images is None else self._scaled_wilson(values[0].value * images, images)
        if not self.sd:
            return None
        half = float(stats.t.ppf(0.975, len(values) - 1)) * self.sd / len(values) ** 0.5
        return max(self.mean - half, 0.0), min(self.mean + half, self.unit)

    def _scaled_wilson(self, count: float, total: int) -> tuple[float, float]:
        low, high = wilson(round(count), total)
        return self.unit * low, self.unit * high

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    @property
    def interval(self) -> str:
        """The 95 % interval as it is shown."""
        return '-' if self.ci95 is None else f'[{self.show(self.ci95[0])}, {self.show(self.ci95[1])}]'

    def show(self, number: float | None, *, signed: bool = False) -> str:
        """A number of this column."""
        digits = 2 if self.column.percent else 4
        return '-' if number is None else f'{number:{"+" if signed else ""}.{digits}f}'


# By which measure `best` was chosen. The paper does not say it; others choose by PGD-20 on plain logits.
BEST = (
    'The best checkpoint is that of the highest accuracy on held-out images under calibrated PGD (PGD on '
    'logits of a fixed scale), where plain PGD-20 is usual. '
)


def _told_once(notes: list[str], runs: str) -> list[str]:
    """Warnings that differ in their figures alone, as one: the first, and which other runs have it."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        _, of_result, words = note.partition('.json: ')
        alike.setdefault(re.sub(r'[\d.]+', '', words) if of_result else note, []).append(note)
    return [
        f'{first}. With figures of their own: {", ".join(_run_of(note, runs) for note in others)}'
        if others
        else first
        for first, *others in alike.values()
    ]


def _run_of(note: str, runs: str) -> str:
    """The folder of the run whose result has a warning, below that of all runs."""
    return Path(note.partition('.json: ')[0]).parent.parent.as_posix().removeprefix(f'{runs}/')


@dataclasses.dataclass(frozen=True)
class Report:
    """A table, what its user chose, its rows with what was found, and what a reader must know of them."""

    table: Table
    choice: Choice
    filled: list[Filled]
    notes: list[str]

    def cells(self, filled: Filled) -> list[Cell]:
        """The cells of a row."""
        return [
            Cell(column, paper, values)
            for column, paper, values in zip(self.table.columns, filled.row.paper, filled.values, strict=True)
        ]

    def commands(self, *, missing: bool = False) -> list[str]:
        """The commands of the table in order, or those that its missing cells need; none twice."""
        lines = []
        for filled, seed in itertools.product(self.filled, self.choice.seeds):
            row, folder = filled.row, filled.folders[seed]
            if isinstance(row.source, Training) and not (missing and seed in filled.trained):
                lines.append(commands.train(row.source, self.choice, seed, folder))
            for evaluation in self.table.evaluations:
                if not (missing and (seed, evaluation) in filled.evaluated):
                    lines.append(commands.evaluate(row, evaluation, self.choice, seed, folder))
        return list(dict.fromkeys(lines))

    @functools.cached_property
    def pairs(self) -> list[paired.Pair]:
        """The rows that are compared image by image, as far as they were measured."""
        return paired.pairs_of(self.table, self.filled)

    @functools.cached_property
    def left_by_screen(self) -> list[str]:
        """What the table's screen left that a stronger attack broke, in a sentence."""
        return paired.left_by_screen(self.table, self.filled)

    @property
    def heading(self) -> str:
        """What the table is, for a reader who sees nothing else."""
        name = f'Table {self.table.name}' if self.table.name.isdecimal() else self.table.name
        return f'{name}. {self.table.title}'

    def remarks(self) -> list[str]:
        """The notes of the table, of the choice and of the results."""
        seeds = ', '.join(map(str, self.choice.seeds))
        several = len(self.choice.seeds) > 1
        remarks = [
            f'Ours: runs in {self.choice.runs}, checkpoint {self.choice.checkpoint}, '
            f'{"seeds" if several else "seed"} {seeds}. '
            + BEST * (self.choice.checkpoint == 'best')
            + ("Student's 95 % interval over the seeds; " if several else '')
            + f"Wilson's 95 % interval, by images{', where there is one seed' if several else ''}."
        ]
        if self.choice.overrides:
            changed = ', '.join(f'{field}={value}' for field, value in self.choice.overrides.items())
            remarks.append(f"Not the paper's recipe: {changed}.")
        if self.choice.num_examples:
            remarks.append(f'On the first {self.choice.num_examples} test images.')
        return [*remarks, *self.table.notes, *self.left_by_screen, *_told_once(self.notes, self.choice.runs)]

    def text(self) -> str:
        """For a terminal: a line for each cell, and the commands that are missing."""
        notes = [line for remark in self.remarks() for line in wrapped('', remark)]
        first = f'{"":<24}{"paper":>8}{"ours":>8}{"sd":>7}{"diff":>8}{"95 % interval":>17}  seeds'
        lines = [self.heading, *notes, '', first]
        for filled in self.filled:
            lines.append(', '.join(filled.row.labels))
            lines += [line for cell in self.cells(filled) for line in self._lines(cell)]
        lines += paired.text(self.pairs)
        if missing := self.commands(missing=True):
            lines += ['', 'Missing; the commands that fill it:']
            lines += [line for command in missing for line in shell_lines(command)]
        return '\n'.join(lines)

    def _lines(self, cell: Cell) -> list[str]:
        start = f'  {cell.column.title:<22}{cell.show(cell.paper):>8}'
        if cell.mean is None:
            return [f'{start}{"missing":>8}']
        seeds = ','.join(map(str, cell.values))
        if lacking := [seed for seed in self.choice.seeds if seed not in cell.values]:
            seeds += f' (missing {",".join(map(str, lacking))})'
        line = (
            f'{start}{cell.show(cell.mean):>8}{cell.show(cell.sd):>7}'
            f'{cell.show(cell.difference, signed=True):>8}{cell.interval:>17}'
        )
        if len(f'{line}  {seeds}') <= WIDTH:
            return [f'{line}  {seeds}']
        return [line, *wrapped(' ' * 6 + ('seeds ' if len(cell.values) > 1 else 'seed '), seeds)]

    def markdown(self) -> str:
        """A grid: our mean, the spread or the interval, and the paper's number in parentheses."""
        titles = [column.title for column in self.table.columns]
        lines = [f'**{self.heading}**', '', *(f'- {remark}' for remark in self.remarks()), '']
        lines.append(f'| | {" | ".join(titles)} |')
        lines.append(f'|---|{"---|" * len(titles)}')
        for filled in self.filled:
            shown = [self._grid(cell) for cell in self.cells(filled)]
            lines.append(f'| {", ".join(filled.row.labels)} | {" | ".join(shown)} |')
        lines += paired.markdown(self.pairs)
        return '\n'.join(lines)

    def _grid(self, cell: Cell) -> str:
        if cell.mean is None:
            ours = 'missing'
        elif cell.sd is not None:
            ours = f'{cell.show(cell.mean)} ± {cell.show(cell.sd)}'
        elif cell.ci95 is not None:
            ours = f'{cell.show(cell.mean)} {cell.interval}'
        else:
            ours = cell.show(cell.mean)
        if cell.values and len(cell.values) < len(self.choice.seeds):
            ours += f', {len(cell.values)} of {len(self.choice.seeds)} seeds'
        return ours if cell.paper is None else f'{ours} (paper {cell.show(cell.paper)})'

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's types; accuracies in percent, distances as fractions of the pixel range."""
        choice = self.choice._asdict()
        choice['overrides'], choice['seeds'] = dict(self.choice.overrides), list(self.choice.seeds)
        return {
            'table': self.table.name,
            'title': self.table.title,
            'choice': choice,
            'rows': [
                {
                    'labels': list(filled.row.labels),
                    'runs': {str(seed): folder for seed, folder in filled.folders.items()},
                    'cells': [self._cell(cell) for cell in self.cells(filled)],
                }
                for filled in self.filled
            ],
            **({'pairs': [pair.to_json() for pair in self.pairs]} if self.table.pairs else {}),
            'notes': [*self.table.notes, *self.left_by_screen, *self.notes],
            'missing': self.commands(missing=True),
        }

    def _cell(self, cell: Cell) -> dict[str, Any]:
        values = cell.values.items()
        ours = {
            'mean': cell.mean,
            'sd': cell.sd,
            'ci95': None if cell.ci95 is None else list(cell.ci95),
            'by_seed': {str(seed): cell.unit * value.value for seed, value in values},
            'files': {str(seed): [str(path) for path in value.paths] for seed, value in values},
        }
        return {
            'column': cell.column.title,
            'unit': 'percent' if cell.column.percent else 'fraction of the pixel range',
            'paper': cell.paper,
            'ours': ours if cell.values else None,
            'difference': cell.difference,
            'missing_seeds': [seed for seed in self.choice.seeds if seed not in cell.values],
        }
