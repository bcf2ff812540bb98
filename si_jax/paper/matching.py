"""Which runs are the rows of a table, and what fills their cells."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    Args:
        table: The table.
        choice: What its user chose.
        folder: What is there.
        elsewhere: All tables: a run that is a row of one of them needs no explanation.

    Raises:
        InputError: Two runs or two results claim the same cell and cannot be told apart, or a seed, an
            override or a row does not fit.
    """
    notes: list[str] = []
    claimed: set[Path] = set()
    filled = []
    for row in table.rows:
        if isinstance(row.source, Training):
            filled.append(_trained_row(table, row, row.source, choice, folder, claimed, notes))
        else:
            filled.append(_downloaded_row(table, row, row.source, choice, folder, notes))
    strangers = [run for run in folder.runs if run.path not in claimed]
    if strangers:
        known = [wanted for other in elsewhere for _, wanted in _configs(other, choice)]
        rows = _configs(table, choice)
        for run in strangers:
            if not any(set(configs.differences_from(run, wanted)) <= {'seed'} for wanted in known):
                notes += _why_not(run, rows)
    return filled, list(dict.fromkeys(notes))


def _configs(table: Table, choice: Choice) -> list[tuple[Row, dict[str, Any]]]:
    """The rows that are trained, with their configs."""
    return [
        (
            row,
            recipes.plain(configs.config_of(row.source, {**row.source.overrides, **choice.overrides})),
        )
        for row in table.rows
        if isinstance(row.source, Training)
    ]


def _trained_row(
    table: Table,
    row: Row,
    source: Training,
    choice: Choice,
    folder: Folder,
    claimed: set[Path],
    notes: list[str],
) -> Filled:
    config = configs.config_of(source, {**source.overrides, **choice.overrides})
    wanted = recipes.plain(config)
    by_seed: dict[int, list[Run]] = {}
    for run in folder.runs:
        if set(configs.differences_from(run, wanted)) <= {'seed'}:
            by_seed.setdefault(run.config['seed'], []).append(run)
            claimed.add(run.path)
    _note_others(row, set(by_seed), choice, notes)
    examples = _examples(table, choice, config.data.name)
    protocol = Protocol(config.data.name, config.threat.eps, config.threat.norm, examples, 0)
    filled = _empty(table, row)
    for seed in choice.seeds:
        runs = by_seed.get(seed, [])
        if len(runs) > 1:
            raise InputError(
                f'{" and ".join(str(run.path) for run in runs)} are the same run, {", ".join(row.labels)} '
                f'with seed {seed}: move one of them out of the folder'
            )
        filled.folders[seed] = str(runs[0].path) if runs else commands.workdir(source, choice, seed)
        for run in runs:
            if run.unfinished:
                notes.append(f'{run.path} is at {run.unfinished}: it is not used before its end')
                continue
            filled.trained.add(seed)
            mine = [result for result in folder.results if result.run == run.path]
            _fill_seed(filled, table, seed, mine, protocol, notes, run, choice.checkpoint)
    return filled


def _downloaded_row(
    table: Table, row: Row, source: Download, choice: Choice, folder: Folder, notes: list[str]
) -> Filled:
    mine = [result for result in folder.results if _is_of(result, source)]
    _note_others(row, {result.about['seed'] for result in mine}, choice, notes)
    examples = _examples(table, choice, source.dataset)
    filled = _empty(table, row)
    for seed in choice.seeds:
        filled.folders[seed] = f'{choice.runs}/{Path(source.file).stem}'
        filled.trained.add(seed)
        protocol = Protocol(source.dataset, fraction(source.eps), 'linf', examples, seed)
        of_seed = [result for result in mine if result.about['seed'] == seed]
        _fill_seed(filled, table, seed, of_seed, protocol, notes)
    return filled


def _empty(table: Table, row: Row) -> Filled:
    return Filled(row, {}, set(), set(), [{} for _ in table.columns])


def _examples(table: Table, choice: Choice, dataset: str) -> int:
    return choice.num_examples or table.evaluations[0].num_examples or TEST_IMAGES[dataset]


def _note_others(row: Row, seeds: set[int], choice: Choice, notes: list[str]) -> None:
    if others := sorted(seeds - set(choice.seeds)):
        listed = ', '.join(map(str, others))
        notes.append(f'{", ".join(row.labels)}: seeds {listed} are there too; --seeds shows them')


def _fill_seed(
    filled: Filled,
    table: Table,
    seed: int,
    found: list[FoundResult],
    protocol: Protocol,
    notes: list[str],
    run: Run | None = None,
    checkpoint: str | None = None,
) -> None:
    """Puts what the results of a seed say into the row."""
    attacks = {attack for evaluation in table.evaluations for attack in evaluation.attacks}
    # What attacks in other ways was measured for another table.
    found = [result for result in found if attacks & result.about['attacks'].keys()]
    usable = usable_results(found, protocol, notes, run, checkpoint)
    filled.evaluated |= {(seed, one) for one in table.evaluations if is_there(one, usable)}
    for column, values in zip(table.columns, filled.values, strict=True):
        if value := value_of(table, column, usable, run, notes):
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
