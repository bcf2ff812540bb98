"""Several threat models at once: an image must withstand the attacks in each of them.

A network that was trained for one ball may fall in another. `evaluate_union` evaluates it in several balls
and counts the images that withstand all.
"""

import dataclasses
import html
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.intervals import interval
from si_jax.evaluation.loading import SCHEMA
from si_jax.evaluation.result import Result, replaceable, write_npz
from si_jax.evaluation.table import decimals
from si_jax.runtime.terminal import wrapped
from si_jax.storage.files import write_json
from si_jax.threat import THREATS, Threat, parse_threats


@dataclasses.dataclass(frozen=True)
class Union:
    """Accuracy of a classifier in several threat models.

    Attributes:
        results: The result in each threat model, by its text, such as 'linf:8/255'.
    """

    results: dict[str, Result]

    @property
    def correct(self) -> np.ndarray:
        """[N] bool, whether the image is classified correctly, under every attack of every result too."""
        return np.logical_and.reduce([result.correct['worst_case'] for result in self.results.values()])

    @property
    def accuracy(self) -> float:
        """The fraction of `correct` images over all; of a random classifier the mean `share`."""
        return float(np.mean(self.correct if self.share is None else self.share))

    @property
    def share(self) -> np.ndarray | None:
        """[N], of a random classifier the smallest share of right draws in all results; None of any other."""
        if any(result.decisions is None for result in self.results.values()):
            return None
        return np.min([result.share['worst_case'] for result in self.results.values()], axis=0)

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `accuracy`."""
        return interval(self.correct if self.share is None else self.share)

    def to_json(self) -> dict[str, Any]:
        """What the JSON files have under `union`: the accuracy, and that of each threat model alone."""
        alone = {text: result.accuracy['worst_case'] for text, result in self.results.items()}
        return {'accuracy': self.accuracy, 'ci95': list(self.ci95), 'worst_case': alone}

    def table(self) -> str:
        """The tables of all results, and the union below."""
        tables = [result.table() for result in self.results.values()]
        return '\n\n'.join([*tables, '\n'.join(wrapped('union: ', self._words()))])

    def _repr_html_(self) -> str:
        """The tables in a notebook."""
        tables = ''.join(result._repr_html_() for result in self.results.values())
        return f'{tables}<p>union: {html.escape(self._words())}</p>'

    def _words(self) -> str:
        digits = decimals(len(self.correct))
        share, low, high = (f'{100 * one:.{digits}f}' for one in (self.accuracy, *self.ci95))
        return f'{share} % ({low} - {high}) withstand all of {", ".join(self.results)}'

    def paths(self, path: str | os.PathLike) -> dict[str, Path]:
        """The JSON file of each result, beside that of the union."""
        return paths(path, [(text, result.threat) for text, result in self.results.items()])

    def save(self, path: str | os.PathLike) -> None:
        """Writes each result as `<stem>-<norm>-<eps>.json` with its flags, and `<stem>.json` of the union.

        `<stem>.npz` holds `clean` and `worst_case`, which is `correct`, bool [N], with `labels` and
        `indices`. The files of the results are those of `Result.save`, with a field `union`.

        Args:
            path: The JSON file of the union.

        Raises:
            InputError: The path does not end in `.json`.
            OSError: A file cannot be written.
        """
        path = replaceable(path)
        about, first = self.to_json(), next(iter(self.results.values()))
        for text, place in self.paths(path).items():
            dataclasses.replace(self.results[text], union=about).save(place)
        write_npz(
            path.with_suffix('.npz'),
            {
                'clean': first.clean,
                'worst_case': self.correct,
                'labels': first.labels,
                'indices': first.indices,
            },
        )
        write_json(path, {'schema': SCHEMA, 'union': about})


def check_step_size(step_size: float | None, threats: Mapping[str, Threat]) -> None:
    """Raises InputError where one step size is given for several norms."""
    if step_size is not None and len({threat.norm for threat in threats.values()}) > 1:
        raise InputError(
            f'step_size={step_size:g} cannot suit several norms: leave it out, and each has a quarter of its '
            'eps, or evaluate each threat model alone'
        )


def evaluate_union(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    threats: str | Iterable[str] = THREATS,
    attacks: Any = None,
    state_path: str | os.PathLike | None = None,
    **settings: Any,
) -> Union:
    """Evaluates a classifier in several threat models.

    Args:
        classifier: As for `evaluate`, as are images, labels and attacks.
        images: [N, H, W, C] in [0, 1].
        labels: [N].
        threats: Texts 'NORM:EPS', as a sequence or a comma string; eps is a number or a fraction.
        attacks: What runs in each of them; None for what `evaluate` takes for this classifier.
        state_path: A folder in which each evaluation has one of its own, to go on after an interruption.
        settings: Further arguments of `evaluate`, but eps and norm.

    Returns:
        The `Union`.

    Raises:
        InputError: As `evaluate`, or a threat model is none, or given twice; or one step size for several
            norms.
        AssertionError: As `evaluate`.
    """
    if given := [name for name in ('eps', 'norm') if name in settings]:
        raise InputError(f'{given[0]} is given, and the threats have theirs: leave it out, or call evaluate')
    each = parse_threats(threats)
    check_step_size(settings.get('step_size'), each)
    for threat in each.values():
        threat.check(tuple(np.shape(images))[1:])
    return Union(
        {
            text: evaluate(
                classifier,
                images,
                labels,
                attacks=attacks,
                eps=threat.eps,
                norm=threat.norm,
                state_path=None if state_path is None else Path(state_path) / threat.slug,
                **settings,
            )
            for text, threat in each.items()
        }
    )


def paths(path: str | os.PathLike, threats: Iterable[tuple[str, Threat]]) -> dict[str, Path]:
    """The JSON files of the results in some threat models, beside that of their union."""
    place = Path(path)
    return {text: place.with_name(f'{place.stem}-{threat.slug}.json') for text, threat in threats}
