"""Fig. 1: accuracy under PGD, calibrated PGD and SI-PGD against a factor on the logits.

A factor changes no prediction, so whatever it changes in a robust accuracy is the attack's doing. The paper
compares SI-PGD with PGD at the factor that training happened to leave. Two baselines that it leaves out are
drawn too: PGD at its own best factor, and PGD on logits scaled to a median gap of 2, which needs no search.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure as Picture

from si_jax import losses
from si_jax.errors import InputError
from si_jax.evaluation.classifier import with_logit_scale
from si_jax.evaluation.settings import check_count
from si_jax.paper.figures import style
from si_jax.paper.figures.inputs import Network, Subject, on_all_devices
from si_jax.runtime.progress import Progress, progress

TITLES = {'pgd': 'PGD', 'pgd-cal': 'calibrated PGD', 'sipgd': 'SI-PGD'}


def measure(on: Subject, *, points: int = 13, steps: int = 20, seed: int = 0) -> dict[str, Any]:
    """The accuracies of each network, a panel each; all factors and attacks share their random starts.

    Args:
        points: Number of factors, evenly spaced on a logarithmic axis from 1e-3 to 1e3.
        steps: Steps of each attack, of eps / 4.
        seed: Of the random starts.

    Raises:
        InputError: A value is wrong, or a network does not fit.
        AssertionError: On the CPU, what SI-PGD does depends on the factor: a fault of this library. On
            devices whose programs may round in different ways it is reported.
    """
    if check_count('points', points, least=3) % 2 == 0:
        raise InputError(f'points={points} must be odd, so that the factor 1 is one of them')
    factors = np.logspace(-3, 3, points)
    settings = {'steps': steps, 'seed': seed}
    with progress(points * len(on.networks), 'figure 1', 'factor') as bar:
        curves = [_curves(network, on, factors, settings, bar) for network in on.networks]
    return {'seed': seed, 'steps': steps, 'factors': factors, 'curves': curves}


def _curves(
    network: Network, on: Subject, factors: np.ndarray, settings: dict[str, Any], bar: Progress
) -> dict[str, Any]:
    module: Any = network.model.module
    vanishing = compile_vanishing(module)
    logits = on_all_devices(lambda variables, x: module.apply(variables, x).logits)
    natural = logits(network.model.variables, on.images)
    results, blind = [], []
    for factor in factors:
        # An array, which the compiled program takes as an argument: one program serves all factors.
        scaled = with_logit_scale(network.model, jnp.asarray(factor, jnp.float32))
        results.append(on.evaluate(scaled, tuple(TITLES), **settings))
        blind.append(np.mean(vanishing((network.model.variables, np.float32(factor)), on.images, on.labels)))
        bar.update()
    accuracy = {name: [result.accuracy[name] for result in results] for name in ('clean', *TITLES)}
    flags = np.stack([result.correct['sipgd'] for result in results])
    unsteady = int(np.sum(flags.any(axis=0) != flags.all(axis=0)))
    assert not unsteady or jax.default_backend() != 'cpu', (
        f'{network.label}: SI-PGD ends differently on {unsteady} of {flags.shape[1]} images when the logits '
        'are scaled, though it reads only cosines'
    )
    best = int(np.argmin(accuracy['pgd']))
    return {
        'label': network.label,
        'accuracy': accuracy,
        'ci95': {name: [result.ci95[name] for result in results] for name in TITLES},
        'vanishing_gradient': blind,
        'best_pgd': {'factor': factors[best], 'accuracy': accuracy['pgd'][best]},
        'median_gap': median_gap(natural),
        'sipgd_spread_points': 100 * (max(accuracy['sipgd']) - min(accuracy['sipgd'])),
        'sipgd_images_that_change': unsteady,
    }


def compile_vanishing(module: Any) -> Any:
    """((variables, factor), images, labels) -> whether the gradient of the cross-entropy of the logits times
    the factor is exactly zero, [N]; `module.apply(variables, images)` returns `Outputs`."""

    def vanishing(shared: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        variables, factor = shared

        def loss(x: jax.Array) -> jax.Array:
            return jnp.sum(losses.cross_entropy(factor * module.apply(variables, x).logits, labels))

        return jnp.all(jax.grad(loss)(images) == 0, axis=(1, 2, 3))

    return on_all_devices(vanishing)


def median_gap(logits: np.ndarray) -> float:
    """The median over the images of the difference between the two highest logits, from logits [N, K]."""
    top = np.sort(logits, axis=1)
    return float(np.median(top[:, -1] - top[:, -2]))


def draw(numbers: dict[str, Any]) -> Picture:
    """One panel a network: accuracies in percent over the factor."""
    curves, factors = numbers['curves'], numbers['factors']
    title = f'Robust accuracy against a factor on the logits ({numbers["steps"]} steps)'
    picture = style.new(0.6 + 4.6 * len(curves), 4.4, title, style.measured_on(numbers))
    axes = picture.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, curve in zip(axes, curves, strict=True):
        for number, (name, label) in enumerate(TITLES.items()):
            values = [100 * value for value in curve['accuracy'][name]]
            style.curve(axis, factors, values, number, marker=style.look(number).marker, label=label)
        best = curve['best_pgd']
        axis.plot(
            best['factor'],
            100 * best['accuracy'],
            marker='*',
            markersize=15,
            color='white',
            markeredgecolor='black',
            linestyle='none',
            label=f"PGD's best factor: {100 * best['accuracy']:.1f} %",
            zorder=5,
        )
        axis.plot(
            factors,
            [100 * value for value in curve['vanishing_gradient']],
            color='#888888',
            linewidth=1,
            linestyle=(0, (1, 1)),
            label='images whose gradient is 0',
        )
        axis.axhline(100 * curve['accuracy']['clean'][0], color='black', linewidth=0.8)
        axis.annotate('natural', (factors[0], 100 * curve['accuracy']['clean'][0]), fontsize=8, va='bottom')
        axis.set_xscale('log')
        title = f'{curve["label"]} (median gap of the logits {curve["median_gap"]:.2f})'
        style.finish(axis, title, 'factor on the logits')
        axis.legend(fontsize=8, loc='best', framealpha=0.9)
    axes[0].set_ylabel('% of the images: accuracy under attack')
    axes[0].set_ylim(0, 100)
    return picture
