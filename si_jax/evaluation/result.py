"""The result of an evaluation: accuracies, flags of each image, and the files that hold them.

`evaluate` returns a `Result`, which holds everything that was found. `Result.save` writes it. `Result.load`
reads it back as a `SavedResult`: the JSON and the flags, which is all that a file keeps. Whoever needs a
result from a file, be it to compare it, to show it or to check it, gets it there and nowhere else.
"""

import dataclasses
import hashlib
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.runtime.terminal import named, wrapped
from si_jax.storage import files, npz
from si_jax.storage.files import write_atomic, write_json
from si_jax.threat import Threat

SCHEMA = 1
# What both must have measured alike, apart from the images: field of the attack in the JSON.
PROTOCOL = ('steps', 'step_size', 'restarts', 'eot_samples', 'protocol')
# What every result has, and of which kind it is.
FIELDS: dict[tuple[str, ...], type] = {
    ('dataset',): dict,
    ('dataset', 'examples'): int,
    ('threat_model',): dict,
    ('threat_model', 'norm'): str,
    ('threat_model', 'eps'): float,
    ('seed',): int,
    ('precision',): dict,
    ('warnings',): list,
    ('attacks',): dict,
    ('clean',): dict,
    ('clean', 'accuracy'): float,
    ('worst_case',): dict,
    ('worst_case', 'accuracy'): float,
}


