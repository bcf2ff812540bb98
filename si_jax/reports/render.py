"""From the networks of a page to its HTML."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from si_jax.reports import accuracy, charts, classes, curves, gallery, pictures, runs
from si_jax.reports.collect import Contents, Network
from si_jax.runtime.environment import environment

MOST_DRAWN = 12  # networks in one chart; more cannot be told apart
MOST_CLASSES = 20  # in a chart
FEW = 4  # networks side by side; more stand below each other, with their evaluations folded
LIMIT = 5_000_000  # bytes of a page


class Comparison(NamedTuple):
    """A group of results with its charts and its accuracy by class; charts are None where there is none."""

    group: accuracy.Group
    chart: Markup | None
    classes: classes.ByClass | None
    class_chart: Markup | None
    paired: str | None


class Part(NamedTuple):
    """What belongs to one data set; nothing in it is compared with another part.

    Attributes:
        title: The data set.
        networks: Those that were trained or measured on it.
        trained: Those that were trained on it.
        comparisons: Their results.
        panels: Charts of the training, with what they show.
        galleries: Images.
    """

    title: str
    networks: list[Network]
    trained: list[Network]
    comparisons: list[Comparison]
    panels: list[tuple[curves.Panel, Markup]]
    galleries: list[gallery.Gallery]


def render(
    contents: Contents,
    places: Sequence[str],
    *,
    gallery: int,
    data_dir: str | None,
    figures: str,
) -> tuple[str, list[str]]:
    """The page, and what could not be shown.

    Args:
        contents: The networks.
        places: Where they were looked for.
        gallery: How many images are shown.
        data_dir: Where the data set lies; None for where the runs had it.
        figures: The folder of `report.py --figure`.
    """
    ids, problems = charts.Ids(), list(contents.problems)
    networks = contents.networks
    parts = [_part(ids, networks, name, gallery, data_dir, problems) for name in _datasets(networks)]
    shown = pictures.pictures(places, figures, networks, problems)
    made_with, commands = runs.environments(networks)
    page = (
        _environment()
        .get_template('page.html')
        .render(
            ids=ids,
            networks=networks,
            parts=parts,
            pictures=shown,
            problems=problems,
            warnings=[(one, *remark) for one in networks for remark in runs.remarks(one)],
            remarks=[(one, remark) for one in networks for remark in curves.remarks(one)],
            missing=runs.missing(networks),
            made_with=made_with,
            commands=commands,
            command=shlex.join(['python', *sys.orig_argv[1:]]),
            here=environment(),
        )
    )
    if len(page.encode()) > LIMIT:
        problems.append(
            f'The page has {len(page.encode()) / 1e6:.1f} MB, more than {LIMIT / 1e6:g}: give fewer '
            '--workdirs, or a smaller --gallery'
        )
    return page, problems


def _datasets(networks: list[Network]) -> list[str]:
    names: dict[str, None] = {}
    for network in networks:
        if network.run:
            names[str(network.run.config['data']['name'])] = None
        names |= dict.fromkeys(result.dataset for result in network.results)
    return list(names)


def _part(
    ids: charts.Ids,
    networks: list[Network],
    name: str,
    count: int,
    data_dir: str | None,
    problems: list[str],
) -> Part:
    trained = [one for one in networks if one.run and one.run.config['data']['name'] == name]
    measured = [one for one in networks if any(result.dataset == name for result in one.results)]
    both = [one for one in networks if one in trained or one in measured]
    panels = curves.panels(trained[:MOST_DRAWN])
    drawn = [
        (panel, charts.curves(ids, panel.title, panel.series, share=panel.share, log=panel.log))
        for panel in panels
    ]
    comparisons = [_comparison(ids, group) for group in accuracy.groups_of(networks, name)]
    shown = gallery.galleries(both, name, count, data_dir, problems)
    return Part(name or 'Images of your own', both, trained, comparisons, drawn, shown)


def _comparison(ids: charts.Ids, group: accuracy.Group) -> Comparison:
    by_class = classes.by_class(group)
    chart = class_chart = None
    if len(group.columns) <= MOST_DRAWN:
        lines = [
            charts.Line(
                row.name,
                [(c.number, c.label, cell) for c, cell in zip(group.columns, row.cells, strict=True) if cell],
            )
            for row in group.rows
        ]
        chart = charts.intervals(ids, f'Accuracy and 95 % interval on {group.title}', lines)
    if by_class and len(by_class.heads) <= MOST_DRAWN:
        lines = [
            charts.Line(
                row.name,
                [
                    (number, label, cells[1])
                    for (number, label, _), cells in zip(by_class.heads, row.cells, strict=True)
                    if cells
                ],
            )
            for row in by_class.rows
        ]
        if len(lines) > MOST_CLASSES:
            lines = sorted(lines, key=lambda line: sum(cell.value for _, _, cell in line.marks))[
                :MOST_CLASSES
            ]
        class_chart = charts.intervals(ids, f'Worst case by class on {group.title}', lines)
    return Comparison(group, chart, by_class, class_chart, _paired(group))


def _paired(group: accuracy.Group) -> str | None:
    """The command that compares the first two networks image by image, if it would."""
    firsts = [column.results[0] for column in group.columns[:2]]
    if len(firsts) < 2 or list(firsts[0].about['attacks']) != list(firsts[1].about['attacks']):
        return None
    if not all(result.flags for result in firsts):
        return None
    return shlex.join(['python', 'evaluate.py', 'compare', *(str(result.path) for result in firsts)])


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {'percent': _percent, 'digits': _digits, 'zip': zip}
    made.globals |= {
        'key': charts.key,
        'epochs': curves.epochs,
        'facts': runs.facts,
        'differing': runs.differing,
        'full': runs.full,
        'settings': accuracy.settings,
        'headlines': accuracy.headlines,
        'cell_of': accuracy.cell_of,
        'most_classes': MOST_CLASSES,
        'few': FEW,
        'most_drawn': MOST_DRAWN,
    }
    return made


def _percent(value: float) -> str:
    return f'{100 * value:.1f}'


def _digits(value: float | None) -> str:
    return '' if value is None else f'{value:.4g}'
