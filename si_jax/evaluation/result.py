"""The result of an evaluation: accuracies, flags of each image, and the files that hold them.

`evaluate` returns a `Result`, which holds everything that was found. `Result.save` writes it. `Result.load`
reads it back as a `SavedResult`: the JSON and the flags, which is all that a file keeps.
"""

import dataclasses
import hashlib
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation import cosines, loading
from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.loading import SCHEMA, SETTINGS, SavedResult
from si_jax.evaluation.pixels import Images, Pixels
from si_jax.runtime.terminal import named, wrapped
from si_jax.storage.files import write_atomic, write_json
from si_jax.threat import Threat


class GradientCounts(NamedTuple):
    """What was wrong with the gradients that an attack, or a stage of it, took.

    Attributes:
        attacked: The number of images: the correctly classified ones that it attacked.
        zero: On how many of them the first gradient was zero in every entry, in each run.
        not_finite: On how many an entry of some gradient was NaN or infinite.
    """

    attacked: int
    zero: int
    not_finite: int

    def shares(self) -> dict[str, float]:
        """The two numbers as fractions of the attacked images, as a result's JSON has them."""
        attacked = max(self.attacked, 1)
        return {'zero': self.zero / attacked, 'not_finite': self.not_finite / attacked}


@dataclasses.dataclass(frozen=True)
class AttackRecord:
    """What one attack did to N images.

    Attributes:
        runs: [R, N] bool, whether the image was classified correctly after each of R restarts.
        steps: Steps of a run; None for an attack of several stages.
        step_size: As a fraction of the pixel range; None where the attack chooses it.
        eot_samples: Gradients averaged in each step; None where it averages none.
        max_perturbation: The largest distance of a final image from its original, in the threat model's norm.
        stages: The parts of an attack that has parts, in order, each as a dictionary.
        protocol: The settings of all parts, as a stamp.
        broken_by: [N] int8, the number of the stage that first broke the image, -1 for none; None for an
            attack without stages, as are the following.
        queries: [N] int64, forward passes spent on the image; for attacks that measure distances those until
            an image within eps was found.
        distances: [N], the distance to the decision boundary, of attacks that measure it.
        gradients: For each part of the attack what was wrong with its gradients; None for a part that takes
            none, or of which nothing is known.
        takes: Which of the caller's `SETTINGS` it took. The JSON has null for the others, and under `fixed`
            what the attack does of its own.
    """

    runs: np.ndarray
    steps: int | None
    step_size: float | None
    eot_samples: int | None
    max_perturbation: float
    stages: tuple[dict[str, Any], ...] = ()
    protocol: dict[str, Any] | None = None
    broken_by: np.ndarray | None = None
    queries: np.ndarray | None = None
    distances: np.ndarray | None = None
    gradients: tuple[GradientCounts | None, ...] = ()
    takes: frozenset[str] = frozenset(SETTINGS)

    def settings(self) -> dict[str, Any]:
        """Of the JSON: the settings of the caller's that it took, and `fixed` if there are others."""
        own = dict(zip(SETTINGS, (len(self.runs), self.steps, self.step_size, self.eot_samples), strict=True))
        fixed = {key: own[key] for key in SETTINGS if key not in self.takes and own[key] is not None}
        taken = {key: own[key] if key in self.takes else None for key in SETTINGS}
        return taken | ({'fixed': fixed} if fixed else {})


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
        si: What is known of cosines and logits on the clean images, where an attack read features; None where
            none did. `agreement` is the share of images on which the largest cosine is of the same class as
            the largest logit; `scaled_gap` 15 times the median gap between the two largest cosines;
            `weight_norm_spread` the standard deviation of |W_k| over the classes, divided by their mean;
            `bias_spread` that of b = logits - alpha z W, in logits; `logit_gap` the median gap between the
            two largest logits, to compare it with; `mean_feature_norm` the mean of |z|; `mean_true_cosine`
            that of the cosine of the true class.
        gradient_of: What is known of the classifier whose gradient the attacks took; None for its own.
        union: What `Union.to_json` says, of a result that is one of several threat models'; else None.
        eight_bit: Whether what attacks return was rounded to bytes before it was judged.
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
    si: dict[str, float] | None = None
    gradient_of: dict[str, Any] | None = None
    union: dict[str, Any] | None = None
    eight_bit: bool = False
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
            settings = record.settings()
            return {
                'accuracy': accuracy[name],
                'single_run': self.single_run[name],
                'ci95': ci95[name],
                'restarts': settings.pop('restarts'),
                'runs': [float(np.mean(run)) for run in record.runs],
                **settings,
                'max_perturbation': record.max_perturbation,
                'only': only[name],
                'stages': list(record.stages),
                **_gradients(record),
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
            **({} if self.si is None else {'si': self.si}),
            **({} if self.gradient_of is None else {'gradient_of': self.gradient_of}),
            **({} if self.union is None else {'union': self.union}),
            **({'eight_bit': True} if self.eight_bit else {}),
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
        write_npz(path.with_suffix('.npz'), arrays)
        if self.images is not None:
            write_npz(path.with_name(f'{path.stem}_images.npz'), self.images)
        write_json(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike, *, flags: bool = True) -> SavedResult:
        """Reads what `save` wrote.

        Args:
            path: The JSON file.
            flags: Whether to read the flags of each image, which lie beside it as `<stem>.npz`.

        Raises:
            InputError: A file is missing, cannot be read, is damaged or something else than a result, or the
                two do not belong together.
        """
        return loading.read(Path(path), flags=flags)

    def table(self) -> str:
        """The accuracies in percent with their intervals, for a terminal of 80 columns."""
        lines = [
            f'{self.threat.norm} eps={self.threat.eps:.6g}, {len(self.labels)} images, seed {self.seed}'
            f'{", rounded to 8 bits" if self.eight_bit else ""}',
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
        screens = [  # presets that are no protocols
            f'{name}: {one.protocol["screen"]} '
            f'({sum(stage["forward_passes"] for stage in one.stages):,} forward passes).'
            for name, one in self.attacks.items()
            if one.protocol and one.protocol.get('screen')
        ]
        if gap is not None:
            lines.append(f'overestimation gap, PGD - AutoAttack: {gap:.2f} points')
        lines += wrapped('', ' '.join(screens))
        if self.si is not None:
            lines += wrapped('note: ', cosines.note(self.si, len(self.labels)))
        for warning in self.warnings:
            lines += wrapped('warning: ', warning)
        return '\n'.join(lines)


def _gradients(record: AttackRecord) -> dict[str, Any]:
    """The shares of images with a gradient of zero, or not finite; of several parts the largest."""
    known = [counts.shares() for counts in record.gradients if counts is not None]
    if not known:
        return {}
    return {'gradients': {key: max(shares[key] for shares in known) for key in known[0]}}


def data_digest(images: Images, labels: np.ndarray) -> str:
    """The SHA-256 of what was evaluated: shape, pixels as float32 and labels as int64, little-endian.

    Float32, so that an evaluation in float64 of the same images has the same.
    """
    total = hashlib.sha256(f'{images.shape}'.encode())
    for part in images.parts() if isinstance(images, Pixels) else (images,):
        total.update(np.asarray(part, '<f4').tobytes())
    total.update(np.asarray(labels, '<i8').tobytes())
    return total.hexdigest()


def check_output(path: str | os.PathLike) -> Path:
    """The path of a result; raises InputError unless it ends in `.json`."""
    path = Path(path)
    if path.suffix != '.json':
        raise InputError(f'output {str(path)!r} does not end in .json: the flags go beside it as .npz')
    return path


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays in one step."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())
