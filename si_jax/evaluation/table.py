"""The table of a result, for a terminal, a notebook, a paper and a spreadsheet, from what its JSON holds."""

import abc
import csv
import html
import io
import math
import os
import re
from pathlib import Path
from typing import Any

from si_jax.evaluation import cosines
from si_jax.runtime.extras import extra
from si_jax.runtime.terminal import named, wrapped
from si_jax.threat import radius

About = dict[str, Any]  # the JSON of a result
WORST = 'worst case'
SETTINGS = ('restarts', 'steps', 'step_size', 'eot_samples')  # of the caller's, that an attack may take
# Columns: how wide each is in a terminal of 80 columns, beside the name of the row.
NAME = 14
WIDTHS = {
    'accuracy': 9,
    '95 % interval': 15,
    'breaks alone': 7,
    'one run': 7,
    'restarts': 9,
    'steps': 6,
    'largest perturbation': 13,
}


class Tabular(abc.ABC):
    """What has a table: anything with `to_json`, the JSON of a result."""

    @abc.abstractmethod
    def to_json(self) -> About:
        """The result in JSON's types."""

    def table(self) -> str:
        """The accuracies in percent with their intervals, for a terminal of 80 columns.

        The decimals are those that the number of images supports. `breaks alone` counts the images that only
        this attack breaks, `one run` is the accuracy after the first of several restarts, and `largest
        perturbation` the largest distance of an adversarial image from its original.
        """
        return text(self.to_json())

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return as_html(self.to_json())

    def to_pandas(self) -> Any:
        """The rows of the table as a pandas.DataFrame, with fractions, by attack.

        Raises:
            InputError: pandas is not installed.
        """
        frame = extra('pandas', 'pandas').DataFrame.from_records(rows(self.to_json()))
        return frame.set_index('attack')

    def to_latex(self) -> str:
        """The table as LaTeX, for the package booktabs; accuracies in percent."""
        return as_latex(self.to_json())

    def to_csv(self, path: str | os.PathLike | None = None) -> str:
        """The rows of the table as comma-separated values, with fractions; written to a file if one is named.

        Raises:
            OSError: The file cannot be written.
        """
        written = as_csv(self.to_json())
        if path is not None:
            Path(path).write_text(written, encoding='utf-8')
        return written


def settings_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The `SETTINGS` that an attack ran with, from its entry in a result: the caller's and its own."""
    own = entry.get('fixed')
    found = {key: entry.get(key) for key in SETTINGS} | (own if isinstance(own, dict) else {})
    return found | {'eot_samples': found['eot_samples'] or 1}


def rows(about: About) -> list[dict[str, Any]]:
    """A row for the clean images, each attack and the worst case; None where a row has no such number."""
    entries = {'clean': about['clean'], **about['attacks'], WORST: about['worst_case']}
    found = []
    for name, entry in entries.items():
        settings = settings_of(entry) if name in about['attacks'] else {}
        low, high = entry['ci95']
        found.append(
            {
                'attack': name,
                'accuracy': entry['accuracy'],
                'lowest': low,
                'highest': high,
                'breaks alone': entry.get('only'),
                'one run': entry.get('single_run'),
                'restarts': settings.get('restarts'),
                'steps': settings.get('steps'),
                'largest perturbation': entry.get('max_perturbation'),
            }
        )
    return found


def _entry(about: About, name: str) -> About:
    """The part of the JSON that a row of the table is of."""
    return about['worst_case'] if name == WORST else about['attacks'].get(name, about['clean'])


def decimals(images: int) -> int:
    """Decimals of a percentage that so many images support: one image is 100 / N points. At most 2."""
    return min(2, max(0, math.ceil(math.log10(images)) - 2))


def title(about: About) -> dict[str, str]:
    """What stands above the table: the network, the images, the threat model and seed, as far as known."""
    model, dataset, threat = about.get('model') or {}, about['dataset'], about['threat_model']
    parts = [str(model[key]) for key in ('workdir', 'model', 'torch_checkpoint') if key in model]
    shown = {'checkpoint': 'checkpoint', 'step': 'step', 'weights': 'weights', 'arch': 'architecture'}
    parts += [f'{words} {model[key]}' for key, words in shown.items() if model.get(key) is not None]
    parts += [f'logits times {model["logit_scale"]:g}'] if 'logit_scale' in model else []
    images = ' '.join(str(dataset[key]) for key in ('name', 'split') if dataset.get(key))
    rounded = ', rounded to 8 bits' if about.get('eight_bit') else ''
    return {
        **({'model': ', '.join(parts)} if parts else {}),
        'data': f'{images}{", " if images else ""}{dataset["examples"]:,} images',
        'threat': f'{threat["norm"]}, eps = {radius(threat["eps"])}{rounded}',
        'seed': str(about['seed']),
    }


def worst_of(about: About) -> str:
    """Of which attacks the worst case is, as a sentence."""
    names = list(about['attacks'])
    several = ' and under each of ' if len(names) > 1 else ' and under '
    return (
        f'{WORST}: an image counts if it is classified correctly without an attack'
        f'{several if names else ""}{", ".join(names)}'
    )


