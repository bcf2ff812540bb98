"""`audit`: the field's checklist on one classifier and one attack."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from si_jax.attacks.facts import facts
from si_jax.attacks.family import ATTACKS
from si_jax.auditing import others, traces, verdicts
from si_jax.auditing.report import Audit
from si_jax.auditing.verdicts import Check
from si_jax.auditing.work import Work
from si_jax.errors import InputError
from si_jax.evaluation import cosines, gates, sanity
from si_jax.evaluation.arrays import layout_of
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.kinds import kind_of
from si_jax.evaluation.network import Network, programs
from si_jax.evaluation.request import Request
from si_jax.evaluation.settings import check_count
from si_jax.evaluation.state import Saved, alone
from si_jax.runtime.environment import environment
from si_jax.runtime.progress import passing, showing, silent, wanted
from si_jax.runtime.progress import progress as progress_of
from si_jax.threat import Threat

STEPS = (10, 20, 50, 100, 500)
RESTARTS = 5
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of eps; for 8/255 up to 64/255


def audit(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    attack: str = 'pgd',
    eps: float = 8 / 255,
    norm: str = 'linf',
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    eps_grid: Sequence[float] | None = None,
    steps_grid: Sequence[int] = STEPS,
    queries: int = 1000,
    planted: int = 50,
    points: int = 200,
    transfer_from: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    indices: Any = None,
    eot_samples: int | None = None,
    state_path: str | os.PathLike | None = None,
    progress: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
    layout: str | None = None,
) -> Audit:
    """Checks whether the robust accuracy that an attack measures on a classifier may be trusted.

    The attack is one of the PGD family, run as `evaluate` runs it, on the same random starts. A classifier
    that is secretly random or depends on the batch fails at once, and the other checks are left out: they
    would measure nothing. All is computed in the precision of the images.

    Args:
        classifier: As in `evaluate`, and so are all arguments that are not listed here.
        attack: A row of the PGD family whose number of steps is the caller's.
        steps: The standard number of steps, by which the accuracy is claimed; 20 if None.
        step_size: At `eps`, as a fraction of the pixel range; eps / 4 if None. It grows with eps.
        restarts: 5 if None; 1 for a random classifier.
        eps_grid: Radii; if None a quarter to eight times eps, as far as there are such.
        steps_grid: Numbers of steps; one run of the largest holds all.
        queries: Of Square.
        planted: The images of the binarization test, the first correctly classified ones.
        points: Inner points of each, at least 10.
        transfer_from: Other classifiers of the same classes by name, on which PGD makes images.

    Raises:
        InputError: An argument is wrong, or the classifier is not finite or gives features and kernel that do
            not explain its logits.
        AssertionError: An attack left its threat model, which is a fault of this library.
    """
    began = time.perf_counter()
    traces.check_attack(attack)
    judged = classifier_of(classifier, layout_of(layout, classifier, images))
    if restarts is None:
        restarts = 1 if judged.randomised else RESTARTS
    request = Request.of(
        images,
        labels,
        attacks=attack,
        eps=eps,
        norm=norm,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        seed=seed,
        batch_size=batch_size,
        indices=indices,
        eot_samples=eot_samples,
        devices=devices,
        layout=layout_of(layout, classifier, images),
        randomised=judged.randomised,
    )
    if request.eot_auto:
        raise InputError("eot_samples='auto' is for evaluate: give the audit the number that it finds there")
    threat = request.threat
    about = {
        'name': attack,
        **{name: getattr(request, name) for name in ('steps', 'step_size', 'restarts', 'eot_samples')},
        'eps_grid': _radii(eps_grid, threat, request.images.shape[1:]),
        'steps_grid': sorted({check_count('steps_grid', one) for one in steps_grid} | {request.steps}),
        'queries': check_count('queries', queries),
        'planted': check_count('planted', planted),
        'points': check_count('points', points, least=10),
        'transfer_from': list(transfer_from or {}),
    }

    shown = wanted(progress)
    with alone(state_path), jax.default_matmul_precision('highest'):
        kind = kind_of(attack, request)
        needs_features = facts(ATTACKS[attack]).reads_features
        # The audit is computed in the precision of the images. Features are looked for in any case: the
        # binarization test replaces the layer behind them.
        request = dataclasses.replace(request, precision=None)
        network = Network.of(judged, request, needs_features=True)
        gates.check_labels_of(network.request.classes, request.labels)
        gates.check_fits(
            kind, network.outputs, network.why_no_features, differentiable=network.differentiable
        )

        def report(found: list[Check], clean: float | None, accuracy: float | None) -> Audit:
            return Audit(
                checks=tuple(found),
                attack=about,
                threat=threat,
                clean=clean,
                accuracy=accuracy,
                examples=len(network.images),
                seed=request.seed,
                precision={'all': str(network.images.dtype), 'matmul': 'highest'},
                dataset=network.about_data(),
                environment=environment(),
                timing={'seconds': time.perf_counter() - began},
            )

        sources = others.sources(network, transfer_from or {})
        found = behaviour(network, request.eot_samples)
        if verdicts.overall(found) == verdicts.FAIL:
            words = 'not run: this classifier is no function of the image'
            found += [Check(name, verdicts.SKIP, words) for name in verdicts.OF_A_FUNCTION]
            return report(found, None, None)
        with passing(len(network.images), 'clean images', shown):
            network = network.check_and_classify(explain=needs_features)
        found.append(verdicts.outputs(sanity.outputs(network.clean_logits, network.traced.coarse)))
        if needs_features:
            found.append(verdicts.si(network.si, cosines.warnings(network.si, len(network.images), [attack])))
        said = sanity.decisions(network.clean_logits, request.labels, request.images)
        found += (clean := verdicts.clean(said, int(network.clean.sum())))
        if verdicts.overall(clean) == verdicts.FAIL:
            words = 'not run: the network has collapsed, and no attack could say anything of it'
            if not network.clean.any():
                words = 'not run: no image is classified correctly'
            found += [Check(name, verdicts.SKIP, words) for name in verdicts.OF_ATTACKS]
            return report(found, float(np.mean(network.clean)), None)
        identity = {
            **network.identity(),
            **({} if state_path is None else programs(network, sources)),
            'audit': about,
            'transfer sources': {name: source.identity()['weights'] for name, source in sources.items()},
            'seed': request.seed,
            'threat model': [threat.norm, threat.eps],
        }
        work = Work(network, about, sources)
        bar = progress_of(work.cost(), 'audit') if shown else silent()
        saved = Saved(state_path, identity, network.clean_logits, network.traced.coarse)
        with saved, showing(bar):
            checks, accuracy = work.checks()
        return report(found + checks, float(np.mean(network.clean)), accuracy)


def behaviour(network: Network, eot_samples: int) -> list[Check]:
    """Whether the classifier is a function of the image: called as given, not compiled."""
    rows, coarse = np.arange(gates.PROBE) % len(network.images), network.traced.coarse
    images, keys = network.images[rows], network.verification_keys(network.keys(0)[rows])
    outputs, difference = gates.repeated(network.classifier, images, keys, coarse)
    found = [verdicts.randomness(difference, network.classifier.randomised, eot_samples)]
    if difference:
        words = 'not run: two calls on the same images disagree already'
        return [*found, Check('batch', verdicts.SKIP, words)]
    return [*found, verdicts.batch(gates.mixed(network.classifier, images, keys, outputs, coarse))]


def _radii(grid: Sequence[float] | None, threat: Threat, image_shape: tuple[int, ...]) -> list[float]:
    """The radii in rising order."""
    if grid is None:
        limit = threat.ball.limit(image_shape)
        return sorted({min(multiple * threat.eps, limit) for multiple in MULTIPLES})
    radii = sorted({float(eps) for eps in grid})
    if not radii:
        raise InputError('eps_grid is empty: give radii up to where no image can be recognised, or None')
    for eps in radii:
        Threat(threat.norm, eps).check(image_shape)
    return radii
