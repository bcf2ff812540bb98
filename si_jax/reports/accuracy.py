"""Accuracy under attack: the results that may stand in one table, and what the table says."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from si_jax.evaluation.compare import protocol_of
from si_jax.evaluation.intervals import interval
from si_jax.evaluation.table import settings_of
from si_jax.reports.collect import Evaluated, Network
from si_jax.threat import ball_of

# Where the rows that are no attack's stand: attacks are at 1.
ORDER = {'natural': 0, 'worst case': 2, 'union': 3}


class Cell(NamedTuple):
    """An accuracy with Wilson's 95 % interval, fractions as in the JSON."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """A row of the comparison."""

    name: str  # 'natural', the attack, or 'worst case'
    settings: str  # what tells the attack from others of the name
    cells: list[Cell | None]  # one a column; None where it was not measured


class Column(NamedTuple):
    """A network in a comparison: results that were measured on the same weights in the same way."""

    number: int  # what it is drawn by
    label: str  # of the network
    note: str  # which of its checkpoints, and what was done to it
    results: list[Evaluated]  # whose accuracies stand in the column


class Group(NamedTuple):
    """Results on the same images in the same ball."""

    about: dict[str, Any]  # of the first of them
    columns: list[Column]  # the networks
    rows: list[Row]  # natural accuracy, the attacks, the worst cases

    @property
    def title(self) -> str:
        """The images and the ball."""
        dataset, threat = self.about['dataset'], self.about['threat_model']
        name, split = dataset.get('name') or 'images of your own', dataset.get('split')
        return f'{dataset["examples"]:,} images of {name}{f" ({split})" if split else ""}, {ball(threat)}'

    @property
    def reach(self) -> str:
        """How far an attack may move an image, in words."""
        return ball_of(self.about['threat_model']['norm']).words


def ball(threat: dict[str, Any]) -> str:
    """A threat model in words: `Linf, eps = 0.0313725 (8/255)`."""
    norm, eps = str(threat['norm']).capitalize(), float(threat['eps'])
    pixels = 255 * eps
    known = (
        f' ({pixels:.0f}/255)' if norm == 'Linf' and math.isclose(pixels, round(pixels), abs_tol=1e-4) else ''
    )
    return f'{norm}, eps = {eps:.6g}{known}'


def groups_of(networks: list[Network], dataset: str) -> list[Group]:
    """The comparisons on a data set: results on other images or in another ball stand apart."""
    found: list[tuple[list[Any], list[Any], list[tuple[Network, Evaluated]]]] = []
    for network in networks:
        for result in network.results:
            if result.dataset != dataset:
                continue
            about, threat = result.about['dataset'], result.about['threat_model']
            key = [about.get('split'), about.get('classes'), about['examples'], threat['norm'], threat['eps']]
            if not dataset:  # nothing but their digest tells these images from others
                key.append(about.get('digest') or str(result.path))
            # Older results have no digest; they go with any.
            digest = [about['digest']] if about.get('digest') else []
            for other, known, members in found:
                if key == other and (not digest or not known or digest == known):
                    members.append((network, result))
                    known[:] = known or digest
                    break
            else:
                found.append((key, digest, [(network, result)]))
    return [_group(members, len(networks)) for _, _, members in found]


def _group(members: list[tuple[Network, Evaluated]], count: int) -> Group:
    columns: list[tuple[Any, Column, dict[str, Cell]]] = []
    heads: dict[str, tuple[str, str]] = {}
    for network, result in members:
        cells = {}
        for key, head, cell in _cells(result.about):
            heads.setdefault(key, head)
            cells[key] = cell
        identity = json.dumps([network.number, *_variant(result)], default=str)
        for other, column, known in columns:
            # What was measured twice and not alike gets another column.
            if identity == other and all(known.get(key, cell) == cell for key, cell in cells.items()):
                column.results.append(result)
                known |= cells
                break
        else:
            again = any(network.label == column.label for _, column, _ in columns)
            number = count + len(columns) if again else network.number
            columns.append((identity, Column(number, network.label, _note(result), [result]), cells))
    order = sorted(heads, key=lambda key: ORDER.get(heads[key][0], 1))
    rows = [Row(*heads[key], [cells.get(key) for _, _, cells in columns]) for key in order]
    return Group(members[0][1].about, [column for _, column, _ in columns], rows)


