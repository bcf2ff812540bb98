"""Fig. 3: the cross-entropy around test images, along an attack's perturbation and a random one.

A smooth surface says that the gradient leads where the loss is high; one that is rough or flat with a cliff
says that it does not. How rough is a number too: the largest second difference along either axis.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure as Picture

from si_jax import losses
from si_jax.evaluation.settings import check_count
from si_jax.paper.figures import style
from si_jax.paper.figures.inputs import Network, Subject, on_all_devices
from si_jax.threat import Threat
from si_jax.zoo.load import LoadedModel


def measure(on: Subject, *, points: int = 41, steps: int = 10, seed: int = 0) -> dict[str, Any]:
    """CE(g(clip(x + d1 v + d2 r)), y) for d1 and d2 in [-1, 1] around each image.

    v is what PGD adds to the image; r has the length eps and a random direction (random signs for Linf), the
    same for all networks.

    Args:
        points: Of each axis.
        steps: Of PGD, of eps / 4.
        seed: Of random starts and directions.
    """
    check_count('points', points, least=3)
    grid = np.linspace(-1, 1, points, dtype=np.float32)
    directions = random_directions(on.threat, on.images, seed)
    surfaces = [_of_network(network, on, directions, grid, steps, seed) for network in on.networks]
    return {'seed': seed, 'steps': steps, 'grid': grid, 'labels': on.labels, 'surfaces': surfaces}


def random_directions(threat: Threat, images: np.ndarray, seed: int) -> np.ndarray:
    """A random perturbation of length eps for each image, [N, H, W, C], from the seed and its number."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(np.arange(len(images)))
    draw = jax.vmap(lambda key: threat.ball.corner(key, images.shape[1:], np.float32, threat.eps))
    return np.asarray(draw(keys))


def _of_network(
    network: Network, on: Subject, directions: np.ndarray, grid: np.ndarray, steps: int, seed: int
) -> dict[str, Any]:
    result = on.evaluate(network.model, 'pgd', steps=steps, seed=seed, return_images=True, progress=True)
    assert result.images is not None
    loss = surfaces(network.model, on, result.images['pgd'] - on.images, directions, grid)
    roughness = second_difference(loss)
    return {
        'label': network.label,
        'correct': result.clean,
        'correct_under_pgd': result.correct['pgd'],
        'loss': loss,
        'second_difference': roughness,
        'relative_second_difference': roughness / np.maximum(np.ptp(loss, axis=(1, 2)), 1e-12),
    }


def surfaces(model: LoadedModel, on: Subject, v: np.ndarray, r: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The losses [N, P, P] at clip(x + grid[i] v + grid[j] r), for images x and directions [N, H, W, C]."""
    module: Any = model.module

    def loss(shared: Any, image: jax.Array, d1: jax.Array, d2: jax.Array) -> jax.Array:
        variables, (x, labels, v, r) = shared
        step = d1[:, None, None, None] * v[image] + d2[:, None, None, None] * r[image]
        outputs = module.apply(variables, jnp.clip(x[image] + step, 0, 1))
        return losses.cross_entropy(outputs.logits, labels[image])

    count, points = len(on.images), len(grid)
    index, d1, d2 = (part.ravel() for part in np.meshgrid(np.arange(count), grid, grid, indexing='ij'))
    rows = index.astype(np.int32), d1, d2
    shared = model.variables, (on.images, on.labels.astype(np.int32), v, r)
    return on_all_devices(loss)(shared, *rows).reshape(count, points, points)


def second_difference(surface: np.ndarray) -> np.ndarray:
    """The largest |f(d - h) - 2 f(d) + f(d + h)| along either axis of surfaces [N, P, P], [N]."""
    along = [np.abs(np.diff(surface, n=2, axis=axis)).max(axis=(1, 2)) for axis in (1, 2)]
    return np.maximum(*along)


def draw(numbers: dict[str, Any]) -> Picture:
    """A contour map for each image and network, from white, the lowest loss on the map, to black."""
    surfaces, grid = numbers['surfaces'], numbers['grid']
    count, columns = len(numbers['labels']), 5
    rows = -(-count // columns)
    title = (
        f'Cross-entropy around test images, along the perturbation of PGD-{numbers["steps"]} and at random'
    )
    picture = style.new(10.5, 0.9 + len(surfaces) * (0.6 + 2.1 * rows), title, style.measured_on(numbers))
    parts = picture.subfigures(len(surfaces), 1, squeeze=False)[:, 0]
    for part, surface in zip(parts, surfaces, strict=True):
        part.suptitle(
            f'{surface["label"]}: second differences up to {max(surface["second_difference"]):.2g} nats, '
            f'{100 * max(surface["relative_second_difference"]):.1f} % of the range on a map. '
            'Circle: the image; triangle: what PGD made of it',
            fontsize=9,
        )
        axes = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for number, axis in enumerate(axes.flat):
            if number >= count:
                axis.set_visible(False)
                continue
            _draw_map(axis, grid, np.asarray(surface['loss'][number]))
            fooled = '' if surface['correct_under_pgd'][number] else ', fooled'
            low, high = np.min(surface['loss'][number]), np.max(surface['loss'][number])
            axis.set_title(
                f'image {number}, class {numbers["labels"][number]}{fooled}\n{low:.2g} to {high:.2g} nats',
                fontsize=8,
            )
        part.supxlabel('multiple of the perturbation v of PGD', fontsize=8)
        part.supylabel('multiple of the random r', fontsize=8)
    return picture


def _draw_map(axis: Any, grid: list[float], loss: np.ndarray) -> None:
    levels = np.linspace(loss.min(), max(loss.max(), loss.min() + 1e-9), 11)
    # The first axis of the surface is v, drawn to the right.
    axis.contourf(grid, grid, loss.T, levels=levels, cmap='Greys')
    axis.contour(grid, grid, loss.T, levels=levels, colors='#0b3c8c', linewidths=0.6)
    axis.plot(0, 0, 'o', color='#e08a00', markersize=5, markeredgecolor='white')
    axis.plot(1, 0, '^', color='#e08a00', markersize=7, markeredgecolor='white', clip_on=False)
    axis.set_aspect('equal')
    axis.tick_params(labelsize=7)
