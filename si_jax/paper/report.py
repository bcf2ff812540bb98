"""What is behind `report.py --table`: from flags to a table or its commands."""

import ast
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from si_jax.errors import InputError, unknown
from si_jax.evaluation.settings import check_count
from si_jax.paper import methods, tables
from si_jax.paper.cells import Table
from si_jax.paper.commands import Choice
from si_jax.paper.matching import fill
from si_jax.paper.paper_tables import PAPER_TABLES
from si_jax.paper.studies import STUDIES
from si_jax.reports.results import scan

TABLES = {**PAPER_TABLES, **STUDIES}
METHODS = '1'  # the paper's table of defenses, which has no numbers
CHECKPOINTS = ('best', 'last')


def run(
    *,
    table: str,
    runs: str = 'runs',
    seeds: str = '0',
    rows: str | None = None,
    override: Sequence[str] | None = None,
    checkpoint: str = 'best',
    num_examples: int | None = None,
    data_dir: str | None = None,
    torch_checkpoints: str = 'checkpoints',
    commands: str | None = None,
    json: bool = False,
    markdown: bool = False,
) -> str:
    """The text of a table with what was found for it.

    The arguments are the flags of `report.py --table` as they are typed, see its `--help`; most of them are a
    `Choice`.

    Raises:
        InputError: A value is wrong, or results cannot be told apart.
    """
    if table == METHODS:
        given = {'rows': rows, 'override': override, 'num_examples': num_examples, 'commands': commands}
        given |= {'seeds': seeds != '0', 'checkpoint': checkpoint != 'best'}
        if left := [name for name, value in given.items() if value]:
            raise InputError(
                f'--{left[0]} has no meaning with --table={METHODS}, which lists methods: leave it out'
            )
        return methods.show(markdown=markdown, as_json=json)
    if checkpoint not in CHECKPOINTS:
        raise unknown('checkpoint', checkpoint, CHECKPOINTS)
    report = make(
        _table(table, rows),
        Choice(
            runs=runs,
            seeds=_seeds(seeds),
            overrides=_overrides(override or ()),
            checkpoint=checkpoint,
            num_examples=None if num_examples is None else check_count('num_examples', num_examples),
            data_dir=data_dir,
            torch_checkpoints=torch_checkpoints,
        ),
    )
    if commands:
        return '\n'.join(report.commands(missing=commands == 'missing'))
    if json:
        return dumps(report.to_json(), indent=2, ensure_ascii=False)
    return report.markdown() if markdown else report.text()


def make(table: Table, choice: Choice) -> tables.Report:
    """The report of a table.

    Raises:
        InputError: As `run`.
    """
    filled, notes = fill(table, choice, scan(choice.runs), tuple(TABLES.values()))
    if not Path(choice.runs).is_dir():
        notes.append(f'There is no folder {choice.runs} yet: nothing is measured, or --runs names another.')
    return tables.Report(table, choice, filled, notes)


def _table(name: str, labels: str | None) -> Table:
    if name not in TABLES:
        raise unknown('table', name, (METHODS, *TABLES))
    table = TABLES[name]
    if labels is None:
        return table
    wanted = tuple(label.strip() for label in labels.split(','))
    known = {label for row in table.rows for label in row.labels}
    for label in wanted:
        if label not in known:
            raise unknown(f'label of table {name}', label, known)
    rows = tuple(row for row in table.rows if set(wanted) <= set(row.labels))
    if not rows:
        raise InputError(f'no row of table {name} bears all of the labels {", ".join(wanted)}: give fewer')
    return table._replace(rows=rows)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(','))
    except ValueError:
        raise InputError(f'--seeds={text} are not whole numbers with commas between, as in 0,1,2') from None
    for seed in seeds:
        check_count('seeds', seed, least=0)
        if seeds.count(seed) > 1:
            raise InputError(f'seed {seed} is given {seeds.count(seed)} times: give it once')
    return seeds


def _overrides(given: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for one in given:
        field, separator, text = one.partition('=')
        if not separator or not field:
            raise InputError(f'--override={one} is not of the form FIELD=VALUE, as in epochs=30')
        if field in fields or field in ('seed', 'data.dir'):
            remedy = {'seed': 'use --seeds', 'data.dir': 'use --data_dir'}.get(field, 'give it once')
            raise InputError(f'--override={one}: {remedy}')
        try:
            fields[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[field] = text
    return fields