def _cells(about: dict[str, Any]) -> list[tuple[str, tuple[str, str], Cell]]:
    """(what it must share to stand in one row, name and settings, accuracy) for each accuracy of a result."""
    found = [('natural', ('natural', ''), cell_of(about['clean']))]
    protocols = []
    for name, entry in about['attacks'].items():
        protocol = json.dumps([name, about['seed'], protocol_of(entry)], default=str, sort_keys=True)
        protocols.append(protocol)
        found.append((protocol, (name, settings(name, entry, about)), cell_of(entry)))
    if len(protocols) > 1:
        names = ', '.join(about['attacks'])
        of = f'of {names}' if len(protocols) <= 4 else f'of {len(protocols)} attacks: {names}'
        found.append((json.dumps(sorted(protocols)), ('worst case', of), cell_of(about['worst_case'])))
    if union := about.get('union'):
        of = f'of the threat models {", ".join(union["worst_case"])}'
        found.append((json.dumps(['union', sorted(protocols), of]), ('union', of), cell_of(union)))
    return found


def cell_of(entry: dict[str, Any]) -> Cell:
    """The accuracy of an entry of a result's JSON."""
    return Cell(float(entry['accuracy']), *map(float, entry['ci95']))


def settings(name: str, entry: dict[str, Any], about: dict[str, Any]) -> str:
    """The settings of an attack that its name does not say."""
    parts, found = [], {key: value for key, value in settings_of(entry).items() if f'{key}=' not in name}
    if found.get('steps') is not None:
        parts.append(f'{found["steps"]} steps')
    size, usual = found.get('step_size'), about['threat_model']['eps'] / 4
    if size is not None and not math.isclose(size, usual, rel_tol=1e-5):
        parts.append(f'{size:.4g} long')
    if (restarts := found.get('restarts') or 1) > 1:
        parts.append(f'{restarts} restarts')
    if (samples := found.get('eot_samples') or 1) > 1:
        parts.append(f'{samples} gradients a step')
    if (success := entry.get('success')) is not None:
        parts.append(f'target reached on {100 * success:.2f} %')
    if draws := about.get('decisions'):
        parts.append(f'mean share of {draws} draws')
    if about['seed']:
        parts.append(f'seed {about["seed"]}')
    return ', '.join(parts)


def _variant(result: Evaluated) -> list[Any]:
    """What makes another network of the same run."""
    model, about = result.model, result.about
    own = [model.get('step'), model.get('logit_scale', 1.0), model.get('weights')]
    bytes_, radii = about.get('eight_bit', False), about.get('smaller_radii', [])
    return [*own, about.get('gradient_of'), about['precision'], bytes_, radii]


def _note(result: Evaluated) -> str:
    model = result.model
    parts = [f'{model["checkpoint"]} checkpoint'] if model.get('checkpoint') else []
    parts += [f'step {model["step"]}'] if model.get('step') is not None else []
    parts += ['live weights, not their average'] if model.get('weights') == 'live' else []
    if (scale := model.get('logit_scale', 1.0)) != 1.0:
        parts.append(f'logits times {scale:g}')
    if result.about.get('gradient_of'):
        parts.append('attacked through another gradient')
    if result.about.get('eight_bit'):
        parts.append('adversarial images rounded to bytes')
    if result.about.get('smaller_radii'):
        parts.append('what broke at a smaller radius stays broken')
    return ', '.join(parts)


class Headline(NamedTuple):
    """The number of a network that a reader should keep: the lowest of its accuracies under attack."""

    column: Column
    of: str
    cell: Cell | None
    natural: Cell | None


def headlines(group: Group) -> list[Headline]:
    """The headline of each column."""
    found = []
    for i, column in enumerate(group.columns):
        natural = next((row.cells[i] for row in group.rows if row.name == 'natural'), None)
        lowest: Cell | None = None
        of = ''
        for row in group.rows:
            cell = row.cells[i]
            if row.name != 'natural' and cell is not None and (lowest is None or cell.value <= lowest.value):
                several = row.name in ORDER
                lowest, of = cell, f'{row.name} {row.settings}' if several else f'under {row.name}'
        if (joint := _joint(column)) is not None and (lowest is None or joint.value <= lowest.value):
            lowest, of = joint, 'under all attacks of its results'
        found.append(Headline(column, of, lowest, natural))
    return found


def _joint(column: Column) -> Cell | None:
    """What withstands the attacks of several results, image by image; None of one, or without the flags."""
    attacked = [one for one in column.results if one.about['attacks']]
    flags = [one.flags for one in attacked if one.flags is not None]
    if len(flags) < 2 or len(flags) < len(attacked):
        return None
    first = flags[0]
    for one in flags:
        same = np.array_equal(first.indices, one.indices), np.array_equal(first.labels, one.labels)
        if not all(same):
            return None
    counted = np.min([one.share['worst_case'] for one in flags], axis=0)
    return Cell(float(counted.mean()), *interval(counted))