@dataclasses.dataclass(frozen=True)
class AttackRecord:
    """What one attack did to N images.

    Attributes:
        runs: [R, N] bool, whether the image was classified correctly after each of R restarts.
        steps: Steps of a run; None for an attack of several stages.
        step_size: As a fraction of the pixel range; None where the attack chooses it.
        eot_samples: Gradients averaged in each step.
        max_perturbation: The largest distance of a final image from its original, in the threat model's norm.
        stages: The parts of an attack that has parts, in order, each as a dictionary.
        protocol: The settings of all parts, as a stamp.
        broken_by: [N] int8, the number of the stage that first broke the image, -1 for none; None for an
            attack without stages, as are the following.
        queries: [N] int64, forward passes spent on the image; for attacks that measure distances those until
            an image within eps was found.
        distances: [N], the distance to the decision boundary, of attacks that measure it.
    """

    runs: np.ndarray
    steps: int | None
    step_size: float | None
    eot_samples: int
    max_perturbation: float
    stages: tuple[dict[str, Any], ...] = ()
    protocol: dict[str, Any] | None = None
    broken_by: np.ndarray | None = None
    queries: np.ndarray | None = None
    distances: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracy of a classifier on clean images and under attacks.

    Attributes:
        clean: [N] bool, whether the clean image is classified correctly.
        attacks: Attack name to what it did.
        labels: [N], the true labels.
        indices: [N], the number of each image.
        threat: The threat model.
        seed: Of everything random.
        precision: What was computed in which precision.
        dataset: What is known of the data.
        warnings: What a reader of the numbers must know.
        environment: Versions and devices.
        timing: Seconds; the only part that two runs of the same evaluation need not share.
        model: Where the classifier came from, if known.
        calibration: `scale`, the factor on the logits of calibrated attacks, and `median_gap`, which it comes
            from; None if there were none.
        gradient_of: What is known of the classifier whose gradient the attacks took; None for its own.
        images: Attack name to adversarial images [N, H, W, C]: of the first restart that fooled the
            classifier, else of the first. None unless asked for.
    """

    clean: np.ndarray
    attacks: dict[str, AttackRecord]
    labels: np.ndarray
    indices: np.ndarray
    threat: Threat
    seed: int
    precision: dict[str, str]
    dataset: dict[str, Any]
    warnings: list[str]
    environment: dict[str, Any]
    timing: dict[str, Any]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    calibration: dict[str, float] | None = None
    gradient_of: dict[str, Any] | None = None
    images: dict[str, np.ndarray] | None = None

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """[N] bool by name: 'clean', each attack (after all restarts), and 'worst_case' (all of these)."""
        flags = {'clean': self.clean}
        flags |= {name: np.logical_and.reduce(record.runs) for name, record in self.attacks.items()}
        return flags | {'worst_case': np.logical_and.reduce(list(flags.values()))}

    @property
    def accuracy(self) -> dict[str, float]:
        """The fraction of `correct` images over all, by the same names."""
        return {name: float(np.mean(flags)) for name, flags in self.correct.items()}

    @property
    def single_run(self) -> dict[str, float]:
        """The accuracy after the first restart alone, by attack."""
        return {name: float(np.mean(record.runs[0])) for name, record in self.attacks.items()}

    @property
    def only(self) -> dict[str, int]:
        """How many correctly classified images each attack breaks that no other attack here does."""
        broken = {name: self.clean & ~self.correct[name] for name in self.attacks}
        times = np.sum(list(broken.values()), axis=0)
        return {name: int(np.sum(flags & (times == 1))) for name, flags in broken.items()}

    @property
    def overestimation_gap(self) -> float | None:
        """The accuracy under PGD less that under AutoAttack, in points: how much PGD makes of the defense."""
        if not {'pgd', 'autoattack'} <= self.attacks.keys():
            return None
        return round(100 * (self.accuracy['pgd'] - self.accuracy['autoattack']), 10)

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """Wilson's 95 % interval of each accuracy: how far another sample of as many images might be off."""
        return {name: wilson(int(np.sum(flags)), len(flags)) for name, flags in self.correct.items()}

    def to_json(self) -> dict[str, Any]:
        """The result in JSON's types, without the flags."""
        accuracy, only, gap = self.accuracy, self.only, self.overestimation_gap
        ci95 = {name: list(interval) for name, interval in self.ci95.items()}

        def attack(name: str, record: AttackRecord) -> dict[str, Any]:
            return {
                'accuracy': accuracy[name],
                'single_run': self.single_run[name],
                'ci95': ci95[name],
                'restarts': len(record.runs),
                'runs': [float(np.mean(run)) for run in record.runs],
                'steps': record.steps,
                'step_size': record.step_size,
                'eot_samples': record.eot_samples,
                'max_perturbation': record.max_perturbation,
                'only': only[name],
                'stages': list(record.stages),
                **({} if record.protocol is None else {'protocol': record.protocol}),
            }

        return {
            'schema': SCHEMA,
            'dataset': self.dataset,
            'model': self.model,
            'threat_model': dataclasses.asdict(self.threat),
            'seed': self.seed,
            'precision': self.precision,
            'clean': {'accuracy': accuracy['clean'], 'ci95': ci95['clean']},
            'attacks': {name: attack(name, record) for name, record in self.attacks.items()},
            'worst_case': {'accuracy': accuracy['worst_case'], 'ci95': ci95['worst_case']},
            **({} if gap is None else {'overestimation_gap': gap}),
            **({} if self.calibration is None else {'calibration': self.calibration}),
            **({} if self.gradient_of is None else {'gradient_of': self.gradient_of}),
            **({'robustbench': self._robustbench()} if 'autoattack' in self.attacks else {}),
            'warnings': self.warnings,
            'environment': self.environment,
            'timing': self.timing,
        }

    def _robustbench(self) -> dict[str, Any]:
        """The fields of RobustBench's entries, by its names: accuracies in percent."""
        return {
            'clean_acc': round(100 * self.accuracy['clean'], 4),
            'autoattack_acc': round(100 * self.accuracy['autoattack'], 4),
            'eps': self.threat.eps,
            'norm': self.threat.norm.capitalize(),
        }

    def _screens(self) -> str:
        """What is said of presets that are no protocols."""
        found = [(name, one) for name, one in self.attacks.items() if (one.protocol or {}).get('screen')]
        return ' '.join(
            f'{name}: {one.protocol["screen"]} '  # type: ignore[index]
            f'({sum(stage["forward_passes"] for stage in one.stages):,} forward passes).'
            for name, one in found
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes `<stem>.json`, the flags of each image as `<stem>.npz`, and images that were kept.

        `<stem>.npz` holds a bool array [N] for each name in `correct`, `labels` and `indices`, and, for an
        attack that has them, `broken_by_NAME`, `queries_NAME` and `distances_NAME` as in `AttackRecord`;
        `<stem>_images.npz` the adversarial images by attack. Folders are made, and each file is replaced in
        one step, the JSON last.

        Args:
            path: The JSON file.

        Raises:
            InputError: The path does not end in `.json`.
            OSError: A file cannot be written.
        """
        path = check_output(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = self.correct | {'labels': self.labels, 'indices': self.indices}
        for name, record in self.attacks.items():
            for key in ('broken_by', 'queries', 'distances'):
                if (array := getattr(record, key)) is not None:
                    arrays[f'{key}_{name}'] = array
        _write_npz(path.with_suffix('.npz'), arrays)
        if self.images is not None:
            _write_npz(path.with_name(f'{path.stem}_images.npz'), self.images)
        write_json(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike, *, flags: bool = True) -> 'SavedResult':
        """Reads what `save` wrote.

        Args:
            path: The JSON file.
            flags: Whether to read the flags of each image, which lie beside it as `<stem>.npz`.

        Raises:
            InputError: A file is missing, cannot be read, is damaged or something else than a result, or the
                two do not belong together.
        """
        path = Path(path)
        about = check_json(path, _read_json(path))
        return SavedResult(path, about, *(_flags_of(path, about) if flags else ({}, None, None)))

    def table(self) -> str:
        """The accuracies in percent with their intervals, for a terminal of 80 columns."""
        lines = [
            f'{self.threat.norm} eps={self.threat.eps:.6g}, {len(self.labels)} images, seed {self.seed}',
            f'{"":<17}{"accuracy":>9}{"95 % interval":>16}{"only":>6}'
            f'{"one run":>8}{"restarts":>9}{"steps":>6}{"largest":>9}',
        ]
        only, gap = self.only, self.overestimation_gap
        for name, accuracy in self.accuracy.items():
            low, high = self.ci95[name]
            line = f'{100 * accuracy:>9.2f}{100 * low:>8.2f} -{100 * high:>6.2f}'
            record = self.attacks.get(name)
            if record:
                steps = '-' if record.steps is None else record.steps
                line += f'{only[name]:>6}{100 * self.single_run[name]:>8.2f}{len(record.runs):>9}{steps:>6}'
                line += f'{record.max_perturbation:>9.6f}'
            lines += named(name.replace('_', ' '), line, 17)
            for stage in record.stages if record and len(record.stages) > 1 else ():
                lines.append(
                    f'  {stage["attack"]:<15}{100 * stage["accuracy"]:>9.2f}'
                    f'   broke {stage["broken"]} of {stage["attacked"]} images'
                )
        if gap is not None:
            lines.append(f'overestimation gap, PGD - AutoAttack: {gap:.2f} points')
        lines += wrapped('', self._screens()) if self._screens() else []
        for warning in self.warnings:
            lines += wrapped('warning: ', warning)
        return '\n'.join(lines)


def data_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """The SHA-256 of what was evaluated: shape, pixels as float32 and labels as int64, little-endian.

    Float32, so that an evaluation in float64 of the same images has the same.
    """
    total = hashlib.sha256(f'{images.shape}'.encode())
    total.update(np.asarray(images, '<f4').tobytes())
    total.update(np.asarray(labels, '<i8').tobytes())
    return total.hexdigest()


def check_output(path: str | os.PathLike) -> Path:
    """The path of a result, which must end in `.json`.

    Raises:
        InputError: It does not.
    """
    path = Path(path)
    if path.suffix != '.json':
        raise InputError(f'output {str(path)!r} does not end in .json: the flags go beside it as .npz')
    return path


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share count / total."""
    from scipy import stats  # takes a second, which a resumed evaluation need not wait for

    interval = stats.binomtest(count, total).proportion_ci(0.95, method='wilson')
    return float(interval.low), float(interval.high)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())


