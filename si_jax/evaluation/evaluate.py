"""`evaluate`: accuracy of a classifier on clean images and under attacks."""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from si_jax.evaluation import cosines, eot, gates, sanity, targeted, transfer
from si_jax.evaluation.arrays import layout_of
from si_jax.evaluation.cascade import Cascade
from si_jax.evaluation.classifier import Randomised, classifier_of
from si_jax.evaluation.forecast import forecast
from si_jax.evaluation.kinds import Kind, kind_of
from si_jax.evaluation.network import Network, programs
from si_jax.evaluation.pgd import Outcome, Pgd, with_gradient
from si_jax.evaluation.request import Request, default_attacks
from si_jax.evaluation.result import Result
from si_jax.evaluation.state import Saved, alone, remember, unsaved
from si_jax.evaluation.surrogate import calibrate
from si_jax.evaluation.transfer import Transfer
from si_jax.runtime import processes, profiling
from si_jax.runtime.agreement import check_identical
from si_jax.runtime.environment import environment
from si_jax.runtime.fingerprint import fingerprint
from si_jax.runtime.progress import passing, showing, silent, wanted
from si_jax.runtime.progress import progress as progress_of
from si_jax.storage.trees import digest

PROFILED = 3  # chunks of images in a profile
# What a state must share with the evaluation that goes on, of a request.
PROTOCOL = ('steps', 'step_size', 'restarts', 'eot_samples', 'individual')


