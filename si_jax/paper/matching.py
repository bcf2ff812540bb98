"""Which runs are the rows of a table, and what fills their cells."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from si_jax.errors import InputError
from si_jax.paper import commands, configs
from si_jax.paper.cells import Download, Evaluation, Row, Table, Training
from si_jax.paper.commands import Choice
from si_jax.paper.fitting import Protocol, Value, is_there, usable_results, value_of
from si_jax.reports.results import Folder, FoundResult, Run
from si_jax.runtime.terminal import fraction
from si_jax.training import recipes

TEST_IMAGES = {'cifar10': 10_000, 'cifar100': 10_000, 'svhn': 26_032, 'digits': 397}
# Fields that say which row a run of another recipe was meant for.
KIND = ('defense.name', 'defense.si', 'defense.he', 'defense.inner', 'data.name', 'model.arch')
FEW = 12  # more differences than these, and it is not the row with another recipe


@dataclasses.dataclass
class Filled:
    """A row of a table with what was found for it.

    Attributes:
        row: The row.
        folders: Seed to the folder of its run: where it is, or where the commands put it.
        trained: The seeds whose run came to its end.
        evaluated: Seeds with the evaluations that are there in full.
        values: [column] of seed to value.
    """

    row: Row
    folders: dict[int, str]
    trained: set[int]
    evaluated: set[tuple[int, Evaluation]]
    values: list[dict[int, Value]]


def fill(
    table: Table, choice: Choice, folder: Folder, elsewhere: Sequence[Table] = ()
) -> tuple[list[Filled], list[str]]:
    """The rows of a table with the values that the folder holds, and what a reader must know of the rest.

    A run that is a row of a table in `elsewhere` needs no explanation.

    Raises:
        InputError: Two runs or two results claim the same cell and cannot be told apart, or a seed, an
            override or a row does not fit.
    """
    filler = _Filler(table, choice, folder)
    filled = [filler.row(row) for row in table.rows]
    notes = filler.notes
    strangers = [run for run in folder.runs if run.path not in filler.claimed]
    if strangers:
        known = [wanted for other in elsewhere for _, wanted in _configs(other, choice)]
        rows = _configs(table, choice)
        for run in strangers:
            if not any(set(configs.differences_from(run, wanted)) <= {'seed'} for wanted in known):
                notes += _why_not(run, rows)
    return filled, notes


def _config_of(source: Training, choice: Choice) -> ConfigDict:
    return configs.config_of(source, {**source.overrides, **choice.overrides})


def _configs(table: Table, choice: Choice) -> list[tuple[Row, dict[str, Any]]]:
    """The rows that are trained, with their configs."""
    sources = [(row, row.source) for row in table.rows if isinstance(row.source, Training)]
    return [(row, recipes.plain(_config_of(source, choice))) for row, source in sources]


@dataclasses.dataclass
class _Filler:
    """Fills the rows of a table; it notes what a reader must know, and which runs a row has claimed."""

    table: Table
    choice: Choice
    folder: Folder
    notes: list[str] = dataclasses.field(default_factory=list)
    claimed: set[Path] = dataclasses.field(default_factory=set)

    def row(self, row: Row) -> Filled:
        source = row.source
        return self._trained(row, source) if isinstance(source, Training) else self._downloaded(row, source)

    def _trained(self, row: Row, source: Training) -> Filled:
        config, filled = _config_of(source, self.choice), self._empty(row)
        wanted = recipes.plain(config)
        by_seed: dict[int, list[Run]] = {}
        for run in self.folder.runs:
            if set(configs.differences_from(run, wanted)) <= {'seed'}:
                by_seed.setdefault(run.config['seed'], []).append(run)
                self.claimed.add(run.path)
        self._note_others(row, set(by_seed))
        threat, name = config.threat, config.data.name
        protocol = Protocol(name, threat.eps, threat.norm, self._examples(name), 0)
        for seed in self.choice.seeds:
            runs = by_seed.get(seed, [])
            if len(runs) > 1:
                raise InputError(
                    f'{" and ".join(str(run.path) for run in runs)} are the same run, '
                    f'{", ".join(row.labels)} with seed {seed}: move one of them out of the folder'
                )
            filled.folders[seed] = str(runs[0].path) if runs else commands.workdir(source, self.choice, seed)
            for run in runs:
                if run.unfinished:
                    self.notes.append(f'{run.path} is at {run.unfinished}: it is not used before its end')
                    continue
                of_run = [result for result in self.folder.results if result.run == run.path]
                self._fill_seed(filled, seed, of_run, protocol, run)
        return filled

    def _downloaded(self, row: Row, source: Download) -> Filled:
        of_row = [result for result in self.folder.results if _is_of(result, source)]
        self._note_others(row, {result.about['seed'] for result in of_row})
        filled, examples = self._empty(row), self._examples(source.dataset)
        for seed in self.choice.seeds:
            filled.folders[seed] = f'{self.choice.runs}/{Path(source.file).stem}'
            protocol = Protocol(source.dataset, fraction(source.eps), 'linf', examples, seed)
            of_seed = [result for result in of_row if result.about['seed'] == seed]
            self._fill_seed(filled, seed, of_seed, protocol)
        return filled

    def _empty(self, row: Row) -> Filled:
        return Filled(row, {}, set(), set(), [{} for _ in self.table.columns])

    def _examples(self, dataset: str) -> frozenset[int]:
        return frozenset(self._count(one, dataset) for one in self.table.evaluations)

    def _count(self, evaluation: Evaluation, dataset: str) -> int:
        return self.choice.num_examples or evaluation.num_examples or TEST_IMAGES[dataset]

    def _note_others(self, row: Row, seeds: set[int]) -> None:
        if others := sorted(seeds - set(self.choice.seeds)):
            listed = ', '.join(map(str, others))
            seed = f'seeds {listed} are' if len(others) > 1 else f'seed {listed} is'
            self.notes.append(f'{", ".join(row.labels)}: {seed} there too; --seeds shows them')

    def _fill_seed(
        self, filled: Filled, seed: int, found: list[FoundResult], protocol: Protocol, run: Run | None = None
    ) -> None:
        """Puts what the results of a seed say into the row."""
        filled.trained.add(seed)
        attacks = {attack for evaluation in self.table.evaluations for attack in evaluation.attacks}
        # What attacks in other ways was measured for another table.
        found = [result for result in found if attacks & result.about['attacks'].keys()]
        usable = usable_results(found, protocol, self.notes, run, self.choice.checkpoint)
        counted = {
            one: one._replace(num_examples=self._count(one, protocol.dataset))
            for one in self.table.evaluations
        }
        filled.evaluated |= {(seed, one) for one, full in counted.items() if is_there(full, usable)}
        table = self.table._replace(evaluations=tuple(counted.values()))
        for column, values in zip(self.table.columns, filled.values, strict=True):
            if value := value_of(table, column, usable, run, self.notes):
                values[seed] = value


def _is_of(result: FoundResult, source: Download) -> bool:
    model = result.about.get('model', {})
    wanted = {flag: source.flags.get(flag) for flag in ('arch', 'variant', 'normalise')}
    name = Path(str(model.get('torch_checkpoint', ''))).name
    return name == source.file and all(model.get(flag) == value for flag, value in wanted.items())


def _why_not(run: Run, rows: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """A note on a run that has the network and defense of a row, but another recipe."""
    near: tuple[int, Row, dict[str, tuple[Any, Any]]] | None = None
    for row, wanted in rows:
        found = configs.differences_from(run, wanted)
        found.pop('seed', None)
        if len(found) <= FEW and not set(KIND) & found.keys() and (near is None or len(found) < near[0]):
            near = len(found), row, found
    if near is None:
        return []
    changed = ', '.join(f'{name}: {a!r} -> {b!r}' for name, (a, b) in near[2].items())
    return [
        f'{run.path} is not used: it is {", ".join(near[1].labels)} by another recipe ({changed}); '
        '--override shows such runs'
    ]
