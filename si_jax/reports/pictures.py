"""Figures of report.py and audits of evaluate.py that belong to the runs of a page."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from si_jax.errors import InputError
from si_jax.reports import results
from si_jax.reports.collect import Network
from si_jax.reports.labels import FIGURE_TITLES

MOST = 2_500_000  # bytes of all pictures of a page


class Picture(NamedTuple):
    """A picture."""

    title: str  # what it shows
    alt: str  # the same with its numbers, for those who do not see it
    path: Path  # its JSON file
    uri: str  # as a data URI
    width: int  # in pixels
    height: int  # likewise


def pictures(
    places: Sequence[str], figures: str, networks: list[Network], problems: list[str]
) -> list[Picture]:
    """All audits and figures below the places, and figures of these networks' runs below `figures`.

    `problems` gets what is left out.
    """
    runs = {network.run.path.resolve() for network in networks if network.run}
    found, seen, size = [], set(), 0
    for place in (*places, figures):
        for path in results.json_files(Path(place)):
            if path.resolve() in seen or not path.with_suffix('.png').exists():
                continue
            seen.add(path.resolve())
            try:
                about = results.read_json(path)
                made = _picture(path, about, None if place != figures else runs)
            except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
                problems.append(f'The picture of {path} is left out: {error}')
                continue
            if made is None:
                continue
            if (size := size + len(made.uri)) > MOST:
                problems.append(
                    f'The picture {path.with_suffix(".png")} is left out: the page would be large'
                )
                continue
            found.append(made)
    return found


def _picture(path: Path, about: dict[str, Any], runs: set[Path] | None) -> Picture | None:
    """The picture beside a JSON file; None if it is none of ours, or of none of these runs."""
    if about.get('kind') == 'audit':
        attack = about['attack']['name']
        title = f'Audit of {attack}: {about["verdict"]}'
        alt = f'{title}. {about["words"]}.'
        if about['accuracy'] is not None:
            clean, robust = 100 * about['clean'], 100 * about['accuracy']
            alt += f' Accuracy {clean:.1f} % clean, {robust:.1f} % under {attack}.'
    elif (name := str(about.get('figure'))) in FIGURE_TITLES:
        models = about.get('models', [])
        if runs is not None and not any(Path(str(one['workdir'])).resolve() in runs for one in models):
            return None
        kind = f'Figure {name}' if name.isdigit() else name.capitalize()
        title = f'{kind}: {FIGURE_TITLES[name]}'
        alt = f'{title}. {_numbers(about)}'
    else:
        return None
    content = path.with_suffix('.png').read_bytes()
    with Image.open(path.with_suffix('.png')) as picture:
        width, height = picture.size
    uri = f'data:image/png;base64,{base64.b64encode(content).decode()}'
    return Picture(title, alt, path, uri, width, height)


def _numbers(about: dict[str, Any]) -> str:
    """What a figure measured, in a line for each network."""
    parts = []
    for curve in next((about[key] for key in ('curves', 'surfaces', 'histograms') if key in about), []):
        shown = [f'{key.replace("_", " ")} {text}' for key, value in curve.items() if (text := _say(value))]
        parts.append(f'{curve["label"]}: {", ".join(shown)[:400]}.')
    return ' '.join(parts)


def _say(value: Any) -> str:
    """A number, the span of several, or the numbers of names; '' for what is none."""
    if isinstance(value, dict):
        parts = {key: _say(part) for key, part in value.items()}
        return ' '.join(f'{key} {text}' for key, text in parts.items() if text)
    if isinstance(value, list):
        flat = [part for part in value if isinstance(part, int | float)]
        return f'{min(flat):.3g} to {max(flat):.3g}' if flat and len(flat) == len(value) else ''
    return f'{value:.4g}' if isinstance(value, int | float) and not isinstance(value, bool) else ''
