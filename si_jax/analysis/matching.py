"""Which results fill which cells of a table, and why others do not."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from si_jax.analysis import commands, results
from si_jax.analysis.cells import Column, Download, Evaluation, Row, Table, Training
from si_jax.analysis.commands import Choice
from si_jax.analysis.results import Folder, Measured, Run
from si_jax.attacks.catalogue import ATTACKS
from si_jax.errors import InputError
from si_jax.evaluation.command import fraction

STEPS = 20
TEST_IMAGES = {'cifar10': 10_000, 'cifar100': 10_000, 'svhn': 26_032, 'digits': 397}
# Fields that say which row a run of another recipe was meant for.
KIND = ('defense.name', 'defense.si', 'defense.he', 'defense.inner', 'data.name', 'model.arch')
FEW = 12  # more differences than these, and it is not the row with another recipe


class Value(NamedTuple):
    """What one seed measured.

    Attributes:
        value: A fraction.
        images: On so many test images; None where it is not a share of images.
        paths: The files that say so.
    """

    value: float
    images: int | None
    paths: tuple[Path, ...]


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


class Protocol(NamedTuple):
    """What a result must have been measured with to fill a cell."""

    dataset: str
    eps: float
    norm: str
    examples: int
    seed: int


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
            if not any(set(results.differences_from(run, wanted)) <= {'seed'} for wanted in known):
                notes += _why_not(run, rows)
    return filled, list(dict.fromkeys(notes))


def _configs(table: Table, choice: Choice) -> list[tuple[Row, dict[str, Any]]]:
    """The rows that are trained, with their configs."""
    return [
        (
            row,
            results.plain(results.config_of(row.source, {**row.source.overrides, **choice.overrides})),
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
    config = results.config_of(source, {**source.overrides, **choice.overrides})
    wanted = results.plain(config)
    by_seed: dict[int, list[Run]] = {}
    for run in folder.runs:
        if set(results.differences_from(run, wanted)) <= {'seed'}:
            by_seed.setdefault(run.config['seed'], []).append(run)
            claimed.add(run.path)
    if others := sorted(set(by_seed) - set(choice.seeds)):
        notes.append(
            f'{", ".join(row.labels)}: seeds {", ".join(map(str, others))} are there too; --seeds shows them'
        )
    folders, trained = {}, set()
    evaluated: set[tuple[int, Evaluation]] = set()
    values: list[dict[int, Value]] = [{} for _ in table.columns]
    for seed in choice.seeds:
        runs = by_seed.get(seed, [])
        if len(runs) > 1:
            raise InputError(
                f'{" and ".join(str(run.path) for run in runs)} are the same run, {", ".join(row.labels)} '
                f'with seed {seed}: move one of them out of the folder'
            )
        folders[seed] = str(runs[0].path) if runs else commands.workdir(source, choice, seed)
        if not runs:
            continue
        run = runs[0]
        if run.unfinished:
            notes.append(f'{run.path} is at {run.unfinished}: it is not used before its end')
            continue
        trained.add(seed)
        protocol = Protocol(
            config.data.name,
            config.threat.eps,
            config.threat.norm,
            choice.num_examples or table.evaluations[0].num_examples or TEST_IMAGES[config.data.name],
            0,
        )
        mine = [result for result in folder.results if result.run == run.path]
        usable = _usable(mine, protocol, notes, run, choice.checkpoint)
        evaluated |= {(seed, e) for e in table.evaluations if _is_there(e, usable)}
        for column, by in zip(table.columns, values, strict=True):
            if value := _value(table, column, usable, run, notes):
                by[seed] = value
    return Filled(row, folders, trained, evaluated, values)


def _downloaded_row(
    table: Table, row: Row, source: Download, choice: Choice, folder: Folder, notes: list[str]
) -> Filled:
    where = f'{choice.runs}/{Path(source.file).stem}'
    evaluated: set[tuple[int, Evaluation]] = set()
    values: list[dict[int, Value]] = [{} for _ in table.columns]
    mine = [result for result in folder.results if _is_of(result, source)]
    seeds = {result.about['seed'] for result in mine}
    if others := sorted(seeds - set(choice.seeds)):
        notes.append(
            f'{", ".join(row.labels)}: seeds {", ".join(map(str, others))} are there too; --seeds shows them'
        )
    examples = choice.num_examples or table.evaluations[0].num_examples or TEST_IMAGES[source.dataset]
    for seed in choice.seeds:
        protocol = Protocol(source.dataset, fraction(source.eps), 'linf', examples, seed)
        usable = _usable([r for r in mine if r.about['seed'] == seed], protocol, notes)
        evaluated |= {(seed, e) for e in table.evaluations if _is_there(e, usable)}
        for column, by in zip(table.columns, values, strict=True):
            if value := _value(table, column, usable, None, notes):
                by[seed] = value
    return Filled(row, dict.fromkeys(choice.seeds, where), set(choice.seeds), evaluated, values)


def _is_of(result: Measured, source: Download) -> bool:
    model = result.about.get('model', {})
    wanted = {flag: source.flags.get(flag) for flag in ('arch', 'variant', 'normalise')}
    name = Path(str(model.get('torch_checkpoint', ''))).name
    return name == source.file and all(model.get(flag) == value for flag, value in wanted.items())


def _usable(
    found: list[Measured],
    protocol: Protocol,
    notes: list[str],
    run: Run | None = None,
    checkpoint: str | None = None,
) -> list[Measured]:
    """The results of the protocol; of the others a note says why they are none."""
    usable = []
    for result in found:
        if why := _unfit(result.about, protocol) or (run and _stale(result.about, run, checkpoint)):
            notes.append(f'{result.path} is not used: {why}')
            continue
        usable.append(result)
        notes += [f'{result.path}: {warning}' for warning in result.about.get('warnings', ())]
    return usable


def _unfit(about: dict[str, Any], protocol: Protocol) -> str | None:
    dataset, threat = about['dataset'], about['threat_model']
    if (name := dataset.get('name')) != protocol.dataset or dataset.get('split') != 'test':
        return (
            f'it is of the data set {name} ({dataset.get("split")}), the table of {protocol.dataset} (test)'
        )
    if threat['norm'] != protocol.norm or not math.isclose(threat['eps'], protocol.eps, rel_tol=1e-6):
        return (
            f'its threat model is {threat["norm"]} with eps {threat["eps"]:.6g}, that of the table '
            f'{protocol.norm} with eps {protocol.eps:.6g}'
        )
    if (count := dataset['examples']) != protocol.examples:
        return f'it has {count} images, the table {protocol.examples}; --num_examples={count} shows it'
    if about['seed'] != protocol.seed:
        return f'its attacks have seed {about["seed"]}, those of the table {protocol.seed}'
    return None


def _stale(about: dict[str, Any], run: Run, checkpoint: str | None) -> str | None:
    """Why a result is not of the checkpoint that the run has now."""
    model = about.get('model', {})
    if model.get('checkpoint') != checkpoint:
        return f'it is of the checkpoint {model.get("checkpoint")}, the table of {checkpoint}'
    step = model.get('step')
    if checkpoint == 'last':
        wanted = run.lines[-1]['step']
        return None if step == wanted else f'it is of step {step}, and the run went on to {wanted}'
    name = 'validation/calibrated_pgd_accuracy'
    scores = {line['step']: line[name] for line in run.lines if line.get(name) is not None}
    if scores and scores.get(step) != max(scores.values()):
        return f'it is of step {step}, which is no longer the best of the run'
    return None


def _value(
    table: Table, column: Column, usable: list[Measured], run: Run | None, notes: list[str]
) -> Value | None:
    """The value of a cell for one seed, None if nothing has it.

    Raises:
        InputError: Results give different ones.
    """
    if column.statistic == 'collapsed':
        if run is None or run.collapsed is None:
            return None
        return Value(float(run.collapsed), None, (run.path / 'metrics.jsonl',))
    if column.statistic == 'best_scale':
        return _best_scale(table, column, usable, notes)
    wanted = _evaluation(table, column)
    return _one(column, _candidates(column, wanted, usable), notes)


def _evaluation(table: Table, column: Column) -> Evaluation:
    """The evaluation that fills a column; natural accuracy comes with any."""
    return next(e for e in table.evaluations if not column.attack or column.attack in e.attacks)


def _best_scale(table: Table, column: Column, usable: list[Measured], notes: list[str]) -> Value | None:
    one = column._replace(statistic='single_run')
    scales = {e.logit_scale for e in table.evaluations if column.attack in e.attacks}
    values = []
    for scale in sorted(scales):
        wanted = Evaluation((column.attack,), logit_scale=scale)
        value = _one(one, _candidates(one, wanted, usable), notes)
        if value is None:
            return None
        values.append(value)
    return min(values, key=lambda value: value.value)


def _is_there(evaluation: Evaluation, usable: list[Measured]) -> bool:
    """Whether every attack of an evaluation was made."""
    columns = [Column('', attack) for attack in evaluation.attacks]
    return all(any(True for _ in _candidates(column, evaluation, usable)) for column in columns)


def _candidates(column: Column, wanted: Evaluation, usable: list[Measured]) -> Iterator[Value]:
    """The values that results have for a column."""
    for result in usable:
        about, images = result.about, result.about['dataset']['examples']
        if not math.isclose(about.get('model', {}).get('logit_scale', 1.0), wanted.logit_scale, rel_tol=1e-5):
            continue
        if not column.attack:
            yield Value(about['clean']['accuracy'], images, (result.path,))
        elif (attack := about['attacks'].get(column.attack)) and _protocol_fits(about, column.attack, attack):
            if column.statistic == 'distance':
                yield Value(attack['stages'][0]['average_distance'], None, (result.path,))
            elif column.statistic == 'single_run' or wanted.restarts == 1:
                # The first of several restarts is what a single run would have been.
                yield Value(attack['single_run'], images, (result.path,))
            elif attack['restarts'] == wanted.restarts:
                yield Value(attack['accuracy'], images, (result.path,))


def _protocol_fits(about: dict[str, Any], name: str, attack: dict[str, Any]) -> bool:
    if attack['eot_samples'] != 1:
        return False
    if name in ATTACKS and ATTACKS[name].steps is None:
        step = about['threat_model']['eps'] / 4
        return attack['steps'] == STEPS and math.isclose(attack['step_size'], step, rel_tol=1e-5)
    return True


def _one(column: Column, candidates: Iterator[Value], notes: list[str]) -> Value | None:
    values = list(candidates)
    if not values:
        return None
    paths = tuple(path for value in values for path in value.paths)
    if any(value.value != values[0].value for value in values):
        shown = ' and '.join(f'{value.paths[0]} ({value.value:.4f})' for value in values)
        raise InputError(
            f'{column.title} of the same network and seed is measured twice, and not alike: {shown}. Move '
            'all but one of them out of the folder'
        )
    if len(values) > 1:
        notes.append(f'{column.title} is measured more than once, alike: {", ".join(map(str, paths))}')
    return values[0]


def _why_not(run: Run, rows: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """A note on a run that has the network and defense of a row, but another recipe."""
    near: tuple[int, Row, dict[str, tuple[Any, Any]]] | None = None
    for row, wanted in rows:
        found = results.differences_from(run, wanted)
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
