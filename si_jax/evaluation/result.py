"""The result of an evaluation: accuracies, flags of each image, and the files that hold them.

`evaluate` returns a `Result`, which holds everything that was found. `Result.save` writes it. `Result.load`
reads it back as a `SavedResult`: the JSON and the flags, which is all that a file keeps.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation import loading
from si_jax.evaluation.intervals import interval
from si_jax.evaluation.loading import SCHEMA, SHARE, SavedResult
from si_jax.evaluation.pixels import Images, Pixels
from si_jax.evaluation.table import SETTINGS, Tabular
from si_jax.storage import npz
from si_jax.storage.files import read_json, write_atomic, write_json
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
        runs: [R, N] bool, whether the image was classified correctly after each of R restarts; of a random
            classifier by the vote of its draws.
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
        success: [N] bool, whether a final image was classified as the target that the caller chose, of
            several one of them; None without targets.
        reached: [N], how many of several targets were reached; None for one.
        shares: [R, N], of a random classifier the share of draws that were right after each restart; None of
            any other.
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
    success: np.ndarray | None = None
    reached: np.ndarray | None = None
    shares: np.ndarray | None = None
    takes: frozenset[str] = frozenset(SETTINGS)

    def settings(self) -> dict[str, Any]:
        """Of the JSON: the settings of the caller's that it took, and `fixed` if there are others."""
        own = dict(zip(SETTINGS, (len(self.runs), self.steps, self.step_size, self.eot_samples), strict=True))
        fixed = {key: own[key] for key in SETTINGS if key not in self.takes and own[key] is not None}
        taken = {key: own[key] if key in self.takes else None for key in SETTINGS}
        return taken | ({'fixed': fixed} if fixed else {})


IMAGES = '_images.npz'
# What an evaluation, a union or a sweep of several, smallest perturbations, an audit, a comparison, a figure
# and scores of corruptions have beside their schema.
FIELDS = ('worst_case', 'union', 'sweep', 'smallest', 'checks', 'differences', 'figure', 'corruptions')
OF_IMAGES = frozenset({'labels', 'indices'})  # in the npz file of every result


