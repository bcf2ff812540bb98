"""What an evaluation will take, said before it begins."""

import math
import time

from tqdm import tqdm

from si_jax.evaluation.network import Network

LONG = 60.0  # seconds, from which on it is worth saying
FEWER = 1000  # images that are usual where all of them take too long


def forecast(network: Network, passes: int) -> str:
    """The cost of attacks that make at most so many forward passes of each image; '' if they are short.

    One chunk of images is classified once more, by a program that was compiled for the clean images.
    """
    few = slice(0, network.request.chunk)
    images, keys = network.images[few], network.keys(0)[few]
    began = time.perf_counter()
    network.logits(images, keys)
    return words(len(network.images), passes, (time.perf_counter() - began) / len(images))


def words(images: int, passes: int, seconds: float) -> str:
    """The same, where a forward pass takes so many seconds an image."""
    whole = seconds * passes * images
    if whole < LONG:
        return ''
    said = (
        f'attacks: {images:,} images x at most {passes:,} forward passes, about '
        f'{tqdm.format_interval(whole)} without compiling, less if many images are broken early'
    )
    if images > FEWER:
        said += (
            f'. {FEWER:,} images take about {tqdm.format_interval(whole * FEWER / images)} and give '
            f'accuracies to within {100 * 1.96 * math.sqrt(0.25 / FEWER):.0f} points: images[:{FEWER}], or '
            f'--num_examples={FEWER}'
        )
    return said
