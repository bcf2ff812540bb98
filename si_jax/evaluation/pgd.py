"""The PGD family in an evaluation: on all images, in restarts, and the final images count."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from si_jax import attacks as catalogue
from si_jax.attacks import rows as rows_of
from si_jax.attacks.pgd import Attack, Start, starting_points
from si_jax.evaluation.network import Program
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.state import Arrays, Saved, Work
from si_jax.runtime import profiling
from si_jax.runtime.devices import compile_rows, map_rows
from si_jax.runtime.progress import GRADIENT, Part, Progress, unseen
from si_jax.threat import Threat

Array = jax.Array

# Chunks of images in a profile.
REHEARSED = 3


def run(
    program: Program,
    name: str,
    attack: Attack,
    threat: Threat,
    restarts: int,
    steps: int,
    step_size: float,
    eot_samples: int,
    *,
    keep: bool,
    bar: Progress,
    saved: Saved,
    unit: str = '',
    starts: np.ndarray | None = None,
) -> tuple[AttackRecord, np.ndarray]:
    """Runs an attack of the PGD family on all images; its final images count.

    Args:
        program: The classifier with its data.
        name: Of the attack.
        attack: A row of `catalogue.ATTACKS`, or the user's own.
        threat: The ball.
        restarts: Number of runs.
        steps: Where the attack does not fix it.
        step_size: Likewise.
        eot_samples: Gradients averaged in each step.
        keep: Whether to return the adversarial images; an empty array is returned instead.
        bar: Is told of each image.
        saved: What is finished already.
        unit: What its parts are called on disk; the name if empty.
        starts: [N, H, W, C], where to start; None for the attack's own start.
    """
    target = program.attacked(attack.calibrated)

    def compiled(attack: Attack) -> Callable[..., Array]:
        def search(shared: Any, images: Array, labels: Array, keys: Array, start: Array) -> Array:
            ascent = catalogue.run(
                attack,
                lambda x, keys: target.apply(shared, x, keys),
                images,
                labels,
                jax.random.wrap_key_data(keys, impl=program.key_impl),
                threat=threat,
                steps=steps,
                step_size=step_size,
                eot_samples=eot_samples,
                start=start,
            )
            if attack.any_iterate:
                return rows_of.where(ascent.fooled, ascent.fooled_image, ascent.last)
            return ascent.last

        return compile_rows(search, program.devices)

    begin = _starting_points(attack.start, threat, program.key_impl, tuple(program.devices))
    searches = [compiled(attack.in_restart(number)) for number in range(1 if attack.odd is None else 2)]

    def attacked(rows: np.ndarray, restart: int, done: Part) -> Arrays:
        images, labels, keys = program.images[rows], program.labels[rows], program.keys(restart)[rows]
        # By way of the host, as the images came: arrays laid out otherwise would compile again.
        if starts is None:
            start = map_rows(begin, (), (images, keys), program.chunk, program.devices)
        else:
            start = starts[rows]
        found = map_rows(
            searches[restart % len(searches)],
            target.shared,
            (images, labels, keys, start),
            program.chunk,
            program.devices,
            done.to,
        )
        correct, largest = program.confirm(rows, found, keys, threat, name)
        return {'correct': correct, 'largest': np.float64(largest), 'images': found[: len(found) * keep]}

    steps = steps if attack.steps is None else attack.steps
    runs, largest, kept = restarts_of(
        program,
        unit or name,
        attacked,
        restarts,
        cost=GRADIENT * eot_samples * steps,
        keep=keep,
        bar=bar,
        saved=saved,
    )
    step_size = step_size if attack.step_size is None else attack.step_size * threat.eps
    return AttackRecord(runs, steps, step_size, eot_samples, largest), kept


def restarts_of(
    program: Program,
    name: str,
    attacked: Callable[[np.ndarray, int, Part], Arrays],
    count: int,
    *,
    cost: int,
    keep: bool,
    bar: Progress,
    saved: Saved,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Runs (rows, restart, progress) -> {correct, largest, images} on all images, `count` times.

    The progress counts `cost` for each image.

    Returns:
        The flags of all runs [count, N], the largest distance, and the images if they are kept: of the
        first run that fooled the classifier, else of the first.
    """
    runs: list[np.ndarray] = []
    largest = 0.0
    kept = np.zeros((0, *program.images.shape[1:]), program.images.dtype)
    some = np.arange(min(REHEARSED * program.chunk, len(program.images)))
    profiling.rehearse(lambda: attacked(some, 0, unseen()))
    for restart in range(count):
        work = [
            Work(
                f'{name}-{restart}-{number}',
                len(rows) * cost,
                functools.partial(attacked, rows, restart),
            )
            for number, rows in enumerate(program.groups(np.arange(len(program.images))))
        ]
        parts = saved.remember_all(work, bar)
        correct, images = (np.concatenate([one[key] for one in parts]) for key in ('correct', 'images'))
        largest = max(largest, *(float(one['largest']) for one in parts))
        if keep and not runs:
            kept = images
        elif keep:
            new = np.logical_and.reduce(runs) & ~correct
            kept[new] = images[new]
        runs.append(correct)
    return np.stack(runs), largest, kept


@functools.lru_cache(maxsize=16)
def _starting_points(
    start: Start, threat: Threat, key_impl: Any, devices: tuple[jax.Device, ...]
) -> Callable[..., Array]:
    """Compiles ((), images, keys) -> starts: once for all attacks, as it takes longer than they do."""

    def points(_: Any, images: Array, keys: Array) -> Array:
        return starting_points(start, threat, images, jax.random.wrap_key_data(keys, impl=key_impl))

    return compile_rows(points, list(devices))