@dataclasses.dataclass(frozen=True)
class Result(Tabular):
    """Accuracy of a classifier on clean images and under attacks; shown as a table in a notebook.

    Attributes:
        clean: [N] bool, whether the clean image is classified correctly; of a random classifier by the vote.
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
        decisions: Of a random classifier, how many draws judged each image; else None.
        clean_share: [N], the share of them that were right on the clean image; None where `decisions` is.
        eot: What `eot.sized` found, if the caller's eot_samples was 'auto'.
        eight_bit: Whether what attacks return was rounded to bytes before it was judged.
        smaller_radii: Of a sweep, the radii above 0 at which an image that was broken counts as broken here.
        images: Attack name to adversarial images [N, H, W, C]: of the first restart that fooled the
            classifier, else of the first; of a random classifier those with the smallest share. None unless
            asked for.
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
    decisions: int | None = None
    clean_share: np.ndarray | None = None
    eot: dict[str, Any] | None = None
    eight_bit: bool = False
    smaller_radii: tuple[float, ...] = ()
    images: dict[str, np.ndarray] | None = None

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """[N] bool by name: 'clean', each attack (after all restarts), and 'worst_case' (all of these).

        Of a random classifier it is the vote: whether more than half of the draws are right.
        """
        flags = {'clean': self.clean}
        flags |= {name: np.logical_and.reduce(record.runs) for name, record in self.attacks.items()}
        return flags | {'worst_case': np.logical_and.reduce(list(flags.values()))}

    @property
    def share(self) -> dict[str, np.ndarray]:
        """[N] by the same names: the share of draws that are right, the smallest over restarts and attacks.

        Of a classifier that is not random it is 1 or 0.
        """
        if self.clean_share is None:
            return {name: flags.astype(float) for name, flags in self.correct.items()}
        shares = {'clean': self.clean_share}
        shares |= {name: np.min(_runs(record), axis=0) for name, record in self.attacks.items()}
        return shares | {'worst_case': np.min(list(shares.values()), axis=0)}

    @property
    def accuracy(self) -> dict[str, float]:
        """The fraction of `correct` images over all, by the same names.

        Of a random classifier it is the mean of `share`.
        """
        return {name: float(np.mean(counted)) for name, counted in self._counted.items()}

    @property
    def _counted(self) -> dict[str, np.ndarray]:
        """[N], what each image counts."""
        return self.correct if self.decisions is None else self.share

    @property
    def vote_accuracy(self) -> dict[str, float]:
        """The fraction of images that the vote of the draws gets right, by the same names."""
        return {name: float(np.mean(flags)) for name, flags in self.correct.items()}

    @property
    def worst_draw_accuracy(self) -> dict[str, float]:
        """The fraction of images that every draw gets right: each is judged by its worst."""
        return {name: float(np.mean(share == 1)) for name, share in self.share.items()}

    @property
    def single_run(self) -> dict[str, float]:
        """The accuracy after the first restart alone, by attack."""
        return {name: float(np.mean(_runs(record)[0])) for name, record in self.attacks.items()}

    @property
    def success(self) -> dict[str, float]:
        """The share of images on which an attack reached its target, by attack; empty without targets."""
        found = {name: record.success for name, record in self.attacks.items()}
        return {name: float(np.mean(flags)) for name, flags in found.items() if flags is not None}

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
        return {name: interval(counted) for name, counted in self._counted.items()}

    def to_json(self) -> dict[str, Any]:
        """The result in JSON's types, without the flags."""
        accuracy, only, gap = self.accuracy, self.only, self.overestimation_gap
        by_draws: dict[str, dict[str, float]] = {name: {} for name in accuracy}
        if self.decisions is not None:
            vote, worst = self.vote_accuracy, self.worst_draw_accuracy
            by_draws = {
                name: {'vote_accuracy': vote[name], 'worst_draw_accuracy': worst[name]} for name in accuracy
            }
        ci95 = {name: list(interval) for name, interval in self.ci95.items()}

        def attack(name: str, record: AttackRecord) -> dict[str, Any]:
            settings = record.settings()
            return {
                'accuracy': accuracy[name],
                **by_draws[name],
                'single_run': self.single_run[name],
                'ci95': ci95[name],
                'restarts': settings.pop('restarts'),
                'runs': [float(np.mean(run)) for run in _runs(record)],
                **settings,
                'max_perturbation': record.max_perturbation,
                'only': only[name],
                'stages': list(record.stages),
                **_success(record),
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
            **({} if self.decisions is None else {'decisions': self.decisions}),
            **({} if self.eot is None else {'eot': self.eot}),
            'clean': {'accuracy': accuracy['clean'], **by_draws['clean'], 'ci95': ci95['clean']},
            'attacks': {name: attack(name, record) for name, record in self.attacks.items()},
            'worst_case': {
                'accuracy': accuracy['worst_case'],
                **by_draws['worst_case'],
                'ci95': ci95['worst_case'],
            },
            **({} if gap is None else {'overestimation_gap': gap}),
            **({} if self.calibration is None else {'calibration': self.calibration}),
            **({} if self.si is None else {'si': self.si}),
            **({} if self.gradient_of is None else {'gradient_of': self.gradient_of}),
            **({} if self.union is None else {'union': self.union}),
            **({'eight_bit': True} if self.eight_bit else {}),
            **({'smaller_radii': list(self.smaller_radii)} if self.smaller_radii else {}),
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
        attack that has them, `broken_by_NAME`, `queries_NAME`, `distances_NAME`, `success_NAME` and
        `reached_NAME` as in `AttackRecord`. Of a random classifier there is `share_NAME` for each name in
        `share`. `<stem>_images.npz` holds the adversarial images by attack; where none were kept, that of a
        result which this one replaces is removed. Folders are made, and each file is replaced in one step,
        the JSON last.

        Args:
            path: The JSON file.

        Raises:
            InputError: The path does not end in `.json`.
            OSError: A file cannot be written.
        """
        path = replaceable(path, images=self.images)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = self.correct | {'labels': self.labels, 'indices': self.indices}
        for name, record in self.attacks.items():
            for key in ('broken_by', 'queries', 'distances', 'success', 'reached'):
                if (array := getattr(record, key)) is not None:
                    arrays[f'{key}_{name}'] = array
        if self.decisions is not None:
            arrays |= {f'{SHARE}{name}': share for name, share in self.share.items()}
        write_npz(path.with_suffix('.npz'), arrays)
        images = path.with_name(f'{path.stem}{IMAGES}')
        if self.images is not None:
            write_npz(images, self.images)
        else:
            remove_stale(images, path)
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


def _success(record: AttackRecord) -> dict[str, Any]:
    """The share of images on which a target was reached, and of several the mean number of those."""
    found = {'success': record.success, 'reached': record.reached}
    return {key: float(np.mean(array)) for key, array in found.items() if array is not None}


def _runs(record: AttackRecord) -> np.ndarray:
    """[R, N], what an image counts after each restart."""
    return record.runs if record.shares is None else record.shares


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


def replaceable(
    path: str | os.PathLike, companions: Sequence[str] = ('.npz',), images: Iterable[str] | None = None
) -> Path:
    """The path of a result that is about to be written, with its companions `<stem><suffix>`.

    `images` are the attacks whose images lie in `<stem>_images.npz`; None where none are written. Such a file
    may have been left by a command that was killed before it wrote its result.

    Raises:
        InputError: It does not end in `.json`, or in its place or a companion's is what no result left.
    """
    path = check_output(path)
    files = [path.with_name(f'{path.stem}{suffix}') for suffix in companions]
    foreign = [path] if path.exists() and not (is_result(path) or _is_damaged(path)) else []
    if images is not None:
        files.append(path.with_name(f'{path.stem}{IMAGES}'))
    foreign += [file for file in files if file.exists() and not _is_of(file, path, images or ())]
    if foreign:
        raise InputError(f'{foreign[0]} is there, and is no result: give another path, or move it away')
    return path


def is_result(path: Path) -> bool:
    """Whether a JSON file is a result of this library."""
    try:
        about = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and 'schema' in about and any(field in about for field in FIELDS)


def _is_damaged(path: Path) -> bool:
    """Whether a file is empty, or the beginning of a result and no JSON."""
    try:
        read_json(path)
    except OSError:
        return False
    except ValueError:
        begins = path.read_bytes()[:20]
        return not begins or begins.startswith(b'{\n  "schema"')
    return False


def attacks_in(path: Path) -> set[str]:
    """The attacks in a result; none if the file is something else."""
    if not is_result(path):
        return set()
    about = read_json(path)
    return set(about.get('smallest', about).get('attacks', ()))


def _is_of(file: Path, result: Path, attacks: Iterable[str] = ()) -> bool:
    """Whether a file beside the JSON file of a result is of it, or may have been and is damaged."""
    if file.suffix != '.npz':
        return is_result(result)
    try:
        names = set(npz.headers(file))
    except (OSError, npz.ArchiveError):
        return True
    if file.name.endswith(IMAGES):
        return names <= attacks_in(result) | set(attacks)
    return names >= OF_IMAGES


def remove_stale(images: Path, result: Path) -> None:
    """Removes the adversarial images of a result that is about to be replaced by one without them."""
    with contextlib.suppress(OSError, npz.ArchiveError):
        if set(npz.headers(images)) <= attacks_in(result):
            images.unlink()


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays in one step."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())