class SavedResult(NamedTuple):
    """A result read back from its files.

    Attributes:
        path: The JSON file.
        about: Its content.
        correct: [N] bool by name: 'clean', each attack and 'worst_case'; empty where the flags were not read,
            as the following are None.
        labels: [N].
        indices: [N].
    """

    path: Path
    about: dict[str, Any]
    correct: dict[str, np.ndarray]
    labels: Any
    indices: Any


def check_alike(first: SavedResult, other: SavedResult) -> None:
    """Raises InputError unless both were measured alike: on the same images, in the same way."""

    def refuse(what: str, mine: Any, others: Any, remedy: str) -> None:
        raise InputError(
            f'{first.path} and {other.path} cannot be compared, {what}: {mine} and {others}; {remedy}'
        )

    mine, others = first.about, other.about
    for key in ('name', 'split', 'classes'):
        if mine['dataset'].get(key) != others['dataset'].get(key):
            refuse(
                f'the data sets differ ({key})',
                mine['dataset'].get(key),
                others['dataset'].get(key),
                'evaluate both on the same data set',
            )
    if len(first.indices) != len(other.indices):
        refuse(
            'the numbers of images differ',
            len(first.indices),
            len(other.indices),
            'evaluate both with the same --num_examples',
        )
    for what, x, y in (
        ('images', first.indices, other.indices),
        ('labels', first.labels, other.labels),
    ):
        if not np.array_equal(x, y):
            i = int(np.argmax(x != y))
            refuse(f'the {what} differ, first in row {i}', x[i], y[i], 'evaluate both on the same images')
    x, y = (about['dataset'].get('digest') for about in (mine, others))
    if None not in (x, y) and x != y:
        refuse(
            'the images differ, though numbers and labels are equal (SHA-256)',
            str(x)[:12],
            str(y)[:12],
            'evaluate both on the same pixels: the same preparation of the data set, in the same order',
        )
    for key in ('norm', 'eps'):
        if mine['threat_model'][key] != others['threat_model'][key]:
            refuse(
                f'{key} differs',
                mine['threat_model'][key],
                others['threat_model'][key],
                f'evaluate both with the same --{key}',
            )
    if list(mine['attacks']) != list(others['attacks']):
        refuse(
            'the attacks differ',
            ','.join(mine['attacks']),
            ','.join(others['attacks']),
            'evaluate both with the same --attacks, or their worst cases mean different things',
        )
    for name in mine['attacks']:
        for key in PROTOCOL:
            x, y = (about['attacks'][name].get(key) for about in (mine, others))
            if x != y:
                refuse(f'the protocols of {name} differ in {key}', x, y, 'evaluate both with the same flags')


