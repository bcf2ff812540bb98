"""Adversarial images of a network: those that an evaluation kept, or made anew.

`evaluate.py --save_images` leaves them beside a result. Where it did not, PGD makes some from the checkpoint,
and the page says so.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.pixels import Pixels
from si_jax.evaluation.result import data_digest
from si_jax.evaluation.table import settings_of
from si_jax.reports.collect import Evaluated, Network
from si_jax.storage import npz
from si_jax.zoo.load import LoadedModel

STEPS = 20  # of the attack that is made anew


class Shown(NamedTuple):
    """The test images that the page shows: the rows `chosen` of a test set."""

    dataset: str
    images: Pixels  # [N, H, W, C], all of the test set
    labels: np.ndarray  # [N]
    chosen: np.ndarray  # [M], positions in both
    pixels: np.ndarray  # [M, H, W, C], the images there, in [0, 1]
    classes: tuple[str, ...]  # their names; () if they have none


class Images(NamedTuple):
    """Adversarial images of the chosen rows: where from, whether each held, if that is known, and of what."""

    adversarial: np.ndarray
    source: str
    held: np.ndarray | None
    result: Evaluated | None = None  # that they were kept with


def saved(network: Network, shown: Shown, problems: list[str]) -> Images | None:
    """The images of the strongest attack whose images lie beside a result; None if there are none."""
    for result in network.results:
        path = result.path.with_name(f'{result.path.stem}_images.npz')
        if result.dataset != shown.dataset or not result.about['attacks'] or not path.exists():
            continue
        try:
            return _read(result, path, shown)
        except (OSError, ValueError) as error:
            problems.append(f'{path} is not shown: {error}')
    return None


def _read(result: Evaluated, path: Path, shown: Shown) -> Images:
    """Raises InputError if the file holds the images of something else."""
    images, labels, chosen = shown.images, shown.labels, shown.chosen
    count, attacks = result.about['dataset']['examples'], result.about['attacks']
    digest = result.about['dataset'].get('digest')
    if count > len(images) or digest not in (None, data_digest(images.at(slice(count)), labels[:count])):
        raise InputError(
            'the result was measured on other images than the data set here has (SHA-256): give --data_dir'
        )
    if result.flags and not np.array_equal(result.flags.indices, np.arange(count)):
        raise InputError('the result is of chosen images, and not of the first ones of the test set')
    name = min(attacks, key=lambda one: attacks[one]['accuracy'])
    found = npz.read(path, [name])[name]
    if found.shape != (count, *images.shape[1:]):
        raise InputError(
            f'its images of {name} are {found.shape}, the data set has {(count, *images.shape[1:])}: '
            'evaluate again with --save_images'
        )
    if not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found[chosen]).all():
        raise InputError(f'its images of {name} are no finite numbers: evaluate again with --save_images')
    steps = settings_of(attacks[name])['steps']
    held = result.flags.correct[name][chosen] if result.flags else None
    return Images(
        np.asarray(found[chosen], np.float32),
        f'adversarial images of {name}{f" ({steps} steps)" if steps else ""}, saved with {result.path}',
        held,
        result,
    )


def anew(network: Network, model: LoadedModel, shown: Shown, problems: list[str]) -> Images | None:
    """The images that PGD makes of the chosen rows, None if it cannot."""
    threat = model.config.threat
    chosen = shown.chosen
    try:
        result = evaluate(
            model, shown.pixels, shown.labels[chosen], attacks='pgd', eps=threat.eps, norm=threat.norm,
            steps=STEPS, indices=chosen, return_images=True,
        )  # fmt: skip
    except InputError as error:
        problems.append(f'{network.folder}: no adversarial images could be made: {error}')
        return None
    assert result.images is not None
    return Images(
        result.images['pgd'],
        f'adversarial images of pgd ({STEPS} steps, {threat.norm.capitalize()}, eps = {threat.eps:.6g}), '
        f'made for this page from the checkpoint of step {model.step}; evaluate.py --save_images keeps those '
        'of a result',
        result.correct['pgd'],
    )
