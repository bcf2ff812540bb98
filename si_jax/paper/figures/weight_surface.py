"""Fig. 4: the adversarial loss when the weights move along a random direction.

The attack is made anew for every set of weights. The direction is filter-normalised (Li et al., 2018,
repository tomgoldstein/loss-landscape): each filter of it is as long as the filter of the weights that it is
added to, and parameters with one axis (biases, batch normalisation) stay. Wu et al. (2020), AWP, compare
defenses so. A loss depends on the scale of the logits, which SI moves: the accuracy does not.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure as Picture

from si_jax import attacks, losses
from si_jax.errors import InputError
from si_jax.evaluation.settings import check_count
from si_jax.paper.figures import style
from si_jax.paper.figures.inputs import Network, Subject, on_all_devices
from si_jax.runtime.progress import Progress, progress
from si_jax.threat import Threat


def measure(
    on: Subject, *, points: int = 21, steps: int = 10, directions: int = 3, seed: int = 0
) -> dict[str, Any]:
    """rho(d), the mean cross-entropy after PGD on the network with weights w + d u, and the accuracy there.

    Running statistics of batch normalisation are those of w.

    Args:
        points: Values of d, evenly spaced in [-1, 1]; odd.
        steps: Of PGD, of eps / 4; its last iterate counts.
        directions: Random directions u.
        seed: Of directions and random starts, which all networks and weights share.
    """
    if check_count('points', points, least=3) % 2 == 0:
        raise InputError(f'points={points} must be odd, so that the weights themselves are one of them')
    check_count('directions', directions)
    check_count('steps', steps)
    distances = np.linspace(-1, 1, points)
    with progress(points * directions * len(on.networks), 'figure 4', 'point') as bar:
        surfaces = [
            _of_network(network, on, distances, steps, directions, seed, bar) for network in on.networks
        ]
    return {'seed': seed, 'steps': steps, 'distances': distances, 'surfaces': surfaces}


@jax.jit
def filter_normalised(key: jax.Array, params: Any) -> Any:
    """A random direction in which each filter has the norm of the filter [..., j] of the parameters.

    Args:
        key: A typed PRNG key.
        params: A tree of kernels whose last axis counts filters; leaves with one axis get zeros.
    """
    leaves, tree = jax.tree.flatten(params)

    def direction(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        noise, axes = jax.random.normal(key, leaf.shape, leaf.dtype), tuple(range(leaf.ndim - 1))
        length = lambda x: jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True))  # noqa: E731
        return noise * length(leaf) / jnp.maximum(length(noise), 1e-12)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [direction(*pair) for pair in zip(keys, leaves, strict=True)])


def compile_adversarial(module: Any, threat: Threat, steps: int) -> Any:
    """(variables, images, labels, keys) -> (cross-entropy [N], correct [N]) after PGD, steps of eps / 4."""

    def adversarial(variables: Any, images: jax.Array, labels: jax.Array, keys: jax.Array) -> Any:
        ascent = attacks.run(
            attacks.ATTACKS['pgd'],
            lambda x, _: module.apply(variables, x),
            images,
            labels,
            keys,
            threat=threat,
            steps=steps,
            step_size=threat.eps / 4,
        )
        logits = module.apply(variables, ascent.last).logits
        return losses.cross_entropy(logits, labels), jnp.argmax(logits, axis=1) == labels

    return on_all_devices(adversarial)


def _of_network(
    network: Network,
    on: Subject,
    distances: np.ndarray,
    steps: int,
    directions: int,
    seed: int,
    bar: Progress,
) -> dict[str, Any]:
    adversarial = compile_adversarial(network.model.module, on.threat, steps)
    # The keys of evaluation, so that the middle of the surface is what evaluate.py measures.
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), 0))(
        np.arange(len(on.images), dtype=np.uint32)
    )
    variables, labels = network.model.variables, on.labels.astype(np.int32)

    def at(u: Any, d: float) -> tuple[float, float]:
        params = jax.tree.map(lambda w, step: w + np.float32(d) * step, variables['params'], u)
        loss, correct = adversarial(variables | {'params': params}, on.images, labels, keys)
        return float(np.mean(loss, dtype=np.float64)), float(np.mean(correct))

    middle = at(jax.tree.map(np.zeros_like, variables['params']), 0.0)
    values = np.empty((directions, len(distances), 2))
    for number in range(directions):
        key = jax.random.fold_in(jax.random.key(seed), number)
        u = filter_normalised(key, variables['params'])
        for i, d in enumerate(distances):
            # The weights themselves are the same in every direction.
            values[number, i] = middle if 2 * i + 1 == len(distances) else at(u, d)
            bar.update()
    return {'label': network.label, 'loss': values[..., 0], 'accuracy': values[..., 1]}


def draw(numbers: dict[str, Any]) -> Picture:
    """Rise of the loss, loss and accuracy over d: means over the directions, with their range."""
    d, surfaces = numbers['distances'], numbers['surfaces']
    directions, middle = len(surfaces[0]['loss']), len(d) // 2
    along = f'{directions} random filter-normalised weight direction{"s" * (directions > 1)}'
    title = f'Adversarial loss along {along}'
    title += f', PGD-{numbers["steps"]} made anew at each point'
    picture = style.new(11, 4, title, style.measured_on(numbers))
    axes = picture.subplots(1, 3)
    for number, surface in enumerate(surfaces):
        loss = np.asarray(surface['loss'])
        rows = (loss - loss[:, middle : middle + 1], loss, 100 * np.asarray(surface['accuracy']))
        for axis, values in zip(axes, rows, strict=True):
            marker = style.look(number).marker
            style.band(axis, d, values, number, marker=marker, markersize=3.5, label=surface['label'])
    titles = ('rise of the cross-entropy (nats)', 'cross-entropy (nats)', 'accuracy under PGD (%)')
    for axis, title in zip(axes, titles, strict=True):
        style.finish(axis, title, 'distance d along the direction')
    axes[2].set_ylim(0, 100)
    axes[0].legend(fontsize=8, loc='upper center')
    return picture
