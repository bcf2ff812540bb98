"""The binarization test: an attack that is sound finds the adversarial examples that were put there.

For each image, the classifier's last layer is replaced by one of two classes, 'inside' and 'found', which
puts random points around the image inside and one point on the boundary of the ball outside. So every image
has an adversarial example for certain, and an attack that does not find it would not find another one
either. If random points find it too, the test says nothing.

Source: Zimmermann, Brendel, Tramer and Carlini (2022), "Increasing Confidence in Adversarial Robustness
Evaluations", NeurIPS. Decided here: half of the inner points are corners of a slightly smaller ball, so that
the outer point, a corner too, is no outlier among them; and the new logits have the gap that the old ones had
between their two largest, so that what the scale of the logits does to a loss stays as it was.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.pgd import Attack
from si_jax.auditing.traces import Follower, Settings
from si_jax.evaluation.network import Network
from si_jax.outputs import Outputs
from si_jax.runtime import devices
from si_jax.threat import Threat

Array = jax.Array

SHRINK = 0.95  # the radius of the inner points, as a multiple of eps
# The boundary between the classes: from the outermost inner point, on the way to the outer one.
CLOSENESS = 0.9
HARDNESS = 1e6  # the penalty on an inner point on the wrong side: no point may be


class Heads(NamedTuple):
    """A layer of two classes for each of M images: score = z . direction + offset, positive for 'found'.

    Attributes:
        usable: [M] bool, whether a plane has the inner points on one side and the outer point on the other.
        directions: [M, F].
        offsets: [M].
        random: [M], the share of further random points that are 'found'.
    """

    usable: np.ndarray
    directions: np.ndarray
    offsets: np.ndarray
    random: np.ndarray


def points(
    rng: np.random.Generator, image: np.ndarray, threat: Threat, radius: float, count: int, *, corners: bool
) -> np.ndarray:
    """Random points around an image [H, W, C], within [0, 1]: [count, H, W, C].

    They lie at most at this radius, or, as corners, at this distance (Linf: in every pixel).
    """
    delta = threat.ball.sample(rng, (count, *image.shape), radius, corners=corners)
    return np.clip(image + delta, 0, 1).astype(image.dtype)


def separate(inner: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The plane (direction [F], offset) between inner points [M, F] and one outer point [F].

    Of greatest margin among features of unit variance; moved towards the outer point (`CLOSENESS`). None if
    there is no such plane.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import SVC

    features = np.concatenate([inner, outer[None]]).astype(np.float64)
    mean, sd = features.mean(axis=0), features.std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    if not np.ptp(features, axis=0).any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # whether it separates is checked below
        machine = SVC(kernel='linear', C=HARDNESS, max_iter=100_000).fit(
            (features - mean) / sd, np.arange(len(features)) == len(inner)
        )
    direction = machine.coef_[0] / sd
    scores = features @ direction
    inside, outside = scores[:-1].max(), scores[-1]
    # Float32 scores are off by about 1e-6 of their size.
    if not outside - inside > 1e-4 * np.abs(scores - scores.mean()).max():
        return None
    return direction, -(inside + CLOSENESS * (outside - inside))


def heads(network: Network, rows: np.ndarray, count: int) -> Heads:
    """Trains the layers of these rows [M].

    Each has `count` inner points; as many further points measure what random search finds.
    """

    def read(weights: Any, images: Array, keys: Array) -> Array:
        return _last(network.apply(weights, images, network.typed(keys)))

    compiled = devices.compile_rows(read, network.devices)
    keys, threat, half = network.keys(0), network.request.threat, count // 2
    usable, random = np.zeros(len(rows), bool), np.zeros(len(rows))
    directions, offsets = np.zeros((len(rows), _last(network.outputs).shape[1])), np.zeros(len(rows))
    top = np.sort(network.clean_logits[rows], axis=1)
    gaps = (top[:, -1] - top[:, -2]).astype(np.float64)  # those of the new logits, too
    for i, row in enumerate(rows):
        image, inside = network.images[row], SHRINK * threat.eps
        rng = np.random.default_rng((network.request.seed, int(network.request.indices[row])))
        cloud = np.concatenate(
            [
                image[None],
                points(rng, image, threat, inside, count - half - 1, corners=False),
                points(rng, image, threat, inside, half, corners=True),
                points(rng, image, threat, threat.eps, 1, corners=True),
                points(rng, image, threat, threat.eps, count - half, corners=False),
                points(rng, image, threat, threat.eps, half, corners=True),
            ]
        )
        of_each = np.repeat(keys[row][None], len(cloud), axis=0)
        z = network.map(compiled, network.weights, (cloud, of_each), smaller=True)
        plane = separate(z[:count], z[count])
        if plane is None or gaps[i] <= 0:
            continue
        direction, offset = plane
        scores = z.astype(np.float64) @ direction + offset
        scale = gaps[i] / -scores[0]
        usable[i], directions[i], offsets[i] = True, scale * direction, scale * offset
        random[i] = np.mean(scores[count + 1 :] > 0)
    return Heads(usable, directions, offsets, random)


def attack(network: Network, row: Attack, found: Heads, settings: Settings, rows: np.ndarray) -> np.ndarray:
    """Whether the attack finds a point of the class 'found' [M], with its final iterate in any of its runs.

    `row` is the attack for two classes, and `found` the layers of the images of these rows [M].
    """

    def binary(weights: Any, images: Array, keys: Array, head: tuple[Array, Array]) -> Outputs:
        directions, offsets = head
        score = jnp.sum(_last(network.apply(weights, images, keys)) * directions, axis=1) + offsets
        return Outputs(jnp.stack([-score / 2, score / 2], axis=1))

    follower = Follower(network, row, settings.steps, binary)
    dtype, success = network.images.dtype, np.zeros(len(rows), bool)
    head = found.directions.astype(dtype), found.offsets.astype(dtype)
    inside = np.zeros(len(rows), np.int32)  # the label of every image
    threat, indices = Threat(network.request.threat.norm, settings.eps), network.request.indices[rows]
    for restart in range(network.request.restarts):
        done = follower.run(settings, rows, restart, inside, head)
        threat.audit(done.last, network.images[rows], source='the attack', indices=indices)
        success |= done.fooled[:, -1]
    return success


def _last(outputs: Outputs) -> Any:
    """What the layer that is replaced reads: the features, or the logits where there are none."""
    return outputs.logits if outputs.features is None else outputs.features
