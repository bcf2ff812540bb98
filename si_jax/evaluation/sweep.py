"""Several radii: how the accuracy falls as the ball grows.

`sweep` evaluates a classifier at each radius, with one compilation for all. A ball lies in every larger one,
so an image that an attack has broken counts as broken by it at every larger radius, and the attack does not
run on it again: the curves never rise.
"""

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation import curves, loading
from si_jax.evaluation.arrays import layout_of
from si_jax.evaluation.classifier import Randomised
from si_jax.evaluation.evaluate import conclude, measure, prepared
from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.kinds import Kind
from si_jax.evaluation.loading import SCHEMA, SavedResult
from si_jax.evaluation.network import Network
from si_jax.evaluation.pgd import Outcome
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import AttackRecord, Result, replaceable, write_npz
from si_jax.evaluation.settings import check_number
from si_jax.evaluation.state import alone
from si_jax.evaluation.transfer import Transfer
from si_jax.runtime import processes, progress
from si_jax.storage.files import check_fields, read_json, write_json
from si_jax.threat import Threat, ball_of

# What an array of a record holds for an image that was misclassified without any attack, if not 0.
NOTHING = {'broken_by': -1}
# Of a stage, what there is none of where no image is left for it.
COUNTS = ('accuracy', 'attacked', 'broken', 'refused', 'forward_passes', 'backward_passes')


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Accuracy of a classifier in balls of several radii.

    Attributes:
        results: The result at each radius, ascending; at eps = 0 every attack has the clean accuracy. Of a
            sweep that was read back, what `Result.load` gives.
    """

    results: tuple[Result | SavedResult, ...]

    @property
    def norm(self) -> str:
        return _threat(self.results[0]).norm

    @property
    def eps(self) -> np.ndarray:
        """[R], the radii."""
        return np.array([_threat(result).eps for result in self.results])

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """[R, N] bool by name, as `Result.correct` has it at each radius."""
        return {
            name: np.stack([result.correct[name] for result in self.results])
            for name in self.results[0].correct
        }

    @property
    def accuracy(self) -> dict[str, np.ndarray]:
        """[R], the fraction of `correct` images at each radius, by the same names."""
        return {name: flags.mean(axis=1) for name, flags in self.correct.items()}

    def to_json(self) -> dict[str, Any]:
        """What the JSON file has under `sweep`."""
        intervals = {
            name: [list(wilson(int(one.sum()), len(one))) for one in flags]
            for name, flags in self.correct.items()
        }
        accuracy = {name: values.tolist() for name, values in self.accuracy.items()}
        return {'norm': self.norm, 'eps': self.eps.tolist(), 'accuracy': accuracy, 'ci95': intervals}

    def table(self) -> str:
        """The accuracies in percent, a line for each radius, for a terminal of 80 columns."""
        accuracy = self.accuracy
        names = [name.replace('_', ' ') for name in accuracy]
        lines = [
            (f'{eps:.6g}', [values[number] for values in accuracy.values()])
            for number, eps in enumerate(self.eps)
        ]
        about = f'{self.norm}, {len(self.results[0].labels)} images, accuracy in %'
        texts = [f'at eps={_threat(one).eps:.6g}: {text}' for one in self.results for text in _warnings(one)]
        return '\n'.join([about, *curves.columns('eps', names, lines), *curves.warnings(texts)])

    def draw(self, path: str | os.PathLike) -> None:
        """Draws the accuracies over eps, as a PNG or what else the end of the name says."""
        radii = self.eps
        lines = {name: (radii, values) for name, values in self.accuracy.items() if name != 'clean'}
        title = f'{len(self.results[0].labels)} images, clean {100 * self.accuracy["clean"][0]:.2f} %'
        curves.draw(Path(path), title, self.norm, lines)

    def paths(self, path: str | os.PathLike) -> list[Path]:
        """The JSON file of each result, beside that of the sweep."""
        return [_beside(Path(path), _threat(result)) for result in self.results]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the sweep, and each result as `<stem>-<norm>-<eps>.json` with its flags.

        `<stem>.json` has the accuracies with their intervals, `<stem>.png` the curves, and `<stem>.npz` the
        flags: bool [R, N] for each name in `correct`, with `eps` [R], `labels` and `indices` [N].

        Args:
            path: The JSON file of the sweep.

        Raises:
            InputError: The path does not end in `.json`, or the sweep was read from files.
            OSError: A file cannot be written.
        """
        path, first = replaceable(path), self.results[0]
        for result, place in zip(self.results, self.paths(path), strict=True):
            if isinstance(result, SavedResult):
                raise InputError(f'this sweep was read from {result.path} and the like: copy these files')
            result.save(place)
        about = {'eps': self.eps, 'labels': first.labels, 'indices': first.indices}
        write_npz(path.with_suffix('.npz'), self.correct | about)
        write_json(path, {'schema': SCHEMA, 'sweep': self.to_json()})
        if curves.can_be_drawn():
            self.draw(path.with_suffix('.png'))

    @staticmethod
    def load(path: str | os.PathLike) -> 'Sweep':
        """Reads what `save` wrote.

        Args:
            path: The JSON file of the sweep; those of the results lie beside it.

        Raises:
            InputError: A file is missing, cannot be read, is damaged or something else, or they do not belong
                together.
        """
        path = Path(path)
        with loading.reading(path, 'is not JSON, or damaged', 'give what a sweep wrote'):
            about = read_json(path)
        try:
            check_fields(about, {('sweep', 'norm'): str, ('sweep', 'eps'): list})
            radii = [float(eps) for eps in about['sweep']['eps']]
            names = sorted(about['sweep']['accuracy'])
            threats = [Threat(about['sweep']['norm'], eps) for eps in radii]
            if not threats:
                raise ValueError('it has no radius')
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f'{path} is no sweep ({error}): give the file that Sweep.save wrote') from None
        results = tuple(loading.read(_beside(path, threat), flags=True) for threat in threats)
        for result, threat in zip(results, threats, strict=True):
            same = len(result.labels) == len(results[0].labels) and sorted(result.correct) == names
            if _threat(result) != threat or not same:
                raise InputError(
                    f'{result.path} does not belong to {path}: one of them is of another sweep; sweep again'
                )
        return Sweep(results)


