"""The cascade: searches one after another, each on the images that are still classified correctly.

Each search starts from the original images. A targeted one aims at the classes of rank 2 to 10 of the clean
logits in turn, and only images that withstood one target go on to the next. Since an image's random numbers
come from its own key and the name of the attack, a stage does the same to it here as when it runs alone.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from si_jax.attacks.rays import average_distance
from si_jax.attacks.registry import SCREENS, SEARCHES, SearchAttack, Stage
from si_jax.evaluation.network import Program
from si_jax.evaluation.packing import CompiledSearch, compile_search, run_search
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.state import Arrays, Saved, Work
from si_jax.runtime import profiling
from si_jax.runtime.progress import GRADIENT, Part, Progress, unseen
from si_jax.threat import Threat

# The public implementation that the protocols follow.
REFERENCE = 'fra31/auto-attack a392200'


class Cascade(NamedTuple):
    """What all stages need.

    Attributes:
        program: The classifier with its data.
        logits: [N, K], of the clean images.
        threat: The ball.
        saved: What is finished already.
        keep: Whether the adversarial images are wanted.
        bar: Is told of the forward passes, roughly.
    """

    program: Program
    logits: np.ndarray
    threat: Threat
    saved: Saved
    keep: bool
    bar: Progress


def runs(stage: Stage, classes: int) -> int:
    """How many searches a stage makes one after another: one for each restart, and for each target in it."""
    return stage.restarts * (min(stage.targets, classes - 1) if _targeted(stage, classes) else 1)


def cost(stage: Stage, classes: int) -> int:
    """The forward passes that a run makes of an image, at most and roughly."""
    row = SEARCHES[stage.attack]
    queries = row.make(classes, 0, 1).iterations * row.queries * stage.eot_samples
    return round(queries * (1 + (GRADIENT - 1) * row.gradients(classes)))


def run_stages(
    cascade: Cascade, name: str, stages: tuple[Stage, ...], *, individual: bool
) -> tuple[AttackRecord, np.ndarray, dict[str, float]]:
    """Runs the stages of an attack on the correctly classified images.

    Args:
        cascade: What all stages need.
        name: The attack: a preset, or a search as its only stage.
        stages: Its stages.
        individual: Run each stage on all correctly classified images, not only on those that the ones before
            left; the flags of the attack are the same, those of the stages are more.

    Returns:
        The record, the adversarial images [N, H, W, C] (the original where it was not broken; empty unless
        they are kept), and the seconds that each stage took.
    """
    program = cascade.program
    clean = np.argmax(cascade.logits, axis=1) == program.labels
    correct, broken_by = clean.copy(), np.full(len(clean), -1, np.int8)
    queries, distances = np.zeros(len(clean), np.int64), np.zeros(len(clean))
    kept = program.images.copy() if cascade.keep else np.zeros((0, *program.images.shape[1:]))
    tables, largest, seconds = [], 0.0, {}
    for number, stage in enumerate(stages):
        began = time.perf_counter()
        if len(stages) > 1:
            cascade.bar.set_postfix(attack=f'{name}: {stage.attack}')
        done = _run_stage(cascade, f'{name}-{number}', stage, clean if individual else correct)
        new = correct & done.broken
        broken_by[new], correct = number, correct & ~done.broken
        queries += done.queries
        distances, largest = done.distances, max(largest, done.largest)
        if cascade.keep:
            kept[new] = done.images[new]
        after = clean & ~done.broken if individual else correct
        tables.append(_table(stage, done, after, cascade.logits.shape[1]))
        seconds[stage.attack] = time.perf_counter() - began
    single = SEARCHES.get(name)
    record = AttackRecord(
        runs=correct[None],
        steps=tables[0]['iterations'] if single else None,
        step_size=None,
        eot_samples=stages[0].eot_samples,
        max_perturbation=largest,
        stages=tuple(tables),
        protocol=_protocol(name, stages, cascade.logits.shape[1], individual),
        broken_by=broken_by,
        queries=queries,
        distances=distances if single and single.measures_distance else None,
    )
    return record, kept, seconds


class _Done(NamedTuple):
    """What a stage did; the arrays are for all N images, whether attacked or not."""

    attacked: int
    broken: np.ndarray
    images: np.ndarray
    queries: np.ndarray
    distances: np.ndarray
    forward_passes: int
    refused: int
    largest: float


def _run_stage(cascade: Cascade, unit: str, stage: Stage, attacked: np.ndarray) -> _Done:
    program, row = cascade.program, SEARCHES[stage.attack]
    classes = cascade.logits.shape[1]
    count = len(attacked)
    targets = np.zeros((0, count), np.int32)
    if _targeted(stage, classes):
        # Of equal logits the class with the lower number comes first.
        ranks = np.argsort(-cascade.logits, axis=1, kind='stable')[:, 1 : stage.targets + 1]
        targets = ranks.T.astype(np.int32)

    alive, queries, distances = attacked.copy(), np.zeros(count, np.int64), np.zeros(count)
    images = np.zeros_like(program.images) if cascade.keep else np.zeros((0,))
    forward_passes, refused, largest, each = 0, 0, 0.0, cost(stage, classes)

    seen = program.attacked(row.calibrated)

    # Restarts but the first may be searches of their own, but are all alike.
    @functools.cache
    def compiled(again: bool) -> CompiledSearch:
        search = row.make(classes, int(again), stage.eot_samples)
        return compile_search(search, row.part, seen.apply, cascade.threat, program.key_impl, program.devices)

    for run in range(runs(stage, classes)):
        restart, target = divmod(run, max(len(targets), 1))
        keys = program.keys(run, stage.attack)
        aims = targets[target] if len(targets) else np.zeros(count, np.int32)
        groups = program.groups(np.flatnonzero(alive))
        cascade.bar.skip(each * (count - sum(map(len, groups))))
        make = functools.partial(compiled, restart > 0)
        search = functools.partial(_search, cascade, stage.attack, row, make, seen.shared)
        for rows in groups[:1]:
            profiling.rehearse(functools.partial(search, rows[: program.chunk], aims, keys, unseen()))
        work = [
            Work(
                f'{unit}-{run}-{number}',
                each * len(rows),
                functools.partial(search, rows, aims, keys),
            )
            for number, rows in enumerate(groups)
        ]
        for rows, arrays in zip(groups, cascade.saved.remember_all(work, cascade.bar), strict=True):
            broken = rows[arrays['broken']]
            alive[broken] = False
            queries[rows] += arrays['queries']
            distances[rows] = arrays['distances']
            forward_passes += int(arrays['forward_passes'])
            refused += int(arrays['refused'])
            largest = max(largest, float(arrays['largest']))
            if cascade.keep:
                images[broken] = arrays['images']
    broken = attacked & ~alive
    return _Done(int(attacked.sum()), broken, images, queries, distances, forward_passes, refused, largest)


def _search(
    cascade: Cascade,
    source: str,
    row: SearchAttack,
    compiled: Callable[[], CompiledSearch],
    shared: Any,
    rows: np.ndarray,
    targets: np.ndarray,
    keys: np.ndarray,
    told: Part,
) -> Arrays:
    """One search on some rows: a unit of work."""
    program, largest = cascade.program, 0.0

    def confirm(some: np.ndarray, found: np.ndarray) -> np.ndarray:
        nonlocal largest
        chosen = rows[some]
        correct, distance = program.confirm(chosen, found, keys[chosen], cascade.threat, source)
        largest = max(largest, distance)
        return ~correct

    problem = program.images[rows], program.labels[rows], keys[rows], targets[rows]
    outcome = run_search(
        compiled(), shared, problem, confirm, program.sizes, final=row.measures_distance, on_part=told.to
    )
    final = outcome.final
    return {
        'broken': outcome.broken,
        'images': outcome.images[: len(outcome.images) * cascade.keep],
        # An attack that measures distances goes on after its first success.
        'queries': outcome.queries if final is None else final.queries,
        'forward_passes': outcome.queries.sum(),
        'distances': np.zeros(len(rows)) if final is None else final.distance.astype(np.float64),
        'refused': np.int64(outcome.refused),
        'largest': np.float64(largest),
    }


def _targeted(stage: Stage, classes: int) -> bool:
    return SEARCHES[stage.attack].make(classes, 0, 1).targeted


def _table(stage: Stage, done: _Done, correct: np.ndarray, classes: int) -> dict[str, Any]:
    """The stage in the result, in JSON's types."""
    row = SEARCHES[stage.attack]
    forward = done.forward_passes
    table: dict[str, Any] = {
        'attack': stage.attack,
        'accuracy': float(np.mean(correct)),
        'attacked': done.attacked,
        'broken': int(done.broken.sum()),
        'refused': done.refused,
        'iterations': _iterations(stage, classes),
        'runs': runs(stage, classes),
        'eot_samples': stage.eot_samples,
        'forward_passes': forward,
        'backward_passes': round(forward * row.gradients(classes)),
    }
    if row.black_box and done.broken.any():
        spent = done.queries[done.broken]
        table |= {'mean_queries': float(np.mean(spent)), 'median_queries': float(np.median(spent))}
    if row.measures_distance:
        # Images that are misclassified without any attack count as 0.
        table['average_distance'] = average_distance(done.distances)
    return table


def _iterations(stage: Stage, classes: int) -> int:
    """The iterations of one run: steps, where an attack makes steps, or queries."""
    search = SEARCHES[stage.attack].make(classes, 0, 1)
    return search.iterations - stage.attack.startswith(('apgd', 'pgd'))  # whose last one only evaluates


def _protocol(name: str, stages: tuple[Stage, ...], classes: int, individual: bool) -> dict[str, Any]:
    """The stamp by which a reader knows what ran."""
    return {
        'name': name,
        'cascade': len(stages) > 1 and not individual,
        'stages': [
            {
                'attack': stage.attack,
                'iterations': _iterations(stage, classes),
                'restarts': stage.restarts,
                'targets': runs(stage, classes) // stage.restarts if _targeted(stage, classes) else 0,
                'eot_samples': stage.eot_samples,
            }
            for stage in stages
        ],
        'follows': REFERENCE if name.startswith('autoattack') else None,
        **({'screen': SCREENS[name]} if name in SCREENS else {}),
    }
