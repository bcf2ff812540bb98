"""How many draws of a random classifier the attacks average over: `eot_samples='auto'`.

The gradient of one draw is a random direction around the one that lowers the accuracy over all draws. Two
means of m draws each, with no draw in common, tell how far m draws are from it: the cosine between them. The
number of draws is doubled until that cosine is high enough.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import starting_points, value_function
from si_jax.evaluation.network import Network
from si_jax.evaluation.state import remember
from si_jax.runtime.devices import compile_rows
from si_jax.threat import IMAGE

Array = jax.Array

ENOUGH, MOST = 0.9, 64  # the cosine between the two halves, and the draws beyond which nobody looks
IMAGES = 16  # correctly classified ones that are looked at
# Whose gradients: the cross-entropy's, and the margin's, which does not vanish on sure decisions.
LOOKED_AT = ('pgd', 'cw')
KEYS = 'draws for eot_samples'


def sized(network: Network) -> dict[str, Any]:
    """The number of draws to average in each step, with what was measured.

    The gradients are those of the cross-entropy and of the margin, at the random starts of PGD for the first
    16 images that the vote classifies correctly (the first 16 of all if there is none). Of the two losses the
    smaller median over these images counts. An image without a gradient does not count; no cosine is 0.

    Returns:
        `eot_samples`; `cosine`, the median between the gradients of its halves; `images`, how many were
        looked at; and `enough`, what the cosine had to exceed.
    """
    rows = np.flatnonzero(network.clean)[:IMAGES]
    rows = rows if len(rows) else np.arange(min(IMAGES, len(network.clean)))

    def measure() -> dict[str, Any]:
        found = [_measure(network, rows, name) for name in LOOKED_AT]
        samples, cosine = max(found, key=lambda one: (one[0], -one[1]))
        return {'eot_samples': np.int64(samples), 'cosine': np.float64(cosine)}

    kept = remember('eot', measure)
    return {
        'eot_samples': int(kept['eot_samples']),
        'cosine': float(kept['cosine']),
        'images': len(rows),
        'enough': ENOUGH,
    }


def note(found: dict[str, Any]) -> str:
    """What was measured, for the reader of a result."""
    words = (
        f"eot_samples='auto' took {found['eot_samples']}: the mean gradients of its two halves have cosine "
        f'{found["cosine"]:.2f} (median over {found["images"]} images)'
    )
    if found['cosine'] > found['enough']:
        return words
    return (
        f'{words}, which is not above {found["enough"]}, and {MOST} is the most that is tried: the attacks '
        f'may be weak, and the accuracy too high. Give a larger number, such as eot_samples={4 * MOST}'
    )


def _measure(network: Network, rows: np.ndarray, name: str) -> tuple[int, float]:
    """The number of draws for the loss of an attack on these images, and the median cosine there."""
    row, (apply, shared) = ATTACKS[name], network.surrogate()

    def gradient(weights: Any, images: Array, labels: Array, start_keys: Array, keys: Array) -> Array:
        start = starting_points(row.start, network.request.threat, images, network.typed(start_keys))
        value = value_function(
            row.objective, row.score, lambda x, k: apply(weights, x, k), labels, None, network.typed(keys)
        )
        found = value(jnp.asarray(0), start)[1]
        return jnp.where(jnp.isfinite(found), found, 0)

    compiled = compile_rows(gradient, network.devices)
    arrays = network.images[rows], network.labels[rows], network.keys(0)[rows]

    def draw(number: int) -> np.ndarray:
        one = network.map(compiled, shared, (*arrays, network.keys(number, KEYS)[rows]))
        return np.asarray(one, np.float64)

    total, samples = draw(0), 1
    while True:
        other = sum(draw(number) for number in range(samples, 2 * samples))
        samples *= 2
        cosine = _median(total, np.asarray(other))
        if cosine > ENOUGH or samples >= MOST:
            return samples, cosine
        total = total + other


def _median(one: np.ndarray, other: np.ndarray) -> float:
    """The median cosine between gradients [M, H, W, C], of the images that have both; 0 if none has."""
    lengths = np.sqrt(np.sum(one**2, axis=IMAGE) * np.sum(other**2, axis=IMAGE))
    there = lengths > 0
    return float(np.median(np.sum(one * other, axis=IMAGE)[there] / lengths[there])) if there.any() else 0.0
