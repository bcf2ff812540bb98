"""`evaluate`: accuracy of a classifier on clean images and under attacks."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from si_jax import attacks as catalogue
from si_jax import metrics
from si_jax.attacks.catalogue import NEEDS_FEATURES
from si_jax.environment import environment
from si_jax.evaluation import checks
from si_jax.evaluation.classifier import Classifier, classifier_of
from si_jax.evaluation.program import Program
from si_jax.evaluation.result import AttackRecord, Result
from si_jax.threat import Threat

# Images at once on each device. On the CPU gradient steps are fastest on small batches.
CHUNK = {'cpu': 64}
CHUNK_ACCELERATOR = 512


def evaluate(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    attacks: str | Sequence[str],
    eps: float = 8 / 255,
    norm: str = 'linf',
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    indices: Any = None,
    eot_samples: int = 1,
    return_images: bool = False,
    progress: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Result:
    """Measures the accuracy of a classifier on clean images and under attacks.

    Every attack runs on every image and its final images count. Random starts come from (seed, image index,
    restart) alone, so that attacks share their noise, and nothing depends on the batches or on the devices.

    Args:
        classifier: images [B, H, W, C] in [0, 1] -> `Outputs`, (logits, features, kernel) or logits [B, K];
            or a `Randomised` function of images and keys. JAX must be able to trace it.
        images: [N, H, W, C], floating, in [0, 1]. Evaluated in float32, or in float64 if they are and JAX has
            it enabled.
        labels: [N], integer, in [0, K).
        attacks: Names in `si_jax.ATTACKS`, as a sequence or a comma string.
        eps: Radius of the ball, as a fraction of the pixel range.
        norm: 'linf' or 'l2'.
        steps: Steps of the PGD family.
        step_size: Of the PGD family, as a fraction of the pixel range; eps / 4 if None.
        restarts: Runs of the PGD family from new random points; an image must withstand all.
        seed: Of everything random.
        batch_size: Images at once on all devices together, rounded up to a multiple of their number; chosen
            for the device if None.
        indices: [N], the number of each image; its position if None. It makes the evaluation of a part of a
            data set equal to that part of the whole's.
        eot_samples: Gradients averaged in each step, for randomised classifiers.
        return_images: Keep the adversarial images.
        progress: Show progress on stderr.
        devices: Local devices to use, all if None.

    Returns:
        The `Result`.

    Raises:
        InputError: An argument is wrong, or the classifier is unfit: random, dependent on the other images of
            a batch, not finite, or (for SI attacks) with features and kernel that do not explain its logits.
        AssertionError: An attack left its threat model, which is a fault of this library.
    """
    began = time.perf_counter()
    names = catalogue.parse(tuple(attacks) if not isinstance(attacks, str) else attacks)
    images = checks.check_images(images)
    labels = checks.check_labels(labels, len(images))
    indices = checks.check_indices(indices, len(images))
    threat = Threat(norm, float(eps))
    threat.check(images.shape[1:])
    steps = checks.check_count('steps', steps)
    restarts = checks.check_count('restarts', restarts)
    eot_samples = checks.check_count('eot_samples', eot_samples)
    seed = checks.check_count('seed', seed, least=0)
    step_size = threat.eps / 4 if step_size is None else step_size
    step_size = checks.check_step_size(step_size, norm, images.shape[1:])
    devices = list(devices or jax.local_devices())
    chunk = _chunk(batch_size, len(images), devices)

    # TF32 and bf16 products, the default of accelerators, are not what is reported.
    with jax.default_matmul_precision('highest'):
        program = Program(classifier_of(classifier), images, labels, indices, seed, chunk, devices)
        checks.check_classes(program.outputs, labels, names)
        clean = program.check_and_classify(explain=bool(NEEDS_FEATURES & set(names)))
        seconds = {'checks and clean images': time.perf_counter() - began}
        records: dict[str, AttackRecord] = {}
        kept: dict[str, np.ndarray] = {}
        runs = {name: restarts if catalogue.ATTACKS[name].steps is None else 1 for name in names}
        total = len(images) * sum(runs.values())
        with metrics.progress(total, 'attacks', 'image') if progress else tqdm(disable=True) as bar:
            for name in names:
                began_attack = time.perf_counter()
                bar.set_postfix(attack=name)
                records[name], kept[name] = program.attack(
                    name, threat, runs[name], steps, step_size, eot_samples, keep=return_images, bar=bar
                )
                seconds[name] = time.perf_counter() - began_attack

    dtype = str(images.dtype)
    return Result(
        clean=clean,
        attacks=records,
        labels=labels,
        indices=indices,
        threat=threat,
        seed=seed,
        precision={'search': dtype, 'verification': dtype, 'matmul': 'highest'},
        dataset={'examples': len(images), 'classes': program.outputs.logits.shape[1]},
        warnings=_warnings(program.classifier, eot_samples),
        environment=environment(),
        timing={'seconds': time.perf_counter() - began, 'parts': seconds},
        images=kept if return_images else None,
    )


def _chunk(batch_size: int | None, count: int, devices: list[jax.Device]) -> int:
    """Images at once on all devices together: a multiple of their number, and no more than there are."""
    if batch_size is None:
        batch_size = CHUNK.get(devices[0].platform, CHUNK_ACCELERATOR) * len(devices)
    wanted = min(checks.check_count('batch_size', batch_size), count)
    return -(-wanted // len(devices)) * len(devices)


def _warnings(classifier: Classifier, eot_samples: int) -> list[str]:
    if classifier.randomised and eot_samples == 1:
        return [
            'the classifier is randomised and the attacks follow single draws of it, so these accuracies are '
            'too high: set eot_samples (20 is usual)'
        ]
    return []
