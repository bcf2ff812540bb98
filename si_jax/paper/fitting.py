"""Which results fit a table's protocol, and what they say of each column; why the others do not fit."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from si_jax.attacks.family import ATTACKS
from si_jax.errors import InputError
from si_jax.evaluation.plain import departures
from si_jax.evaluation.table import settings_of
from si_jax.paper.cells import Column, Evaluation, Table
from si_jax.reports.results import FoundResult, Run, stale

STEPS = 20


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


class Protocol(NamedTuple):
    """What a result must have been measured with to fill a cell; `examples` are the counts of images."""

    dataset: str
    eps: float
    norm: str
    examples: frozenset[int]
    seed: int


def usable_results(
    found: list[FoundResult],
    protocol: Protocol,
    notes: list[str],
    run: Run | None = None,
    checkpoint: str | None = None,
) -> list[FoundResult]:
    """The results of the protocol; of the others a note says why they are none."""
    usable = []
    for result in found:
        if why := _unfit(result.about, protocol) or (run and stale(result.about, run, checkpoint)):
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
    if (count := dataset['examples']) not in protocol.examples:
        wanted = ' or '.join(map(str, sorted(protocol.examples)))
        return f'it has {count} images, the table {wanted}; --num_examples={count} shows it'
    if other := departures(about, but=('logit_scale',)):  # some tables are of scaled logits
        return f'it was measured {other[0]}'
    if about['seed'] != protocol.seed:
        return f'its attacks have seed {about["seed"]}, those of the table {protocol.seed}'
    return None


def value_of(
    table: Table, column: Column, usable: list[FoundResult], run: Run | None, notes: list[str]
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


def _best_scale(table: Table, column: Column, usable: list[FoundResult], notes: list[str]) -> Value | None:
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


def is_there(evaluation: Evaluation, usable: list[FoundResult]) -> bool:
    """Whether every attack of an evaluation was made."""
    columns = [Column('', attack) for attack in evaluation.attacks]
    return all(any(True for _ in _candidates(column, evaluation, usable)) for column in columns)


def _candidates(column: Column, wanted: Evaluation, usable: list[FoundResult]) -> Iterator[Value]:
    """The values that results have for a column."""
    for result in usable:
        about, images = result.about, result.about['dataset']['examples']
        if not math.isclose(about.get('model', {}).get('logit_scale', 1.0), wanted.logit_scale, rel_tol=1e-5):
            continue
        if wanted.num_examples not in (None, images):
            continue
        if not column.attack:
            yield Value(about['clean']['accuracy'], images, (result.path,))
        elif (attack := about['attacks'].get(column.attack)) and _protocol_fits(about, column.attack, attack):
            if column.statistic == 'distance':
                yield Value(attack['stages'][0]['average_distance'], None, (result.path,))
            elif column.statistic == 'single_run' or wanted.restarts == 1:
                # The first of several restarts is what a single run would have been.
                yield Value(attack['single_run'], images, (result.path,))
            elif settings_of(attack)['restarts'] == wanted.restarts:
                yield Value(attack['accuracy'], images, (result.path,))


def _protocol_fits(about: dict[str, Any], name: str, attack: dict[str, Any]) -> bool:
    settings = settings_of(attack)
    if settings['eot_samples'] != 1 or 'success' in attack:  # with targets it is another attack
        return False
    if name in ATTACKS and ATTACKS[name].steps is None:
        step = about['threat_model']['eps'] / 4
        return settings['steps'] == STEPS and math.isclose(settings['step_size'], step, rel_tol=1e-5)
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
