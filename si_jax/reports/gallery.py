"""Test images before and after an attack, with what the network says of them."""

import base64
import io
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from si_jax import data
from si_jax.errors import InputError
from si_jax.evaluation.pixels import Pixels
from si_jax.reports.adversarial import Images, Shown, anew, saved
from si_jax.reports.classes import name_of
from si_jax.reports.collect import Evaluated, Network
from si_jax.runtime.progress import progress
from si_jax.zoo.load import LoadedModel, load_model


class Prediction(NamedTuple):
    """What a network predicts for an image: a class, and its softmax probability."""

    label: str
    confidence: float
    right: bool


class Shot(NamedTuple):
    """An image of the gallery."""

    image: int  # its number in the test set
    label: str  # its true class
    clean: str  # as a data URI
    adversarial: str  # likewise
    perturbation: str  # likewise, magnified around grey
    size: float  # the largest change of a pixel
    before: Prediction | None  # what the network says of the clean image; None without a checkpoint
    after: Prediction | None  # what it says of the adversarial one
    held: bool | None  # whether the adversarial image is classified correctly; None if that is not known


class Gallery(NamedTuple):
    """The images of a network."""

    number: int  # of the network
    label: str  # likewise
    source: str  # where the adversarial images come from
    factor: float  # by which perturbations are magnified
    shots: list[Shot]  # one an image


def galleries(
    networks: list[Network], dataset: str, count: int, data_dir: str | None, problems: list[str]
) -> list[Gallery]:
    """So many test images of a data set, the same for all networks: the first of each class, then the next.

    They are read from `data_dir`, or where the runs had them. `problems` gets why images cannot be shown.
    """
    networks = [one for one in networks if _is_on(one, dataset)]
    if not count or not networks or not dataset:
        return []
    # How many images the results have, so that each of them has the images that are shown.
    limits = [one.about['dataset']['examples'] for network in networks for one in network.results
              if one.dataset == dataset]  # fmt: skip
    try:
        test = _read(networks, dataset, data_dir)
        chosen = _choose(test.labels, min([len(test.labels), *limits]), count)
        images = Pixels(test.images, test.scale)
        shown = Shown(dataset, images, test.labels, chosen, images[chosen], test.classes)
    except (InputError, OSError) as error:
        problems.append(f'No images of {dataset}: {error}')
        return []
    found = []
    with progress(len(networks), f'images of {dataset}', 'network', passing=True) as bar:
        for network in networks:
            made = saved(network, shown, problems)
            model = _model(network, dataset, made and made.result, problems)
            if made is None and model is not None:
                made = anew(network, model, shown, problems)
            if made is not None:
                found.append(_gallery(network, model, shown, made))
            bar.update()
    return found


def _read(networks: list[Network], dataset: str, data_dir: str | None) -> data.Dataset:
    """The test split, as the first run on it that says where it lies had it."""
    sections = [one.run.config['data'] for one in networks if one.run]
    for section in sorted(sections, key=lambda one: not one['dir']):
        if section['name'] == dataset:
            return data.remembered(section, 'test', data_dir, lazy=True)
    return data.load(dataset, 'test', data_dir, lazy=True)


def _is_on(network: Network, dataset: str) -> bool:
    trained = network.run is not None and network.run.config['data']['name'] == dataset
    return trained or any(result.dataset == dataset for result in network.results)


def _choose(labels: np.ndarray, limit: int, count: int) -> np.ndarray:
    """The first image of each class, then the next images of all, in the order of their classes."""
    labels = labels[:limit]
    firsts = [int(np.argmax(labels == label)) for label in np.unique(labels)][:count]
    others = [i for i in range(limit) if i not in firsts][: count - len(firsts)]
    return np.asarray(firsts + others)


def _model(
    network: Network, dataset: str, shown: Evaluated | None, problems: list[str]
) -> LoadedModel | None:
    """The network at the checkpoint that was evaluated; None, and why, if it cannot be loaded.

    `shown` is the result whose images are shown, where there is one: then it is its checkpoint.
    """
    if network.run is None:
        return None
    results = [shown] if shown else [one for one in network.results if one.dataset == dataset]
    about = next((one.model for one in results if one.model.get('step') is not None), {})
    which: Any = about.get('step', 'best')
    weights = 'live' if about.get('weights') == 'live' else None
    if which == 'best' and not network.run.config['data'].get('validation'):
        which = 'last'
    try:
        return load_model(network.run.path, which, weights=weights)
    except (InputError, OSError, KeyError, AttributeError, TypeError) as error:
        problems.append(
            f'{network.run.path}: no predictions of this network in the gallery, its checkpoint cannot be '
            f'loaded ({error})'
        )
        return None


def _gallery(network: Network, model: LoadedModel | None, shown: Shown, made: Images) -> Gallery:
    images, labels = shown.pixels, shown.labels[shown.chosen]
    delta = made.adversarial - images
    factor = _round_down(0.5 / max(float(np.abs(delta).max()), 1e-6))
    before = _predict(model, images, labels, shown.classes)
    after = _predict(model, made.adversarial, labels, shown.classes)
    shots = []
    for i, index in enumerate(shown.chosen):
        predicted = after[i]
        known = None if made.held is None else bool(made.held[i])
        shots.append(
            Shot(
                image=int(index),
                label=name_of(shown.classes, int(labels[i])),
                clean=data_uri(images[i]),
                adversarial=data_uri(made.adversarial[i]),
                perturbation=data_uri(0.5 + factor * delta[i]),
                size=float(np.abs(delta[i]).max()),
                before=before[i],
                after=predicted,
                held=known if known is not None else predicted and predicted.right,
            )
        )
    return Gallery(network.number, network.label, made.source, factor, shots)


def _predict(
    model: LoadedModel | None, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> list[Prediction | None]:
    if model is None:
        return [None] * len(images)
    with jax.default_matmul_precision('highest'):
        shares = np.asarray(jax.nn.softmax(model(jnp.asarray(images, jnp.float32)).logits))
    return [
        Prediction(name_of(classes, int(row.argmax())), float(row.max()), int(row.argmax()) == label)
        for row, label in zip(shares, labels, strict=True)
    ]


def _round_down(factor: float) -> float:
    """The factor with two significant digits, so that it can be stated."""
    unit = 10.0 ** (math.floor(math.log10(factor)) - 1)
    return float(f'{math.floor(factor / unit + 0.01) * unit:.2g}')


def data_uri(image: np.ndarray) -> str:
    """An image [H, W, C] in [0, 1] as PNG in a data URI: in colour, or grey where it has not 3 channels."""
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(content, 'PNG', optimize=True)
    return f'data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}'