def sweep(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    eps: Sequence[float],
    attacks: Any = 'pgd',
    norm: str = 'linf',
    step_size: float | None = None,
    gradient_of: Any = None,
    layout: str | None = None,
    state_path: str | os.PathLike | None = None,
    progress: bool = False,
    **settings: Any,
) -> Sweep:
    """Evaluates a classifier at several radii, with one compilation for all of them.

    At each radius the result is that of `evaluate`, but for the images that an attack has broken at a smaller
    radius of this sweep: these count as broken, and the attack does not run on them again. With several
    restarts an image leaves all of them at once, so `single_run` is an upper bound at the larger radii.

    Args:
        classifier: As for `evaluate`, as are images, labels, attacks and what is not named here. It may not
            be `Randomised`, as no image is broken for good there.
        images: [N, H, W, C] in [0, 1].
        labels: [N].
        eps: The radii, as fractions of the pixel range, in any order. At 0 there is no attack, and images
            that are misclassified without one count as broken from there on.
        attacks: What runs at each radius.
        norm: 'linf', 'l2' or 'l1'.
        step_size: Of the PGD family; a quarter of each radius if None.
        gradient_of: As for `evaluate`.
        layout: As for `evaluate`.
        state_path: A folder in which each radius has one of its own, to go on after an interruption. It also
            goes on if larger radii are added.
        progress: Show progress on stderr.
        settings: Further arguments of `evaluate`.

    Returns:
        The `Sweep`.

    Raises:
        InputError: As `evaluate`, or a radius is none, or given twice.
        AssertionError: As `evaluate`.
    """
    began, threats = time.perf_counter(), check_radii(eps, norm, tuple(np.shape(images))[1:])
    places = [None if state_path is None else Path(state_path) / threat.slug for threat in threats]
    attacked = [number for number, threat in enumerate(threats) if threat.eps > 0]
    request = Request.of(
        images,
        labels,
        attacks=attacks,
        eps=threats[-1].eps,
        norm=norm,
        step_size=step_size,
        state_path=places[attacked[0]],
        layout=layout_of(layout, classifier, images),
        **settings,
    )
    shown = progress and processes.is_first()
    if isinstance(classifier, Randomised):
        raise InputError(
            'a sweep counts an image that was broken as broken for good, and a Randomised classifier may '
            'draw otherwise at the next radius: call evaluate for each radius'
        )
    if request.targets is not None:
        raise InputError(
            'a sweep goes on with the images that were not broken at a smaller radius, and those may not '
            'have reached their targets: leave targets out, or call evaluate for each radius'
        )
    with alone(state_path), jax.default_matmul_precision('highest'):
        network, kinds = prepared(classifier, gradient_of, request, shown)
        results: list[Result] = []
        before: dict[str, Outcome] = {}
        for number, (threat, place) in enumerate(zip(threats, places, strict=True)):
            if not threat.eps:
                before = {kind.name: _unattacked(network) for kind in kinds}
                results.append(_clean(network, threat, before, time.perf_counter() - began))
                continue
            size = threat.eps / 4 if step_size is None else request.step_size
            radii = tuple(one.eps for one in threats[:number])
            now = dataclasses.replace(network.request, threat=threat, step_size=size, radii=radii)
            after: dict[str, Outcome] = {}
            run = functools.partial(_remember, before, after)
            at = dataclasses.replace(network, request=now)
            results.append(measure(at, kinds, began, place, shown, run))
            before, began = after, time.perf_counter()
    return Sweep(tuple(results))


