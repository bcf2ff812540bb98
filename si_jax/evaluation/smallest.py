"""Smallest perturbations: how far the nearest misclassified image of each image is.

An accuracy at one radius says nothing of other radii. `smallest` measures for each image the least distance
at which an attack finds a misclassified one, and so the accuracy at every radius in one run. What is measured
is an upper bound: there may be nearer ones that the attack does not find.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.attacks.searches import SEARCHES
from si_jax.attacks.settings import taken_apart
from si_jax.errors import InputError, unknown
from si_jax.evaluation import curves, gates, loading, sanity
from si_jax.evaluation.arrays import layout_of
from si_jax.evaluation.cascade import BEYOND, Cascade, claimed, cost, runs
from si_jax.evaluation.classifier import Randomised
from si_jax.evaluation.evaluate import identity_of, prepared
from si_jax.evaluation.loading import SCHEMA
from si_jax.evaluation.network import Network
from si_jax.evaluation.packing import compile_search, run_search
from si_jax.evaluation.pgd import count_gradients, with_gradient
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import IMAGES, AttackRecord, remove_stale, replaceable, write_npz
from si_jax.evaluation.state import Arrays, Saved, Work, alone, remember_all
from si_jax.runtime import processes
from si_jax.runtime.agreement import check_identical
from si_jax.runtime.environment import environment
from si_jax.runtime.progress import progress as progress_of
from si_jax.runtime.progress import showing, silent
from si_jax.runtime.terminal import named
from si_jax.storage import npz
from si_jax.storage.files import check_fields, read_json, write_json
from si_jax.threat import BALLS, IMAGE, NORMS, Threat

# The norm [B] of perturbations [B, H, W, C] in float64, on the host. In L0 it is the number of entries, one
# for each pixel and channel, that were changed.
LENGTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: functools.partial(ball.length, xp=np) for name, ball in BALLS.items()},
    'l0': lambda delta: np.count_nonzero(delta, axis=IMAGE).astype(np.float64),
}
ALL = 'worst_case'  # the least distance over all attacks
POINTS = 101  # of a curve in the JSON file


@dataclasses.dataclass(frozen=True)
class Smallest:
    """The distances of the nearest misclassified images.

    Attributes:
        norm: 'linf', 'l2', 'l1' or 'l0'.
        distances: [N] float64 by attack: the distance of the nearest misclassified image that it found, as
            classified once more and measured in float64; 0 where the image itself is misclassified, inf where
            none was found.
        clean: [N] bool, whether the image is classified correctly.
        labels: [N].
        indices: [N], the number of each image.
        about: What else is known, in JSON's types: `seed`, `precision`, `dataset`, `model`, `warnings`,
            `environment`, `timing`.
        images: Attack name to the nearest misclassified images [N, H, W, C], the original where there is
            none; None unless asked for.
    """

    norm: str
    distances: dict[str, np.ndarray]
    clean: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    about: dict[str, Any]
    images: dict[str, np.ndarray] | None = None

    @property
    def least(self) -> dict[str, np.ndarray]:
        """`distances`, and under 'worst_case' the least of all attacks for each image."""
        return self.distances | {ALL: np.minimum.reduce(list(self.distances.values()))}

    @property
    def median(self) -> dict[str, float]:
        """The median distance over all images, by the names of `least`."""
        return {name: float(np.median(each)) for name, each in self.least.items()}

    def accuracy(self, eps: Any) -> dict[str, np.ndarray]:
        """The share of images whose distance is more than eps, [...] as `eps`, by the names of `least`.

        At eps = 0 that is the clean accuracy.
        """
        radii = np.asarray(eps, np.float64)
        return {name: np.mean(each > radii[..., None], axis=-1) for name, each in self.least.items()}

    def _radii(self) -> np.ndarray:
        """From 0 to where the last image falls that does, [POINTS]."""
        each = np.concatenate(list(self.distances.values()))
        return np.linspace(0, each[np.isfinite(each)].max(initial=0.0), POINTS)

    def to_json(self) -> dict[str, Any]:
        """The content of the JSON file; null stands for what is infinite."""
        radii, accuracy = self._radii(), {}
        for name, each in self.least.items():
            found = np.isfinite(each)
            accuracy[name] = {
                'median': self.median[name] if np.isfinite(self.median[name]) else None,
                'mean': float(each.mean()) if found.all() else None,
                'found': int(found.sum()),
                'accuracy': self.accuracy(radii)[name].tolist(),
            }
        return {
            'schema': SCHEMA,
            'smallest': {'norm': self.norm, 'eps': radii.tolist(), 'attacks': accuracy},
            **self.about,
        }

    def table(self) -> str:
        """The distances, for a terminal of 80 columns."""
        lines = [
            f'smallest perturbations, {self.norm}, {len(self.labels)} images, '
            f'{int(self.clean.sum())} classified correctly',
            f'{"":<17}{"median":>10}{"mean":>10}{"25 % fall":>11}{"75 % fall":>11}{"not found":>11}',
        ]
        for name, each in self.least.items():
            # No interpolation: between a number and infinity there is none.
            quarters = np.quantile(each, (0.25, 0.75), method='inverted_cdf')
            numbers = (self.median[name], float(each.mean()), *quarters)
            cells = ''.join(
                f'{value:>{width}.5g}' for value, width in zip(numbers, (10, 10, 11, 11), strict=True)
            )
            lines += named(name.replace('_', ' '), f'{cells}{int(np.isinf(each).sum()):>11}', 17)
        return '\n'.join([*lines, *curves.warnings(self.about['warnings'])])

    def draw(self, path: str | os.PathLike) -> None:
        """Draws the accuracy over eps, as a PNG or what else the end of the name says."""
        lines = {}
        for name, each in self.least.items():
            if name != ALL or len(self.distances) > 1:
                steps = np.unique(np.append(each[np.isfinite(each)], 0))
                lines[name] = steps, self.accuracy(steps)[name]
        title = f'smallest perturbations of {len(self.labels)} images'
        curves.draw(Path(path), title, self.norm, lines, stairs=True)

    def save(self, path: str | os.PathLike) -> None:
        """Writes `<stem>.json`, the distances of each image as `<stem>.npz`, and the curves as `<stem>.png`.

        `<stem>.npz` holds `distances_NAME`, float64 [N], for each attack, `clean`, `labels` and `indices`;
        `<stem>_images.npz` the nearest misclassified images by attack, if they were kept. The picture needs
        matplotlib, and is left out without it.

        Args:
            path: The JSON file.

        Raises:
            InputError: The path does not end in `.json`.
            OSError: A file cannot be written.
        """
        path = replaceable(path, images=self.images)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f'distances_{name}': each for name, each in self.distances.items()}
        arrays |= {'clean': self.clean, 'labels': self.labels, 'indices': self.indices}
        write_npz(path.with_suffix('.npz'), arrays)
        images = path.with_name(f'{path.stem}{IMAGES}')
        if self.images is not None:
            write_npz(images, self.images)
        else:
            remove_stale(images, path)
        write_json(path, self.to_json())
        if curves.can_be_drawn():
            self.draw(path.with_suffix('.png'))

    @staticmethod
    def load(path: str | os.PathLike) -> 'Smallest':
        """Reads what `save` wrote, without the images.

        Raises:
            InputError: A file is missing, cannot be read, is damaged or something else.
        """
        path = Path(path)
        with loading.reading(path, 'is not JSON, or damaged', 'give what Smallest.save wrote'):
            about = read_json(path)
        try:
            check_fields(
                about, {('smallest', 'norm'): str, ('smallest', 'attacks'): dict, ('warnings',): list}
            )
            found = about.pop('smallest')
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f'{path} is not what Smallest.save wrote ({error}): give that file') from None
        names = [name for name in found['attacks'] if name != ALL]
        flags = path.with_suffix('.npz')
        with loading.reading(flags, f'does not hold the distances of {path}', 'measure again'):
            arrays = npz.read(flags, (*(f'distances_{name}' for name in names), 'clean', 'labels', 'indices'))
        distances = {name: arrays[f'distances_{name}'] for name in names}
        if not names or len({(each.shape, each.dtype.kind) for each in distances.values()}) != 1:
            raise InputError(f'{flags} does not hold the distances of {path}: measure again')
        about.pop('schema')
        clean, labels, indices = (arrays[name] for name in ('clean', 'labels', 'indices'))
        return Smallest(found['norm'], distances, clean, labels, indices, about)


def smallest(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    attacks: Any = 'fmn',
    norm: str = 'linf',
    seed: int = 0,
    batch_size: int | None = None,
    indices: Any = None,
    gradient_of: Any = None,
    search_precision: str | None = None,
    state_path: str | os.PathLike | None = None,
    return_images: bool = False,
    progress: bool = False,
    devices: Sequence[jax.Device] | None = None,
    layout: str | None = None,
    scale: int | None = None,
) -> Smallest:
    """Measures how far the nearest misclassified images are.

    The attacks run on the correctly classified images, without a radius. What they find is classified once
    more, by the program that classified the clean images, and its distance is measured in float64.

    Args:
        classifier: As for `evaluate`, as are all arguments but the next two.
        images: [N, H, W, C] in [0, 1].
        labels: [N].
        attacks: Some of 'fmn', 'fab' and 'fab-t', as a sequence or a comma string. FAB-T takes the least
            distance over its targets.
        norm: 'linf', 'l2', 'l1', or, for `fmn` alone, 'l0': the number of entries that change, one for each
            pixel and channel.
        seed: Of everything random.
        batch_size: Images at once.
        indices: [N], the number of each image.
        gradient_of: Whose derivative the attacks take.
        search_precision: Of the search.
        state_path: A folder that finished parts are kept in.
        return_images: Keep the nearest misclassified images.
        progress: Show progress on stderr.
        devices: Devices to use.
        layout: 'nhwc' or 'nchw'.
        scale: Of uint8 images.

    Returns:
        The `Smallest`.

    Raises:
        InputError: As `evaluate`, or an attack that measures no distances, or not in this norm.
        AssertionError: An attack of this library left [0, 1].
    """
    began = time.perf_counter()
    if isinstance(classifier, Randomised):
        raise InputError(
            'a Randomised classifier has many decisions at a point, and no nearest misclassified one: '
            'call evaluate, at several radii'
        )
    check_norm(norm)
    request = Request.of(
        images,
        labels,
        attacks=attacks,
        eps=1.0,
        norm=norm if norm in NORMS else NORMS[0],
        seed=seed,
        batch_size=batch_size,
        indices=indices,
        search_precision=search_precision,
        state_path=state_path,
        return_images=return_images,
        devices=devices,
        layout=layout_of(layout, classifier, images),
        scale=scale,
    )
    check_attacks(request.names, norm)
    # At this radius nothing is a success, so that the searches go on to their end.
    request = dataclasses.replace(request, threat=Threat(norm, 0.0))
    shown = progress and processes.is_first()
    with alone(state_path), jax.default_matmul_precision('highest'):
        network, kinds = prepared(classifier, gradient_of, request, shown)
        searches = [kind for kind in kinds if isinstance(kind, Cascade)]
        identity = identity_of(network, kinds, program=state_path is not None) | {'measured': 'distances'}
        check_identical(identity)
        found: dict[str, Arrays] = {}
        with Saved(state_path, identity, network.clean_logits, network.traced.coarse):
            total = sum(kind.cost(network.request) for kind in searches) * len(network.images)
            with showing(progress_of(total, 'attacks') if shown else silent()) as bar:
                for kind in searches:
                    bar.set_postfix(attack=kind.name)
                    found[kind.name] = _nearest(network, kind)
        warnings = _warnings(network, searches, found)
    dtype = str(network.images.dtype)
    return Smallest(
        norm,
        {name: one['distances'] for name, one in found.items()},
        network.clean,
        request.labels,
        request.indices,
        {
            'seed': seed,
            'precision': {'search': request.precision or dtype, 'verification': dtype, 'matmul': 'highest'},
            'dataset': network.about_data(),
            'model': {},
            'warnings': warnings,
            'environment': environment(),
            'timing': {'seconds': time.perf_counter() - began},
        },
        {name: request.as_given(one['images']) for name, one in found.items()} if return_images else None,
    )


def check_norm(norm: Any) -> None:
    """Raises InputError unless distances can be measured in this norm."""
    if norm not in tuple(LENGTHS):
        raise unknown('norm', norm, LENGTHS)


def check_attacks(names: Sequence[str], norm: str) -> None:
    """Raises InputError unless these attacks measure distances in this norm."""
    able = [name for name, row in SEARCHES.items() if norm in row.nearest]
    for name in names:
        base = taken_apart(name)[0]
        if base not in able:
            somewhere = base in SEARCHES and SEARCHES[base].nearest
            what = f'has no version for {norm}' if somewhere else 'does not look for the nearest image'
            raise InputError(f'{name} {what}: give {" or ".join(able)}')
        for setting in ('restarts', 'choice'):
            if setting in dict(taken_apart(name)[1]):
                raise InputError(
                    f'{name}: {setting} has no meaning for smallest perturbations, whose searches begin at '
                    'the images and aim at the classes with the highest logits: leave it out'
                )


def _nearest(network: Network, kind: Cascade) -> Arrays:
    """`distances` [N], the nearest `images` [N, H, W, C] if they are wanted, and the flags of `Gradients`."""
    (stage,), request, clean = kind.stages, network.request, network.clean
    row, length = SEARCHES[stage.attack], LENGTHS[request.threat.norm]
    search = stage.search(request.classes, request.threat.norm)
    apply, shared = network.surrogate(row.calibrated)
    sizes = network.pack_sizes(int(clean.sum()))
    program = compile_search(
        search, row.part, apply, request.threat, network.key_impl, network.devices, sizes
    )
    count = len(clean)
    ranks = np.argsort(-network.clean_logits, axis=1, kind='stable').astype(np.int32)
    kept = np.array(network.images) if request.keep else network.images[:0]
    whole: Arrays = {
        'distances': np.where(clean, np.inf, 0.0),
        'images': kept,
        'zero': clean.copy(),
        'not_finite': np.zeros(count, bool),
        'refused': np.zeros(count, bool),
    }

    def measured(rows: np.ndarray, keys: np.ndarray, aims: np.ndarray) -> Arrays:
        problem = network.images[rows], network.labels[rows], keys[rows], aims[rows]
        outcome = run_search(program, shared, problem, _refuse, final=True)
        images = np.array(outcome.final.nearest)
        if ((images < 0) | (images > 1)).any():
            raise AssertionError(f'{kind.name} left [0, 1]')
        # On the boundary of the search's precision; in that of the network the next points may be beyond it.
        wrong, delta = np.zeros(len(rows), bool), images - network.images[rows]
        for factor in (None, *BEYOND):  # first the point itself
            left = np.flatnonzero(~wrong)
            if not len(left):
                break
            if factor is not None:
                images[left] = np.clip(network.images[rows[left]] + factor * delta[left], 0, 1)
            logits = network.logits(images[left], keys[rows[left]])
            gates.check_finite(
                logits, images[left], request.indices[rows[left]], f'what {kind.name} made of image'
            )
            wrong[left] = np.argmax(logits, axis=1) != network.labels[rows[left]]
        far = length(np.asarray(images, np.float64) - np.asarray(network.images[rows], np.float64))
        found = {'distances': np.where(wrong, far, np.inf), 'images': images if request.keep else images[:0]}
        found['refused'] = ~wrong & claimed(outcome.final)
        return found | ({} if outcome.gradients is None else outcome.gradients._asdict())

    for run in range(runs(stage, request)):
        keys = network.keys(run, stage.attack)
        aims = ranks[:, 1 + run] if search.targeted else np.zeros(count, np.int32)
        groups, each = network.groups(np.flatnonzero(clean)), cost(stage, request)
        work = [
            Work(
                f'{kind.name}-{run}-{number}', each * len(rows), functools.partial(measured, rows, keys, aims)
            )
            for number, rows in enumerate(groups)
        ]
        for rows, one in zip(groups, remember_all(work), strict=True):
            nearer = one['distances'] < whole['distances'][rows]
            whole['distances'][rows[nearer]] = one['distances'][nearer]
            if request.keep:
                kept[rows[nearer]] = one['images'][nearer]
            whole['zero'][rows] &= one['zero']
            whole['not_finite'][rows] |= one['not_finite']
            whole['refused'][rows] |= one.get('refused', False)  # of an older version
    whole['refused'] &= np.isinf(whole['distances'])
    return whole


def _refuse(rows: np.ndarray, found: np.ndarray) -> np.ndarray:
    """No image leaves the search."""
    return np.zeros(len(rows), bool)


def _warnings(network: Network, kinds: Sequence[Cascade], found: dict[str, Arrays]) -> list[str]:
    """What makes the distances doubtful."""
    clean, request, records = network.clean, network.request, {}
    for name, one in found.items():
        counts = count_gradients(clean, one['zero'], one['not_finite'])
        records[name] = AttackRecord(clean[None], None, None, None, 0.0, gradients=(counts,))
    there = functools.partial(with_gradient, network)
    largest = float(np.abs(network.clean_logits).max())
    refused = [
        f'{name}: on {count} of {len(clean)} images the search found a misclassified point which the '
        'classifier does not confirm, nor points beyond it: their distance counts as inf; give '
        "search_precision='float32'"
        for name, one in found.items()
        if (count := int(one['refused'].sum()))
    ]
    return [
        *request.notes,
        *refused,
        *sanity.decisions(network.clean_logits, request.labels, request.images),
        *sanity.outputs(network.clean_logits, network.traced.coarse),
        *gates.gradients(kinds, records, there, largest),
    ]
