"""The networks of a page: runs with their results, and results of networks that no run is known of."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from si_jax.errors import InputError
from si_jax.evaluation.loading import SavedResult
from si_jax.evaluation.result import Result
from si_jax.reports import results
from si_jax.reports.audits import audits
from si_jax.reports.labels import labels_of, shortest
from si_jax.reports.results import Run
from si_jax.training.recipes import completed

# What every config has; one without it is of another version, and nothing can be said of its run.
NEEDED = (
    'data.name',
    'defense.name',
    'defense.si',
    'epochs',
    'model.arch',
    'model.width',
    'seed',
    'threat.eps',
    'threat.norm',
)
# What an attack's entry in a result may have.
NUMBERS = ('single_run', 'restarts', 'steps', 'step_size', 'eot_samples', 'max_perturbation', 'only')


class Evaluated(NamedTuple):
    """A result of evaluate.py."""

    path: Path  # the JSON file
    about: dict[str, Any]  # its content
    flags: SavedResult | None  # the flags of each image; None where they are missing or damaged

    @property
    def dataset(self) -> str:
        """The name of its data set, '' if it is not known."""
        return str(self.about['dataset'].get('name') or '')

    @property
    def model(self) -> dict[str, Any]:
        """What is known of the network."""
        model = self.about.get('model')
        return model if isinstance(model, dict) else {}


class Network(NamedTuple):
    """A network of a page."""

    number: int  # its position on the page, which it is drawn by
    label: str  # what the page calls it; no two have the same
    run: Run | None  # the run that trained it; None if that is not known
    trained_with: dict[str, Any]  # the environment of the run
    results: list[Evaluated]  # what was measured on it

    @property
    def folder(self) -> Path:
        """Of the run, else of its first result."""
        return self.run.path if self.run else self.results[0].path


class Contents(NamedTuple):
    """What a page shows, and what is wrong with the rest."""

    networks: list[Network]
    problems: list[str]


def collect(places: Sequence[str], names: Sequence[str] | None = None) -> Contents:
    """Reads all runs and results below folders.

    A result belongs to the run whose folder it lies in, which it names as its model, or which it is named
    after and lies beside (`NAME.json` and `NAME/`).

    Args:
        places: Folders, or JSON files of results.
        names: What to call the networks, in their order on the page; None for the shortest names that tell
            them apart.

    Raises:
        InputError: Nothing can be shown; the message says of each place why. Or the names are not as many as
            the networks, or one comes twice.
    """
    problems: list[str] = []
    runs: dict[Path, Run] = {}
    found: dict[Path, results.FoundResult] = {}
    for place in places:
        before = len(problems)
        folder = results.scan(place, problems)
        beside = Path(f'{place}.json')
        more = results.scan(beside, problems).results if beside.is_file() else []
        for run in folder.runs:
            if (usable := _usable(run, problems)) is not None:
                runs.setdefault(run.path.resolve(), usable)
        for result in (*folder.results, *more):
            found.setdefault(result.path.resolve(), result)
        shown = folder.runs or folder.results or more or _has_audit(place)
        if not shown and len(problems) == before:
            problems.append(_nothing(Path(place)))
    evaluated: dict[Path | None, list[Evaluated]] = {}
    for path, result in found.items():
        if (one := _evaluated(result.path, problems)) is not None:
            evaluated.setdefault(_owner(path, one, runs), []).append(one)
    networks = _networks(runs, evaluated)
    problems = list(dict.fromkeys(problems))
    if not networks:
        raise InputError(f'nothing can be shown. {" ".join(problems)}')
    if names is not None:
        if len(names) != len(networks) or len(set(names)) < len(names) or not all(names):
            order = '; '.join(f'{one.label} ({one.folder})' for one in networks)
            raise InputError(
                f'--names={",".join(names)} must be {len(networks)}, each once: one for each network of the '
                f'page in this order: {order}'
            )
        networks = [one._replace(label=name) for one, name in zip(networks, names, strict=True)]
    return Contents(networks, problems)


def _networks(runs: dict[Path, Run], evaluated: dict[Path | None, list[Evaluated]]) -> list[Network]:
    labels = labels_of({str(run.path): ConfigDict(run.config) for run in runs.values()})
    drafts: list[tuple[str, Run | None, list[Evaluated]]] = [
        (labels[str(run.path)], run, evaluated.get(path, [])) for path, run in runs.items()
    ]
    others: dict[str, list[Evaluated]] = {}
    for one in evaluated.get(None, []):
        named = json.dumps([one.model, one.dataset], sort_keys=True, default=str)
        others.setdefault(named if one.model else str(one.path), []).append(one)
    drafts += [(_title(some[0]), None, some) for some in others.values()]
    titles = [label for label, _, _ in drafts]
    places = [run.path if run else some[0].path for _, run, some in drafts]
    networks = []
    for number, (label, run, some) in enumerate(drafts):
        if titles.count(label) > 1:
            alike = [place for place, title in zip(places, titles, strict=True) if title == label]
            label = f'{label} ({shortest(places[number], alike)})'
        trained_with = _environment(run.path) if run else {}
        networks.append(Network(number, label, run, trained_with, some))
    return networks


def _title(result: Evaluated) -> str:
    """What a network is called that no run is known of."""
    for key in ('model', 'torch_checkpoint', 'workdir'):
        if value := result.model.get(key):
            parts = {'torch_checkpoint': 1, 'workdir': 2}.get(key, 0)
            return '/'.join(Path(str(value)).parts[-parts:]) if parts else str(value)
    return result.path.stem


def _owner(path: Path, result: Evaluated, runs: dict[Path, Run]) -> Path | None:
    workdir = result.model.get('workdir')
    named = Path(str(path).removesuffix('.json'))
    near = [parent for parent in path.parents if parent in runs]
    near += [
        folder for folder in runs if folder in (named, Path(str(workdir)).resolve() if workdir else named)
    ]
    return near[0] if near else None


def _evaluated(path: Path, problems: list[str]) -> Evaluated | None:
    """A result with its flags, as far as they are there."""
    try:
        about = Result.load(path, flags=False).about
        _check(path, about)
    except InputError as error:
        problems.append(str(error))
        return None
    flags = None
    if path.with_suffix('.npz').exists():
        try:
            flags = Result.load(path)
        except InputError as error:
            problems.append(f'{error} (no accuracy by class of {path})')
    else:
        problems.append(
            f'{path.with_suffix(".npz")} is missing, so there is no accuracy by class of {path}: evaluate '
            'again, or copy it there'
        )
    return Evaluated(path, about, flags)


def _check(path: Path, about: dict[str, Any]) -> None:
    """Raises InputError unless the numbers that are shown are there."""
    parts = {'clean': about['clean'], 'worst_case': about['worst_case'], **about['attacks']}
    parts |= {'union': about['union']} if about.get('union') else {}
    for name, part in parts.items():
        try:
            low, high = map(float, part['ci95'])
            value = float(part['accuracy'])
            right = 0 <= low <= value + 1e-9 and value - 1e-9 <= high <= 1
            # What may be absent, but not something else than a number.
            numbers = [part.get(key) for key in NUMBERS] + list(part.get('fixed', {}).values())
            stages = part.get('stages', [])
            numbers += [stage.get('accuracy') for stage in stages] if isinstance(stages, list) else ['']
            right = right and all(one is None or isinstance(one, int | float) for one in numbers)
        except (AttributeError, KeyError, TypeError, ValueError):
            right = False
        if not right:
            raise InputError(
                f'{path}: {name!r} holds no accuracy in [0, 1] with an interval around it (ci95), or a '
                'setting that is no number: evaluate again with this version'
            )


def _usable(run: Run, problems: list[str]) -> Run | None:
    """A run with the numbers of its metrics alone, if its config has what is asked of it."""
    if lacking := _lacking(run.config):
        problems.append(
            f'{run.path / "config.json"} lacks {lacking}: it is of another version; train again to have its '
            'run shown'
        )
        return None
    kinds = {'non_finite': dict}
    lines = [
        {name: value for name, value in line.items() if isinstance(value, kinds.get(name, int | float))}
        for line in run.lines
    ]
    try:
        run = run._replace(config=completed(run.config), lines=lines)
        _ = run.unfinished, run.collapsed  # what is asked of the config beside its fields
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        problems.append(f'{run.path / "config.json"} is damaged ({error}): train again to have its run shown')
        return None
    return run


def _lacking(config: dict[str, Any]) -> str | None:
    """The first field that a config should have and has not."""
    for name in NEEDED:
        section: Any = config
        for part in name.split('.'):
            if not isinstance(section, dict) or part not in section:
                return name
            section = section[part]
    return None


def _has_audit(place: str) -> bool:
    damaged: list[str] = []  # named when the page collects them
    return bool(audits([place], damaged) or damaged)


def _nothing(place: Path) -> str:
    if not place.exists():
        return f'There is no folder {place}: give the one that train.py printed, or a result of evaluate.py.'
    return (
        f'{place} holds neither a run of train.py (config.json) nor a result of evaluate.py: train one with '
        f'python train.py --config=configs/quickstart.py {shlex.quote(f"--workdir={place}")}, or '
        'give another folder.'
    )


def _environment(folder: Path) -> dict[str, Any]:
    """What the last start of a run was made with; {} if that is not known."""
    try:
        found = results.read_json(folder / 'environment.json')
    except InputError:
        return {}
    if not isinstance(found.get('command'), list):
        found.pop('command', None)
    return found