def check_radii(eps: Any, norm: str, shape: tuple[int, ...] | None = None) -> list[Threat]:
    """The threat models of these radii, ascending; of images [H, W, C], if their shape is known.

    Raises:
        InputError: A radius is none, or two have the same name, or there is none but 0.
    """
    if np.ndim(eps) != 1:
        raise InputError(f'eps={eps!r} must be several radii, such as (0, 2/255, 4/255, 8/255)')
    ball_of(norm)
    threats = [Threat(norm, radius) for radius in sorted(check_number('eps', one) for one in eps)]
    for threat in threats:
        if not threat.eps >= 0:
            raise InputError(f'eps={threat.eps:g} is no radius: give numbers from 0 on')
        if shape is not None and threat.eps:
            threat.check(shape)
    for smaller, larger in itertools.pairwise(threats):
        if smaller.slug == larger.slug:
            raise InputError(f'eps={larger.eps:.6g} is given twice: give each radius once')
    if not threats or not threats[-1].eps:
        raise InputError('eps has no radius above 0: give some, such as (0, 2/255, 4/255, 8/255)')
    return threats


def _remember(before: dict[str, Outcome], after: dict[str, Outcome], kind: Kind, network: Network) -> Outcome:
    outcome = nested(kind, network, before.get(kind.name))
    if network.request.keep:
        everywhere = np.arange(len(network.images))
        images = network.judged(outcome.images, everywhere, network.request.threat)
        outcome = dataclasses.replace(outcome, images=images)
    after[kind.name] = outcome
    return outcome


def nested(kind: Kind, network: Network, before: Outcome | None) -> Outcome:
    """Runs an attack on the images that it has not broken `before`, at a smaller radius.

    The record has the others as they were.
    """
    if before is None:
        return kind.run(network, network.request)
    count, request = len(network.images), network.request
    rows = np.flatnonzero(np.logical_and.reduce(before.record.runs))
    progress.current().skip(kind.cost(request) * (count - len(rows)))
    if not len(rows):
        idle = tuple({**one, **{key: 0 for key in COUNTS if key in one}} for one in before.record.stages)
        size = _step_at(before.record.step_size, request)
        return dataclasses.replace(
            before, record=dataclasses.replace(before.record, stages=idle, step_size=size)
        )
    if isinstance(kind, Transfer):
        kind = dataclasses.replace(kind, source=kind.source.part(rows))
    part = network.part(rows)
    found = kind.run(part, part.request)

    def whole(name: str, now: Any, then: Any) -> Any:
        """An array of some images, the last axis of which is theirs, among those of the others."""
        if not isinstance(now, np.ndarray):
            return now
        shape = (*now.shape[:-1], count)
        fill = np.full(count, NOTHING.get(name, 0), now.dtype) if then is None else then
        array = np.array(np.broadcast_to(fill, shape))
        array[..., rows] = now
        return array

    fields = (field.name for field in dataclasses.fields(AttackRecord))
    old, new = before.record, found.record
    record = dataclasses.replace(
        new, **{name: whole(name, getattr(new, name), getattr(old, name)) for name in fields}
    )
    stages = [{**one, 'accuracy': one['accuracy'] * len(rows) / count} for one in new.stages]
    for one in stages:
        if 'average_distance' in one and record.distances is not None:
            one['average_distance'] = float(np.mean(record.distances))
    largest = max(old.max_perturbation, new.max_perturbation)
    record = dataclasses.replace(record, stages=tuple(stages), max_perturbation=largest)
    images = before.images
    if request.keep:
        images = images.copy()
        images[rows] = found.images
    return Outcome(record, images, found.seconds)


def _step_at(size: float | None, request: Request) -> float | None:
    """The step size of an attack at the radius of a request, from that at the radius before."""
    last = request.radii[-1] if request.radii else 0.0
    if size is None or math.isclose(size, request.step_size) or not last:
        return size
    share = size / last  # a quarter unless it was chosen, and all of the radius in a single step
    return share * request.threat.eps if any(math.isclose(share, one) for one in (0.25, 1)) else size


def _unattacked(network: Network) -> Outcome:
    """Of any attack at radius 0."""
    record = AttackRecord(network.clean[None], None, None, None, 0.0)
    images = network.images[:] if network.request.keep else network.images[:0]
    return Outcome(record, np.array(images))


def _clean(network: Network, threat: Threat, outcomes: dict[str, Outcome], seconds: float) -> Result:
    """The result at radius 0, which no attack has a part in."""
    request = dataclasses.replace(network.request, threat=threat)
    timing = {'seconds': seconds, 'parts': {}}
    return conclude(dataclasses.replace(network, request=request), [], outcomes, None, timing)


def _threat(result: Result | SavedResult) -> Threat:
    if isinstance(result, Result):
        return result.threat
    return Threat(result.about['threat_model']['norm'], float(result.about['threat_model']['eps']))


def _warnings(result: Result | SavedResult) -> Sequence[str]:
    return result.warnings if isinstance(result, Result) else result.about['warnings']


def _beside(path: Path, threat: Threat) -> Path:
    return path.with_name(f'{path.stem}-{threat.slug}.json')
