"""`evaluate`: accuracy of a classifier on clean images and under attacks."""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from si_jax.attacks.registry import NEEDS_FEATURES
from si_jax.errors import InputError, unknown
from si_jax.evaluation import checks, custom, dispatch, sanity, transfer
from si_jax.evaluation.classifier import PRECISIONS, classifier_of
from si_jax.evaluation.network import Program
from si_jax.evaluation.result import AttackRecord, Result, data_digest
from si_jax.evaluation.state import Saved, begun
from si_jax.evaluation.surrogate import calibrate
from si_jax.runtime import processes
from si_jax.runtime.agreement import check_identical
from si_jax.runtime.environment import environment
from si_jax.runtime.progress import passing, silent
from si_jax.runtime.progress import progress as progress_of
from si_jax.threat import Threat

# Images at once on each device. On the CPU small batches are fastest: they stay in a core's cache, each core
# has one of its own, and few rows are filling.
CHUNK = {'cpu': 16}
CHUNK_ACCELERATOR = 512


def evaluate(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    attacks: Any,
    eps: float = 8 / 255,
    norm: str = 'linf',
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    indices: Any = None,
    eot_samples: int = 1,
    individual: bool = False,
    gradient_of: Any = None,
    transfer_from: Any = None,
    search_precision: str | None = None,
    state_path: str | os.PathLike | None = None,
    return_images: bool = False,
    progress: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Result:
    """Measures the accuracy of a classifier on clean images and under attacks.

    FGSM and the attacks of the PGD family run on every image and their final images count. Their random
    starts come from (seed, image index, restart) alone, so that attacks share their noise. The attacks of
    AutoAttack and the black-box attacks run on the correctly classified images, each by itself; an image is
    broken by any misclassified point in the ball. Names that begin with `autoattack`, and the screen `fast`,
    are cascades of them: each stage runs on what the ones before left. Whatever counts as broken was
    classified once more, in the precision of the images, as the clean images were. Nothing depends on the
    batches or on the devices, but what callables of your own make of them. Several processes that call this
    with the same arguments share the images, and all get the whole result.

    Args:
        classifier: images [B, H, W, C] in [0, 1] -> `Outputs`, (logits, features, kernel) or logits [B, K];
            or a `Randomised` function of images and keys. JAX must be able to trace it. If it returns logits
            alone and an attack needs features and kernel, they are read from its last linear layer.
        images: [N, H, W, C], floating, in [0, 1]. Evaluated in float32, or in float64 if they are and JAX has
            it enabled.
        labels: [N], integer, in [0, K).
        attacks: Names in the tables of `si_jax.attacks.registry`, as a sequence or a comma string. A
            sequence may also hold attacks of your own: `Attack` records and callables (classifier, images,
            labels, threat, key) -> images, or pairs (name, one of these); see `docs/attacks.md`. They run on
            all images in `restarts` runs, and their final images count, audited and verified like all others.
        eps: Radius of the ball, as a fraction of the pixel range.
        norm: 'linf' or 'l2'; 'l1' is not implemented.
        steps: Steps of the PGD family.
        step_size: Of the PGD family, as a fraction of the pixel range; eps / 4 if None.
        restarts: Runs of the PGD family from new random points; an image must withstand all.
        seed: Of everything random.
        batch_size: Images at once on all devices together, rounded up to a multiple of their number; chosen
            for the device if None.
        indices: [N], the number of each image; its position if None. It makes the evaluation of a part of a
            data set equal to that part of the whole's.
        eot_samples: Gradients averaged in each step, for randomised classifiers; cascades set it themselves.
        individual: Run each stage of a cascade on all correctly classified images: the same accuracy, and
            that of each stage alone.
        gradient_of: Another classifier, of the same shapes, whose derivative the attacks take in place of the
            classifier's own (BPDA): for defenses with a step that has no useful gradient, the same network
            without it. Losses and decisions stay the classifier's.
        transfer_from: Other classifiers of the same classes, a mapping of names or a sequence. For each, a
            row `transfer-NAME` says what adversarial images made on it do to the classifier, as they are and
            as starting points of the same attack on the classifier.
        search_precision: 'float32', 'tf32' (GPUs only) or 'bfloat16', what the classifier's convolutions and
            matrix products are computed in while an attack searches; if None 'tf32' on GPUs, as in PyTorch's
            convolutions, and 'float32' elsewhere. For float64 images leave it out. The reported accuracy is
            the verified one whatever it is.
        state_path: A folder that finished parts are kept in: the same call after an interruption goes on
            where it was, with the same result but for `timing`. It stays until it is removed.
        return_images: Keep the adversarial images.
        progress: Show progress on stderr.
        devices: Devices of this process to use, all if None.

    Returns:
        The `Result`.

    Raises:
        InputError: An argument is wrong, the state belongs to another evaluation, or the classifier is unfit:
            random, dependent on the other images of a batch, not finite, or (for SI attacks) with features
            and kernel that do not explain its logits. So is an attack of your own that leaves the ball,
            changes shape or dtype, returns NaN or is not deterministic for its key, and a `gradient_of` or a
            source of transfer that does not fit.
        AssertionError: An attack of this library left its threat model.
    """
    began = time.perf_counter()
    names, own_attacks = custom.parse(attacks)
    sources = transfer.parse(transfer_from)
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
    before = begun(state_path)
    chunk = images_at_once(batch_size, len(images), devices, before.get('images at once'))
    precision = _precision(search_precision, images.dtype, devices[0].platform)

    # TF32 and bf16 products, the default of accelerators, are not what is reported.
    with jax.default_matmul_precision('highest'):
        reads_features = NEEDS_FEATURES | {
            name for name, one in own_attacks.items() if custom.needs_features(one)
        }
        needs_features = bool(reads_features & set(names))
        program = Program(
            classifier_of(classifier),
            images,
            labels,
            indices,
            seed,
            chunk,
            devices,
            precision=precision,
            needs_features=needs_features,
            gradient_of=None if gradient_of is None else classifier_of(gradient_of),
        )
        shares = before.get('processes', 1)
        if before and type(shares) is int and shares > 0:
            program.shares = shares
        checks.check_classes(program.outputs, labels, names, program.why_no_features, reads_features)
        shown = progress and processes.is_first()
        with passing(len(images), 'clean images', shown) as told:
            logits = program.check_and_classify(explain=needs_features, on_share=told)
        clean = np.argmax(logits, axis=1) == labels
        others = {name: transfer.prepare(name, one, program, seed) for name, one in sources.items()}
        warnings = sanity.outputs(logits) + sanity.classes(logits.shape[1], names)
        if program.classifier.randomised:
            warnings += sanity.randomised(eot_samples, names)
        if sanity.CLIMBS_CROSS_ENTROPY & set(names):
            with passing(int(clean.sum()), 'gradients of clean images', shown) as told:
                warnings += sanity.gradients(program.blind(np.flatnonzero(clean), told), names)
        identity = {
            **program.identity(),
            'seed': seed,
            'threat model': dataclasses.asdict(threat),
            'protocol': {
                'attacks': list(names),
                'steps': steps,
                'step_size': step_size,
                'restarts': restarts,
                'eot_samples': eot_samples,
                'individual': individual,
                'images': return_images,
            },
            'search precision': precision,
        }
        if own_attacks:
            identity['own attacks'] = {name: custom.fingerprint(one) for name, one in own_attacks.items()}
        if others:
            identity['transfer from'] = {name: one.identity()['weights'] for name, one in others.items()}
        check_identical(identity)
        saved = Saved(state_path, identity, logits)
        calibration = None
        if custom.any_calibrated(names, own_attacks):
            calibration = calibrate(logits, saved)
            program.scale = calibration['scale']
        seconds = {'checks and clean images': time.perf_counter() - began}
        plan = dispatch.Plan(
            program,
            logits,
            own_attacks,
            others,
            threat,
            steps,
            step_size,
            restarts,
            eot_samples,
            individual,
            return_images,
            saved,
        )
        records: dict[str, AttackRecord] = {}
        kept: dict[str, np.ndarray] = {}
        total = sum(dispatch.cost(plan, name) for name in (*names, *others)) * len(images)
        with progress_of(total, 'attacks') if shown else silent() as bar:
            for name in (*names, *others):
                began_attack = time.perf_counter()
                bar.set_postfix(attack=name)
                records[name], kept[name], parts = dispatch.run(plan, name, bar)
                if len(parts) > 1:
                    seconds |= {f'{name}, {stage}': part for stage, part in parts.items()}
                seconds[name] = time.perf_counter() - began_attack

    dtype = str(images.dtype)
    return Result(
        clean=clean,
        attacks=records,
        labels=labels,
        indices=indices,
        threat=threat,
        seed=seed,
        precision={'search': precision or dtype, 'verification': dtype, 'matmul': 'highest'},
        dataset={
            'examples': len(images),
            'classes': logits.shape[1],
            'digest': data_digest(images, labels),
        },
        warnings=warnings + sanity.masking(clean, records),
        environment=environment(),
        timing={'seconds': time.perf_counter() - began, 'parts': seconds},
        calibration=calibration,
        gradient_of=None if gradient_of is None else program.gradient_digest(),
        images=kept if return_images else None,
    )


def _precision(wanted: str | None, dtype: np.dtype, platform: str) -> str | None:
    """The precision of products during the search; None for that of the images."""
    if wanted is not None and wanted not in PRECISIONS:
        raise unknown('search_precision', wanted, PRECISIONS)
    if dtype == np.float64:
        if wanted is not None:
            raise InputError(
                f'search_precision={wanted!r} is for float32 images, these are float64: leave it out'
            )
        return None
    if wanted == 'tf32' and platform not in ('gpu', 'cuda', 'rocm'):
        raise InputError(f"search_precision='tf32' is known to GPUs only, not to {platform}: use 'float32'")
    if wanted is None:
        wanted = 'tf32' if platform in ('gpu', 'cuda', 'rocm') else 'float32'
    return wanted


def images_at_once(batch_size: int | None, count: int, devices: list[jax.Device], before: Any = None) -> int:
    """Images at once on all devices together: a multiple of their number, and no more than there are.

    Where it is not given, as many as there were `before`, when the evaluation began on other devices.
    """
    most = -(-count // len(devices)) * len(devices)
    if batch_size is None and type(before) is int and before in range(len(devices), most + 1, len(devices)):
        return before
    if batch_size is None:
        batch_size = CHUNK.get(devices[0].platform, CHUNK_ACCELERATOR) * len(devices)
    wanted = min(checks.check_count('batch_size', batch_size), count)
    return -(-wanted // len(devices)) * len(devices)
