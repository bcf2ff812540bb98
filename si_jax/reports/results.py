"""The runs and results of a folder, found by what they are and not by what their folders are called.

A run is a folder with the `config.json` of train.py; the results of evaluate.py below it belong to it. Copies
of these files serve as well as the run itself, and checkpoints are not read.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from si_jax.errors import InputError
from si_jax.evaluation.loading import SCHEMA, check_json
from si_jax.storage import files
from si_jax.training import helper, overfitting
from si_jax.training.metrics import read_metrics
from si_jax.training.workdir import MAY_CHANGE

# Folders that hold no results, some of them many files.
PRUNED = ('checkpoints', 'tensorboard')
# What does not change what a run measures; everything else, the epochs too, makes it another run.
IRRELEVANT = (*(name for name in MAY_CHANGE if name != 'epochs'), 'evaluation.batch_size')
COLLAPSE = 0.2  # a fall of accuracy under PGD between two epochs, as in configs of RFGSM-AT


class Run(NamedTuple):
    """A run of train.py."""

    path: Path  # its folder
    config: dict[str, Any]  # its config, nested dictionaries
    lines: list[dict[str, Any]]  # its metrics, a dictionary for each epoch

    @property
    def guarded(self) -> bool:
        """Whether the guard against catastrophic overfitting ended it.

        Since the guard takes many images, its verdict needs more than a fall, and stands in the last line.
        """
        if any('pgd5_images' in line for line in self.lines[-1:]):
            return self.lines[-1].get('ended') == overfitting.COLLAPSE
        falls = _largest_fall([line.get('pgd5_accuracy') for line in self.lines[-2:]])
        drop = self.config.get('overfitting', {}).get('drop', 0.0)
        return bool(drop) and falls is not None and falls > drop

    @property
    def unfinished(self) -> str | None:
        """How far it is, None if it came to its end."""
        done = self.lines[-1].get('epoch') or 0 if self.lines else 0
        ended = self.lines[-1].get('ended') if self.lines else None
        if ended or self.guarded:
            return None
        if done >= self.config['epochs']:
            # The line is written first. A copy of the run, without checkpoints, says nothing of them.
            saved = [int(path.parent.name) for path in self.path.glob('checkpoints/[0-9]*/manifest.json')]
            last = self.lines[-1].get('step') or 0
            return f'step {last}, whose checkpoint is missing' if saved and max(saved) < last else None
        missing = '' if self.lines else ' (metrics.jsonl is missing or empty)'
        return f'epoch {done:g} of {self.config["epochs"]}{missing}'

    @property
    def collapsed(self) -> bool | None:
        """Whether its robustness collapsed during training; None if nothing was held out."""
        fall = _largest_fall([line.get('validation/pgd_accuracy') for line in self.lines])
        return True if self.guarded else None if fall is None else fall > COLLAPSE


class FoundResult(NamedTuple):
    """A result of evaluate.py."""

    path: Path  # the JSON file
    about: dict[str, Any]  # its content
    run: Path | None  # the folder of the run that it belongs to, None for other networks


class Folder(NamedTuple):
    """The runs and results below a folder."""

    runs: list[Run]
    results: list[FoundResult]


def scan(folder: str | os.PathLike, problems: list[str] | None = None) -> Folder:
    """Reads all runs and results below a folder, or from a JSON file; one that does not exist has none.

    A config or result that is damaged or of another schema is passed over, and `problems` gets why.

    Raises:
        InputError: There is such a file, and `problems` is None.
    """
    runs: list[Run] = []
    results: list[FoundResult] = []
    for path in json_files(Path(folder)):
        try:
            _sort_in(path, read_json(path), runs, results)
        except InputError as error:
            if problems is None:
                raise
            problems.append(str(error))
    folders = {run.path for run in runs}
    return Folder(runs, [result._replace(run=_owner(result.path, folders)) for result in results])


def _sort_in(path: Path, about: dict[str, Any], runs: list[Run], results: list[FoundResult]) -> None:
    """Adds a file to the runs or the results, if it is one of them."""
    if path.name == 'config.json' and {'data', 'defense', 'epochs'} <= about.keys():
        metrics = path.with_name('metrics.jsonl')
        runs.append(Run(path.parent, about, list(read_metrics(metrics)) if metrics.exists() else []))
    elif {'attacks', 'clean', 'threat_model'} <= about.keys():
        if about.get('schema') != SCHEMA:
            raise InputError(
                f'{path} has schema {about.get("schema")!r}, known is {SCHEMA}: evaluate again with this '
                'version, or move it out of the folder'
            )
        results.append(FoundResult(path, check_json(path, about), None))


def json_files(folder: Path) -> Iterator[Path]:
    """The JSON files below a folder that are not empty, in order; a file is the only one of itself."""
    if folder.is_file():
        yield folder
    for place, below, names in os.walk(folder):
        # The helper that a run trained for itself is a part of it.
        pruned = (*PRUNED, helper.FOLDER) if 'config.json' in names else PRUNED
        below[:] = sorted(n for n in below if n not in pruned and not n.endswith('.partial'))
        for path in (Path(place, name) for name in sorted(names) if name.endswith('.json')):
            with contextlib.suppress(OSError):  # reading it says what is wrong
                if not path.stat().st_size:  # as `report.py --json > FILE` has made it in the same folder
                    continue
            yield path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if it holds something else.

    Raises:
        InputError: It is damaged.
    """
    try:
        about = files.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f'{path} is damaged ({error}): evaluate or train again, or move it out of the folder'
        ) from error
    return about if isinstance(about, dict) else {}


def _owner(path: Path, folders: set[Path]) -> Path | None:
    return next((parent for parent in path.parents if parent in folders), None)


def _largest_fall(accuracies: list[float | None]) -> float | None:
    known = [value for value in accuracies if value is not None]
    return max((a - b for a, b in itertools.pairwise(known)), default=0.0 if known else None)


def stale(about: dict[str, Any], run: Run, checkpoint: str | None) -> str | None:
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
