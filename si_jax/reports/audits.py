"""Audits of evaluate.py that belong to a page: their verdicts, and what each check said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from si_jax.auditing.headings import headings
from si_jax.errors import InputError
from si_jax.reports import results


class Line(NamedTuple):
    """A check."""

    name: str
    outcome: str
    words: str
    points: str  # the headings under which auditors ask for it


class Audited(NamedTuple):
    """An audit."""

    path: Path  # its JSON file
    attack: str  # what was audited
    of: str  # the network; '' if the file does not say
    verdict: str
    words: str
    lines: list[Line]  # its checks, in order


def audits(places: Sequence[str], problems: list[str]) -> list[Audited]:
    """All audits below the places; `problems` gets what is left out."""
    found: dict[Path, Audited] = {}
    for place in places:
        for path in results.json_files(Path(place)):
            try:
                about = results.read_json(path)
                if about.get('kind') == 'audit':
                    found.setdefault(path.resolve(), audited(path, about))
            except InputError:
                continue  # it is named among what the scan of the folder found
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                problems.append(f'The audit {path} is left out: {type(error).__name__} {error}')
    return list(found.values())


def name_of(model: dict[str, Any]) -> str:
    """What a JSON file calls the network that it is of; '' if it does not say."""
    return next((str(model[key]) for key in ('model', 'torch_checkpoint', 'workdir') if model.get(key)), '')


def audited(path: Path, about: dict[str, Any]) -> Audited:
    """An audit from its JSON; errors of reading a dictionary if it is damaged."""
    of = name_of(about.get('model') or {})
    lines = [
        Line(
            str(name),
            str(one['outcome']),
            str(one['words']),
            '; '.join(f'{key}: {", ".join(points)}' for key, points in headings(name).items()),
        )
        for name, one in about['checks'].items()
    ]
    return Audited(path, str(about['attack']['name']), of, str(about['verdict']), str(about['words']), lines)