def notes(about: About) -> list[tuple[str, str]]:
    """What is said below the table: what each line begins with, and its words."""
    found = [('', worst_of(about))]
    if draws := about.get('decisions'):
        meant = f'accuracy is the mean share of right ones among {draws} fresh draws of each image'
        found.append(('', f'random classifier: {meant} (docs/random.md)'))
    for name, one in about['attacks'].items():
        said = one.get('protocol') or {}
        if words := said.get('screen') or said.get('variant'):  # a preset that is no protocol
            passes = sum(stage.get('forward_passes', 0) for stage in one['stages'])
            found.append(('', f'{name}: {words} ({passes:,} forward passes).'))
        if (success := one.get('success')) is not None:
            found.append(('', f'{name}: a target was reached on {100 * success:.2f} % of the images.'))
    if (gap := about.get('overestimation_gap')) is not None:
        found.append(('', f'overestimation gap, pgd - autoattack: {gap:.2f} points'))
    if about.get('si') is not None:
        found.append(('note: ', cosines.note(about['si'], about['dataset']['examples'])))
    return found + [('warning: ', warning) for warning in about['warnings']]


def _cells(row: dict[str, Any], digits: int) -> list[str]:
    """The cells of a row in words, in the order of `WIDTHS`; '' for those that it has not."""

    def percent(share: float | None) -> str:
        return '' if share is None else f'{100 * share:.{digits}f}'

    counts = ['' if row[key] is None else str(row[key]) for key in ('restarts', 'steps')]
    largest = row['largest perturbation']
    if row['restarts'] is not None and row['steps'] is None:
        counts[1] = '-'
    return [
        percent(row['accuracy']),
        f'{percent(row["lowest"])} - {percent(row["highest"])}',
        '' if row['breaks alone'] is None else str(row['breaks alone']),
        percent(row['one run']),
        *counts,
        '' if largest is None else f'{largest:.4g}',
    ]


def text(about: About) -> str:
    """`Tabular.table`."""
    digits = decimals(about['dataset']['examples'])
    lines = []
    for key, words in title(about).items():
        lines += wrapped(f'{key:<8}', words)
    # Heads of two words stand on two lines where the column is narrow.
    heads = [head.rsplit(' ', 1) if len(head) > width - 1 else ['', head] for head, width in WIDTHS.items()]
    lines += ['', *(_line('in %' * number, [head[number] for head in heads]) for number in (0, 1))]
    for row in rows(about):
        lines += named(row['attack'], _line('', _cells(row, digits))[NAME:], NAME)
        if (entry := _entry(about, row['attack'])).get('vote_accuracy') is not None:
            vote, worst = (
                f'{100 * entry[key]:.{digits}f}' for key in ('vote_accuracy', 'worst_draw_accuracy')
            )
            lines.append(f'  {"vote":<{NAME - 2}}{vote:>9}   every draw right {worst}')
        stages = about['attacks'].get(row['attack'], {}).get('stages') or []
        for stage in stages if len(stages) > 1 else ():
            lines.append(
                f'  {stage["attack"]:<{NAME - 2}}{100 * stage["accuracy"]:>9.{digits}f}'
                f'   broke {stage["broken"]} of {stage["attacked"]} images'
            )
    lines.append('')
    for start, words in notes(about):
        lines += wrapped(start, words)
    return '\n'.join(lines)


def _line(name: str, cells: list[str]) -> str:
    columns = (f'{cell:>{width}}' for cell, width in zip(cells, WIDTHS.values(), strict=True))
    return f'{name:<{NAME}}{"".join(columns)}'.rstrip()


def as_html(about: About) -> str:
    """The table for a notebook."""
    digits, quoted = decimals(about['dataset']['examples']), html.escape
    caption = '<br>'.join(f'{key}: {quoted(words)}' for key, words in title(about).items())
    head = ''.join(f'<th scope="col">{name}</th>' for name in ('in %', *WIDTHS))
    body = ''.join(
        f'<tr><th scope="row">{quoted(row["attack"])}</th>'
        + ''.join(f'<td>{quoted(cell)}</td>' for cell in _cells(row, digits))
        + '</tr>'
        for row in rows(about)
    )
    below = ''.join(f'<p>{quoted(start + words)}</p>' for start, words in notes(about))
    style = 'style="text-align: left; caption-side: top"'
    return (
        f'<table><caption {style}>{caption}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table>{below}'
    )


def as_csv(about: About) -> str:
    """`Tabular.to_csv`, without a file."""
    found, written = rows(about), io.StringIO()
    writer = csv.DictWriter(written, list(found[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(found)
    return written.getvalue()


def as_latex(about: About) -> str:
    """`Tabular.to_latex`."""
    digits = decimals(about['dataset']['examples'])

    def line(*cells: str) -> str:
        return ' & '.join(cells) + r' \\'

    def escaped(words: str) -> str:
        special = {'\\': r'\textbackslash{}', '^': r'\^{}', '~': r'\~{}'}
        words = re.sub(r'(?<=\d) - (?=\d)', '--', words)
        return ''.join(f'\\{one}' if one in '_%&#${}' else special.get(one, one) for one in words)

    return '\n'.join(
        [
            *(f'% {key}: {" ".join(words.split())}' for key, words in title(about).items()),
            r'\begin{tabular}{l' + 'r' * len(WIDTHS) + '}',
            r'\toprule',
            line('in \\%', *map(escaped, WIDTHS)),
            r'\midrule',
            *(line(*map(escaped, (row['attack'], *_cells(row, digits)))) for row in rows(about)),
            r'\bottomrule',
            r'\end{tabular}',
            '',
        ]
    )