def _read_json(path: Path) -> Any:
    try:
        return files.read_json(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f'{path} is not JSON, or damaged ({error}): give what evaluate.py wrote') from None


def check_json(path: Path, about: Any) -> dict[str, Any]:
    """The content of a result's JSON file, checked: everything that every result has is there.

    Args:
        path: Where it was read, for the message.
        about: Its content.

    Raises:
        InputError: It is of another schema, or something else than a result.
    """
    if not isinstance(about, dict) or 'schema' not in about:
        raise InputError(f'{path} is no result of evaluate.py: it has no schema')
    if about['schema'] != SCHEMA:
        raise InputError(
            f'{path} has schema {about["schema"]!r}, known is {SCHEMA}: evaluate again with this version'
        )
    try:
        files.check_fields(about, FIELDS)
        for name in about['attacks']:
            files.check_fields(about, {('attacks', name): dict, ('attacks', name, 'accuracy'): float})
    except ValueError as error:
        raise InputError(
            f'{path} is JSON, but no result of evaluate.py ({error}): give the file of an evaluation, not '
            'that of a comparison or an audit'
        ) from None
    return about


def _flags_of(path: Path, about: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Flags by name, labels and indices from the npz file of a result."""
    flags = path.with_suffix('.npz')
    names = ['clean', *about['attacks'], 'worst_case']
    arrays = _read_flags(path, flags, (*names, 'labels', 'indices'))
    labels, indices = arrays.pop('labels'), arrays.pop('indices')
    shape = (about['dataset']['examples'],)
    for name, array in {'labels': labels, 'indices': indices}.items():
        if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f'{name!r} in {flags} is {array.dtype} {array.shape}, where {path} speaks of {shape[0]} '
                'images: the two files come from different evaluations; evaluate again'
            )
    for name, flag in arrays.items():
        accuracy = (about['attacks'] if name in about['attacks'] else about)[name]['accuracy']
        if flag.dtype != bool or flag.shape != shape or not np.isclose(flag.mean(), accuracy):
            raise InputError(
                f'{name!r} in {flags} does not belong to the accuracy in {path}: the two files come from '
                'different evaluations; evaluate again'
            )
    return arrays, labels, indices


def _read_flags(path: Path, flags: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        return npz.read(flags, names)
    except OSError as error:
        raise _unreadable(flags, error) from error
    except ValueError as error:
        raise InputError(
            f'{flags} does not hold the flags of {path}, or is damaged ({error}): evaluate again'
        ) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(
            f'there is no file {path}: a comparison needs the JSON file that evaluate.py wrote, and the '
            'flags of each image beside it as .npz'
        )
    return InputError(f'{path} cannot be read ({error.strerror}): give a JSON file of evaluate.py')
