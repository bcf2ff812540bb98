"""Fig. 5: how the cosines between features and weights are distributed on adversarial images.

The SI regulariser raises the cosine of the true class. What decides is its lead over the other classes, so
these are shown too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Picture

from si_jax.evaluation.settings import check_count
from si_jax.outputs import cosine
from si_jax.paper.figures import style
from si_jax.paper.figures.inputs import Network, Subject, on_all_devices

TITLES = {
    'true': r'true class, $\cos\,\theta_y$',
    'other': r'highest other class, $\cos\,\theta_k$ with $k \neq y$',
    'lead': 'true class less highest other',
}

ROOM = 1.3  # the height of a panel above that of its bars: the legend stands there


def measure(on: Subject, *, points: int = 40, steps: int = 10, seed: int = 0) -> dict[str, Any]:
    """Histograms of cosines on the last iterates of PGD.

    Args:
        points: Bins of [-1, 1]; the lead has as many of [-2, 2].
        steps: Of PGD on the cross-entropy, of eps / 4.
        seed: Of the random starts.

    Raises:
        InputError: A network has no features.
    """
    check_count('points', points)
    edges = {'true': np.linspace(-1, 1, points + 1), 'other': np.linspace(-1, 1, points + 1)}
    edges['lead'] = 2 * edges['true']
    histograms = [_of_network(network, on, edges, steps, seed) for network in on.networks]
    return {'seed': seed, 'steps': steps, 'edges': edges, 'histograms': histograms}


def true_and_other(cosines: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """From cosines [N, K]: that of the true class, the highest other one and their difference, [N] each."""
    labelled = np.arange(cosines.shape[1]) == labels[:, None]
    true, other = cosines[labelled], np.where(labelled, -np.inf, cosines).max(axis=1)
    return {'true': true, 'other': other, 'lead': true - other}


def _of_network(
    network: Network, on: Subject, edges: dict[str, np.ndarray], steps: int, seed: int
) -> dict[str, Any]:
    result = on.evaluate(network.model, 'pgd', steps=steps, seed=seed, return_images=True, progress=True)
    assert result.images is not None
    module: Any = network.model.module

    def both(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = module.apply(variables, images)
        return cosine(outputs), jnp.argmax(outputs.logits, axis=1)

    cosines, predicted = on_all_devices(both)(network.model.variables, result.images['pgd'])
    values = true_and_other(cosines, on.labels)
    return {
        'label': network.label,
        'accuracy_under_pgd': result.accuracy['pgd'],
        # How far cosines speak for the prediction, which the norms of the weights and the bias decide too.
        'decision_agreement': float(np.mean(predicted == np.argmax(cosines, axis=1))),
        # Clipped, as rounding may carry a cosine beyond 1.
        'counts': {
            name: np.histogram(np.clip(value, *edges[name][[0, -1]]), edges[name])[0]
            for name, value in values.items()
        },
        'mean': {name: float(np.mean(value)) for name, value in values.items()},
        'quantiles_5_50_95': {name: np.quantile(value, (0.05, 0.5, 0.95)) for name, value in values.items()},
    }


def draw(numbers: dict[str, Any]) -> Picture:
    """A panel for each of the three: outlines with hatching, and the means as vertical lines."""
    title = f'Cosines between features and weights after PGD-{numbers["steps"]}'
    picture = style.new(11, 3.9, title, style.measured_on(numbers))
    axes = picture.subplots(1, 3)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        edges = np.asarray(numbers['edges'][name])
        counts = np.asarray([histogram['counts'][name] for histogram in numbers['histograms']])
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
        for number, (histogram, share) in enumerate(zip(numbers['histograms'], shares, strict=True)):
            look, mean = style.look(number), histogram['mean'][name]
            paint = {'facecolor': to_rgba(look.color, 0.2), 'edgecolor': look.color, 'hatch': look.hatch}
            axis.stairs(share, edges, fill=True, linewidth=0, **paint)
            label = f'{histogram["label"]}, mean {mean:.2f}'
            axis.stairs(share, edges, color=look.color, linewidth=1.5, linestyle=look.line, label=label)
            axis.axvline(mean, ymax=1 / ROOM, color=look.color, linestyle=look.line, linewidth=1)
        filled = np.flatnonzero(counts.sum(axis=0))
        width = edges[1] - edges[0]
        axis.set_xlim(edges[filled[0]] - width, edges[filled[-1] + 1] + width)
        axis.set_ylim(0, ROOM * shares.max())
        style.finish(axis, title, 'cosine' if name != 'lead' else 'difference of cosines')
        axis.legend(fontsize=8, loc='upper left')
    axes[0].set_ylabel('% of the images')
    return picture
