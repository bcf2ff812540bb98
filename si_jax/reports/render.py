"""Writes the report page: from the networks that it shows to its HTML."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from si_jax.auditing.headings import POINTS
from si_jax.errors import InputError
from si_jax.evaluation import cosines
from si_jax.evaluation.settings import check_count
from si_jax.reports import accuracy, charts, classes, curves, gallery, pictures, runs
from si_jax.reports.audits import audits
from si_jax.reports.collect import Network, collect
from si_jax.reports.summary import summary
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_atomic

GALLERY = 10  # images, unless told otherwise
MOST_DRAWN = 12  # networks in one chart; more cannot be told apart
MOST_CLASSES = 20  # in a chart
MOST_SUMMARIES = 3  # at the top of a page; the other groups have their tables
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
    """What belongs to one data set; nothing in it is compared with another part."""

    title: str  # the data set
    networks: list[Network]  # those that were trained or measured on it
    trained: list[Network]  # those that were trained on it
    comparisons: list[Comparison]  # their results
    panels: list[tuple[curves.Panel, Markup]]  # charts of the training, with what they show
    galleries: list[gallery.Gallery]  # images


def write(
    workdirs: Sequence[str],
    out: str,
    *,
    gallery: int = GALLERY,
    data_dir: str | None = None,
    figures: str = 'runs/figures',
    names: Sequence[str] | None = None,
) -> tuple[Path, list[str]]:
    """Writes the report page of runs.

    Args:
        workdirs: Folders of runs, folders above them, or JSON files of results.
        out: The folder that gets `index.html`; made if it does not exist.
        gallery: How many test images are shown before and after an attack; 0 reads no checkpoint.
        data_dir: Where their data set lies; None for where the runs had it.
        names: What to call the networks, in the order of the page; None for the shortest names that tell them
            apart.
        figures: Where `report.py --figure` puts its files: those of these runs are shown.

    Returns:
        The page, and what could not be shown, each with the remedy. The page says this too.

    Raises:
        InputError: A value is wrong, or nothing can be shown.
    """
    check_count('gallery', gallery, least=0)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--out={out} is a file: give the folder that gets index.html')
    contents = collect(workdirs, names)
    ids, problems = charts.Ids(), list(contents.problems)
    networks = contents.networks
    parts = [_part(ids, networks, name, gallery, data_dir, problems) for name in _datasets(networks)]
    shown = pictures.pictures(workdirs, figures, networks, problems)
    audited = audits(workdirs, problems)
    warnings = [(one, *remark) for one in networks for remark in runs.remarks(one)]
    groups = [comparison.group for part in parts for comparison in part.comparisons]
    summaries = [summary(group, audited, len(warnings)) for group in groups[:MOST_SUMMARIES]]
    made_with, commands = runs.environments(networks)
    page = (
        templates()
        .get_template('page.html')
        .render(
            ids=ids,
            networks=networks,
            parts=parts,
            pictures=shown,
            problems=problems,
            warnings=warnings,
            audits=audited,
            summaries=summaries,
            points=POINTS,
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
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / 'index.html', page)
    return folder / 'index.html', problems


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
    evaluated = [one for one in networks if any(result.dataset == name for result in one.results)]
    both = [one for one in networks if one in trained or one in evaluated]
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


def templates() -> jinja2.Environment:
    """The templates of this folder, with what they call."""
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
        'si_note': cosines.note,
        'most_classes': MOST_CLASSES,
        'few': FEW,
        'most_drawn': MOST_DRAWN,
    }
    return made


def _percent(value: float) -> str:
    return f'{100 * value:.1f}'


def _digits(value: float | None) -> str:
    return '' if value is None else f'{value:.4g}'