def evaluate(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    attacks: Any = None,
    eps: float = 8 / 255,
    norm: str = 'linf',
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    indices: Any = None,
    eot_samples: int | str | None = None,
    individual: bool = False,
    gradient_of: Any = None,
    transfer_from: Any = None,
    search_precision: str | None = None,
    state_path: str | os.PathLike | None = None,
    return_images: bool = False,
    progress: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
    layout: str | None = None,
    scale: int | None = None,
    targets: Any = None,
    decisions: int | None = None,
    eight_bit: bool = False,
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
            alone and an attack needs features and kernel, they are read from its last linear layer. Or a
            torch.nn.Module, [B, C, H, W] in [0, 1] -> logits, which is translated in evaluation mode; or a
            `BlackBox`, for attacks without gradients. A flax.nnx.Module is such a callable. A network of
            flax.linen is given as the pair (module, variables), and arguments such as `train` as they are for
            predicting. An equinox.Module takes one image [C, H, W], in inference mode.
        images: [N, H, W, C], floating, in [0, 1], of NumPy, JAX or PyTorch. Evaluated in float32, or in
            float64 if they are and JAX has it enabled. Or uint8 with their `scale`: they stay bytes, and a
            chunk at a time becomes float32. What is outside of [0, 1] by at most 1e-6 is clipped,
            and the result says so.
        labels: [N], integer, in [0, K).
        attacks: Names in the tables of `si_jax.attacks.registry`, as a sequence or a comma string. If None
            it is 'autoattack', the protocol by which the field reports robust accuracy ('autoattack-rand' for
            a `Randomised` classifier, 'square' for a `BlackBox`). A name
            can have settings, as in 'apgd-ce(steps=50, restarts=5)', in place of the attack's own and of the
            arguments below; the result has its canonical form (`registry.parse`). A sequence may also hold
            attacks of your own: `Attack` records and callables (classifier, images, labels, threat, key) ->
            images, or pairs (name, one of these); see `docs/attacks.md`. They run on all images in `restarts`
            runs, and their final images count, audited and verified like all others.
        eps: Radius of the ball, as a fraction of the pixel range.
        norm: 'linf', 'l2' or 'l1'.
        steps: Steps of the PGD family; 20 if None. This and the next two, and `eot_samples`, are refused if
            they are given and no attack of the call takes them. The JSON has null where an attack does not.
        step_size: Of the PGD family, as a fraction of the pixel range; eps / 4 if None.
        restarts: Runs of the PGD family from new random points, 1 if None; an image must withstand all.
        seed: Of everything random.
        batch_size: Images at once on all devices together, at most, and rounded up to a multiple of their
            number; chosen for the device if None.
        indices: [N], the number of each image; its position if None. It makes the evaluation of a part of a
            data set equal to that part of the whole's.
        eot_samples: Gradients averaged in each step, for randomised classifiers; 1 if None. Presets set it
            themselves. Of a randomised classifier searches without gradients take it too: Square and RayS go
            by that many draws in each query. 'auto' measures how many it takes, see `si_jax.evaluation.eot`.
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
            where it was, with the same result but for `timing`. It stays until it is removed. Two calls at
            once cannot have the same.
        return_images: Keep the adversarial images.
        progress: Show progress on stderr; if None it is shown on a terminal and in a notebook. Before attacks
            of more than a minute it says what they will take.
        devices: Devices of this process to use, all if None.
        layout: 'nhwc' or 'nchw': of `images`, of the images that are returned, and of those that callables of
            yours are given, classifiers and attacks. If None it is 'nhwc'; for a torch.nn.Module, images
            [N, C, H, W] are recognised.
        scale: Of uint8 images the stored value of white, 255 as a rule; None for floating ones.
        targets: Classes that the attacks have to reach: [N], a wrong class for each image; 'random', drawn
            for each image by seed and index; 'least-likely', the wrong class of the lowest clean logit; or
            'all', each wrong class in turn. The result has the share of images on which the target (of
            several, one of them) was reached, as `success`. None for any wrong class. For the PGD family (but
            not `gama`), APGD, `fab-t` and `square`.
        decisions: Fresh draws of a randomised classifier that judge each clean and each adversarial image, 64
            if None; no attack sees them. Accuracies are mean shares of them (docs/random.md). Refused for
            any other classifier.
        eight_bit: Round what attacks return to bytes inside the ball before it is judged, and return that.
            The images themselves must be multiples of 1/255.

    Returns:
        The `Result`.

    Raises:
        InputError: An argument is wrong, the state belongs to another evaluation or is in use, or the
            classifier is unfit: random, dependent on the other images of a batch, not finite, or (for SI
            attacks) with features and kernel that do not explain its logits. So is an attack of your own that
            leaves the ball, changes shape or dtype, returns NaN or is not deterministic for its key, and a
            `gradient_of` or a source of transfer that does not fit.
        AssertionError: An attack of this library left its threat model.
    """
    began = time.perf_counter()
    request = Request.of(
        images,
        labels,
        attacks=default_attacks(classifier) if attacks is None else attacks,
        eps=eps,
        norm=norm,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        seed=seed,
        batch_size=batch_size,
        indices=indices,
        eot_samples=eot_samples,
        individual=individual,
        transfer_from=transfer_from,
        search_precision=search_precision,
        state_path=state_path,
        return_images=return_images,
        devices=devices,
        layout=layout_of(layout, classifier, images),
        scale=scale,
        targets=targets,
        decisions=decisions,
        randomised=isinstance(classifier, Randomised),
        eight_bit=eight_bit,
    )
    shown = wanted(progress) and processes.is_first()
    # TF32 and bf16 products, the default of accelerators, are not what is reported.
    with alone(state_path), jax.default_matmul_precision('highest'):
        network, kinds = prepared(classifier, gradient_of, request, shown)
        return measure(network, kinds, began, state_path, shown)


def measure(
    network: Network,
    kinds: list[Kind],
    began: float,
    state_path: str | os.PathLike | None = None,
    shown: bool = False,
    attack: Callable[[Kind, Network], Outcome] | None = None,
) -> Result:
    """The result of a network, which is prepared, under these attacks.

    `began` is when the work on it did, as `time.perf_counter` has it. `attack` runs one of them; None for
    `Kind.run`.
    """
    takes = network.request.takes
    identity = identity_of(network, kinds, program=state_path is not None)
    check_identical(identity)
    with Saved(state_path, identity, network.clean_logits, network.traced.coarse):
        calibration = None
        if any(part.facts and part.facts.row.calibrated for kind in kinds for part in kind.parts):
            calibration = calibrate(network.clean_logits)
            network = dataclasses.replace(network, scale=calibration['scale'])
        if (si := network.si) is not None:
            # Kept, so that an evaluation that goes on says the same to the last digit.
            kept = remember('si', lambda: dict(si))
            network = dataclasses.replace(network, si={name: float(kept[name]) for name in si})
        found = eot.sized(network) if network.request.eot_auto else None
        if found is not None:
            network, kinds = _with_samples(network, kinds, found)
        seconds = {'checks and clean images': time.perf_counter() - began}
        profiling.warm_up(functools.partial(_dry_run, kinds[0], network))
        passes, outcomes = sum(kind.cost(network.request) for kind in kinds), {}
        total = passes * len(network.images)
        if shown and processes.count() == 1 and (words := forecast(network, passes)):
            print(words, file=sys.stderr, flush=True)
        with showing(progress_of(total, 'attacks') if shown else silent()) as bar:
            for kind in kinds:
                began_attack = time.perf_counter()
                bar.set_postfix(attack=kind.name)
                outcome = attack(kind, network) if attack else kind.run(network, network.request)
                record = dataclasses.replace(outcome.record, takes=takes[kind.name])
                outcomes[kind.name] = dataclasses.replace(outcome, record=record)
                seconds |= {f'{kind.name}, {stage}': part for stage, part in outcome.seconds.items()}
                seconds[kind.name] = time.perf_counter() - began_attack

    timing = {'seconds': time.perf_counter() - began, 'parts': seconds}
    return dataclasses.replace(conclude(network, kinds, outcomes, calibration, timing), eot=found)


def conclude(
    network: Network,
    kinds: list[Kind],
    outcomes: dict[str, Outcome],
    calibration: dict[str, float] | None,
    timing: dict[str, Any],
) -> Result:
    """What was found, with the warnings of the gates."""
    request, clean, dtype = network.request, network.clean, str(network.images.dtype)
    records = {name: outcome.record for name, outcome in outcomes.items()}
    readers = [kind.name for kind in kinds if _reads_features(kind)]
    randomised, there = network.classifier.randomised, functools.partial(with_gradient, network)
    return Result(
        clean=clean,
        attacks=records,
        labels=request.labels,
        indices=request.indices,
        threat=request.threat,
        seed=request.seed,
        precision={'search': request.precision or dtype, 'verification': dtype, 'matmul': 'highest'},
        dataset=network.about_data(),
        warnings=[
            *request.notes,
            *sanity.decisions(network.clean_logits, request.labels, request.images),
            *sanity.outputs(network.clean_logits, network.traced.coarse),
            *gates.out_of_reach(kinds, request.threat),
            *gates.of_linf(request.threat),
            *gates.too_short(kinds, records, request.threat),
            *gates.after(network.clean_logits, clean, kinds, records, there, randomised=randomised),
            *targeted.warnings(network),
            *cosines.warnings(network.si, len(clean), readers),
        ],
        environment=environment(),
        timing=timing,
        calibration=calibration,
        si=network.si,
        clean_share=None if request.decisions is None else network.clean_share,
        decisions=request.decisions,
        gradient_of=network.gradient_digest(),
        eight_bit=request.eight_bit,
        smaller_radii=tuple(radius for radius in request.radii or () if radius > 0),
        images={name: request.as_given(_kept(network, outcome)) for name, outcome in outcomes.items()}
        if request.keep
        else None,
    )


def _kept(network: Network, outcome: Outcome) -> np.ndarray:
    """The images that an attack returned, [N, H, W, C], as they were judged."""
    return network.judged(outcome.images, np.arange(len(network.images)), network.request.threat)


def prepared(classifier: Any, gradient_of: Any, request: Request, shown: bool) -> tuple[Network, list[Kind]]:
    """The network with its clean logits, and the attacks in order: all of them fit for each other."""
    kinds = [kind_of(name, request) for name in request.names]
    needs_features = any(map(_reads_features, kinds))
    if gradient_of is not None:
        gates.check_stand_in_is_taken(kinds)
    given = classifier_of(classifier, request.layout)
    network = Network.of(
        given,
        request,
        needs_features=needs_features,
        gradient_of=None if gradient_of is None else classifier_of(gradient_of, request.layout),
    )
    gates.check_labels_of(network.request.classes, request.labels)
    gates.check_targets(kinds, request, network.request.classes, randomised=given.randomised)
    for kind in (*kinds, *(Transfer(name, network) for name in request.sources)):
        gates.check_fits(
            kind, network.outputs, network.why_no_features, differentiable=network.differentiable
        )
    with passing(len(request.images), 'clean images', shown):
        network = network.check_and_classify(explain=needs_features)
    for name, source in request.sources.items():
        kinds.append(Transfer(name, transfer.prepare(name, source, network)))
    return network, kinds


def _with_samples(network: Network, kinds: list[Kind], found: dict[str, Any]) -> tuple[Network, list[Kind]]:
    """The network and its attacks with the number of draws that `eot.sized` found."""

    def of(one: Network, *notes: str) -> Network:
        samples = found['eot_samples']
        request = dataclasses.replace(one.request, eot_samples=samples, notes=(*one.request.notes, *notes))
        return dataclasses.replace(one, request=request)

    network = of(network, eot.note(found))
    return network, [
        dataclasses.replace(kind, source=of(kind.source))
        if isinstance(kind, Transfer)
        else kind_of(kind.name, network.request)
        for kind in kinds
    ]


def _reads_features(kind: Kind) -> bool:
    return any(part.facts is not None and part.facts.reads_features for part in kind.parts)


def _dry_run(kind: Kind, network: Network) -> None:
    """Runs the beginning of an attack on a few images, for a profile; nothing of it counts."""
    if isinstance(kind, Cascade | Pgd | targeted.Targeted):
        kind = kind.beginning
    rows = np.flatnonzero(network.clean)[: PROFILED * network.request.chunk]
    if len(rows):
        few = network.part(rows)
        with unsaved(), showing(silent()):
            kind.run(few, dataclasses.replace(few.request, restarts=1, keep=False))


def identity_of(network: Network, kinds: list[Kind], *, program: bool) -> dict[str, Any]:
    """What the evaluation is made of: one with another identity cannot go on from its state."""
    request = network.request
    identity = {
        **network.identity(),
        'seed': request.seed,
        'threat model': dataclasses.asdict(request.threat),
        'protocol': {
            'attacks': list(request.names),
            **{name: getattr(request, name) for name in PROTOCOL},
            'images': request.keep,
        },
        'search precision': request.precision,
    }
    if request.targets is not None:
        identity['targets'] = (
            str(request.targets) if isinstance(request.targets, str) else digest(request.targets)
        )
    if request.decisions is not None:
        identity['draws'] = {'decisions': request.decisions, 'eot_samples measured': request.eot_auto}
    if request.eight_bit:
        identity['rounded to'] = '8 bits'
    if request.radii is not None:
        identity['smaller radii'] = list(request.radii)
    if request.custom:
        identity['own attacks'] = {name: fingerprint(one) for name, one in request.custom.items()}
    sources = {kind.name: kind.source for kind in kinds if isinstance(kind, Transfer)}
    if sources:
        identity['transfer from'] = {name: one.identity()['weights'] for name, one in sources.items()}
    if program:
        identity |= programs(network, sources)
    return identity
