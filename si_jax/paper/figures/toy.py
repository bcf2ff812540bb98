"""Fig. 2: what the paper draws as a sketch, trained: two classes, two inputs, two features.

A small network is trained adversarially on two overlapping clouds, with and without SI, by the training step
of the project. With two features, features and weight vectors can be drawn in one plane, and the gradient of
the weights splits into the part along W_k, which makes it longer, and the part across, which turns it. The SI
regulariser has no part along W_k.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure as Picture

from si_jax import attacks, data, defenses, losses
from si_jax.defenses import Defense
from si_jax.errors import InputError
from si_jax.evaluation.settings import check_count
from si_jax.models.layers import Linear, torch_uniform
from si_jax.outputs import Outputs, cosine
from si_jax.paper.figures import style
from si_jax.runtime.progress import Progress, progress
from si_jax.threat import Threat
from si_jax.training.state import Batch, create_state
from si_jax.training.step import make_train_step
from si_jax.training.update import Ingredients, metric_names

METHODS = {'AT': defenses.DEFENSES['at'], 'AT-SI': defenses.with_si(defenses.DEFENSES['at'])}
CENTRES, SPREAD = ((0.35, 0.4), (0.65, 0.6)), 0.1
THREAT = Threat('linf', 0.06)
IMAGES, BATCH, STEPS = 256, 64, 10  # of each class; of the data; of the attack
MOMENTUM, DECAY = 0.9, 5e-4
PANELS = {
    'weight_norm': '$|W_k|$, mean of the two',
    'angle': 'angle between $z$ and $W_y$ (degrees)',
    'weight_gradient_along': 'gradient of the loss along $W_k$ (norm)',
    'weight_gradient_across': 'gradient of the loss across $W_k$ (norm)',
    'image_gradient': 'gradient of the cross-entropy\nwith respect to the input (norm)',
    'robust_accuracy': 'accuracy under PGD (%)',
}


class Plane(nn.Module):
    """[B, 1, 2, 1] -> `Outputs` of two classes, two features and no last bias, as sec. 4.3."""

    width: int = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, mask: jax.Array | None = None) -> Outputs:
        del train, mask
        x = images.reshape(len(images), -1) - 0.5
        for i in range(2):
            x = nn.relu(Linear(self.width, name=f'hidden{i}')(x))
        features = Linear(2, name='features')(x)
        kernel = self.param('kernel', torch_uniform, (2, 2))
        return Outputs(features @ kernel, features, kernel)


def clouds(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 1, 2, 1] in [0, 1] of two overlapping normal clouds, and their class [N]."""
    noise = np.random.default_rng(seed).normal(size=(2, IMAGES, 2))
    points = np.clip(np.asarray(CENTRES)[:, None] + SPREAD * noise, 0, 1).reshape(-1, 1, 2, 1)
    return points.astype(np.float32), np.repeat(np.arange(2, dtype=np.int32), IMAGES)


def measure(*, epochs: int = 200, runs: int = 5, rate: float = 0.01, seed: int = 0) -> dict[str, Any]:
    """Trains both methods from the same weights on the same data and measures after each epoch.

    Args:
        epochs: Of 8 steps.
        runs: Of each method, with new data, weights and random starts.
        rate: Learning rate; the default is the paper's for ResNet-18.
        seed: Of the first run; the others follow.
    """
    check_count('epochs', epochs)
    check_count('runs', runs)
    if not 0 < rate <= 1:
        raise InputError(f'rate={rate:g} is not in (0, 1]: the default is 0.01')
    seeds = list(range(seed, seed + runs))
    curves = []
    with progress(len(METHODS) * runs * epochs, 'figure 2', 'epoch') as bar:
        for label, defense in METHODS.items():
            trained = _train(defense, epochs, rate, seeds, bar)
            curves.append(
                {
                    'label': label,
                    **{name: [history[name] for history, _ in trained] for name in trained[0][0]},
                    'plane': trained[0][1],
                }
            )
    return {
        'dataset': {'name': 'two normal clouds', 'examples': 2 * IMAGES, 'classes': 2},
        'threat_model': dataclasses.asdict(THREAT),
        'seeds': seeds,
        'rate': rate,
        'epoch': np.arange(epochs + 1),
        'curves': curves,
    }


def _train(
    defense: Defense, epochs: int, rate: float, seeds: list[int], bar: Progress
) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """For each seed what was measured before training and after each epoch, and the plane at the end."""
    model, optimiser = Plane(), optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, MOMENTUM))
    parts = Ingredients(
        defense=defense,
        model=model,
        optimiser=optimiser,
        threat=THREAT,
        attack_steps=STEPS,
        attack_step_size=THREAT.eps / 4,
    )
    step = make_train_step(parts)

    @jax.jit
    def epoch(state: Any, images: jax.Array, labels: jax.Array, batches: jax.Array, key: jax.Array) -> Any:
        def one(state: Any, row: Any) -> Any:
            indices, key = row
            keys = jax.random.split(key, len(indices))
            batch = Batch(images[indices], labels[indices], jnp.ones(len(indices), bool), keys)
            return step(state, (), batch)[0], None

        return jax.lax.scan(one, state, (batches, jax.random.split(key, len(batches))))[0]

    compiled = jax.jit(functools.partial(quantities, defense, model))
    runs = []
    for seed in seeds:
        images, labels = clouds(seed)
        state = create_state(model, optimiser, metric_names(defense), seed=seed, image_shape=images.shape[1:])
        history = []
        for number in range(epochs + 1):
            # The attack that measures has one noise for all epochs and both methods.
            figures, plane = jax.device_get(compiled(state.params, images, labels, jax.random.key(seed)))
            history.append(figures)
            if number < epochs:
                batches, _ = data.epoch_batches(data.epoch_order(seed, number, len(labels)), BATCH)
                key = jax.random.fold_in(jax.random.key(seed), number)
                state = epoch(state, images, labels, batches, key)
                bar.update()
        runs.append(({name: np.stack([row[name] for row in history]) for name in history[0]}, plane))
    return runs


def attacked(model: nn.Module, params: Any, images: Any, labels: Any, key: jax.Array) -> jax.Array:
    """The points after PGD on the cross-entropy, the same attack for both methods."""
    return attacks.run(
        attacks.ATTACKS['pgd'],
        lambda x, _: model.apply({'params': params}, x),  # type: ignore[arg-type, return-value]
        images,
        labels,
        jax.random.split(key, len(labels)),
        threat=THREAT,
        steps=STEPS,
        step_size=THREAT.eps / 4,
    ).last


def quantities(
    defense: Defense, model: nn.Module, params: Any, images: Any, labels: Any, key: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The rows of `PANELS`, |z| and gap of the logits on the attacked points; and the plane of features."""
    points = attacked(model, params, images, labels, key)
    outputs: Any = model.apply({'params': params}, points)
    kernel = outputs.kernel

    def objective(kernel: jax.Array) -> jax.Array:
        # The whole loss that training minimises, as a function of the last kernel.
        seen = Outputs(outputs.features @ kernel, outputs.features, kernel)
        terms = defense.outer.values()
        return sum(  # type: ignore[return-value]
            term.weight * jnp.mean(term.objective(term.score(seen), None, labels)) for term in terms
        )

    def natural_loss(x: Any) -> jax.Array:
        result: Any = model.apply({'params': params}, x)
        return jnp.sum(losses.cross_entropy(result.logits, labels))

    gradient, norms = jax.grad(objective)(kernel), jnp.linalg.norm(kernel, axis=0)
    along = jnp.sum(gradient * kernel, axis=0) / norms
    across = gradient - along * kernel / norms
    angle = jnp.arccos(jnp.clip(jnp.take_along_axis(cosine(outputs), labels[:, None], 1), -1, 1))
    figures = {
        'weight_norm': jnp.mean(norms),
        'feature_norm': jnp.mean(jnp.linalg.norm(outputs.features, axis=1)),
        'gap': jnp.median(jnp.abs(outputs.logits[:, 0] - outputs.logits[:, 1])),
        'angle': jnp.degrees(jnp.mean(angle)),
        'weight_gradient_along': jnp.linalg.norm(along),
        'weight_gradient_across': jnp.linalg.norm(across),
        'image_gradient': jnp.mean(
            jnp.linalg.norm(jax.grad(natural_loss)(images).reshape(len(labels), -1), axis=1)
        ),
        'robust_accuracy': 100 * jnp.mean(jnp.argmax(outputs.logits, axis=1) == labels),
    }
    return figures, {'features': outputs.features, 'labels': labels, 'kernel': kernel}


def draw(numbers: dict[str, Any]) -> Picture:
    """Above the planes of features after training, below what was measured over the epochs."""
    curves, runs = numbers['curves'], len(numbers['seeds'])
    eps, count = numbers['threat_model']['eps'], numbers['dataset']['examples']
    subtitle = (
        f'{count} points of two overlapping normal clouds in the plane, Linf eps = {eps:g}, MLP with two '
        f'features, learning rate {numbers["rate"]:g}; {runs} runs of each method. The paper has a sketch'
    )
    picture = style.new(10, 8.6, 'Two classes, two features: what training does to $W_k$', subtitle)
    above, below = picture.subfigures(2, 1, height_ratios=(1, 1.35))  # type: ignore[misc]
    for axis, curve in zip(above.subplots(1, len(curves)), curves, strict=True):
        _draw_plane(axis, curve)
    for axis, (name, title) in zip(below.subplots(2, 3, sharex=True).flat, PANELS.items(), strict=True):
        for number, curve in enumerate(curves):
            runs_of_method = np.asarray(curve[name])
            style.band(axis, numbers['epoch'], runs_of_method, number, linewidth=1.8, label=curve['label'])
        style.finish(axis, title)
        if 'gradient' in name:
            axis.set_yscale('log')
        else:
            axis.set_ylim(bottom=0)
    for axis in below.axes[3:]:
        axis.set_xlabel('epoch')
    below.axes[5].legend(fontsize=8, loc='lower right', title='mean and range of the runs', title_fontsize=7)
    return picture


def _draw_plane(axis: Any, curve: dict[str, Any]) -> None:
    """Features of attacked points, the regions of the two classes, and the weight vectors as arrows."""
    plane = curve['plane']
    features, labels, kernel = (np.asarray(plane[name]) for name in ('features', 'labels', 'kernel'))
    half = 1.2 * max(float(np.quantile(np.abs(features), 0.995)), float(np.abs(kernel).max()))
    ticks = np.linspace(-half, half, 201)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    logits = points @ kernel
    axis.contourf(
        ticks, ticks, logits[..., 0] - logits[..., 1], levels=[-1e9, 0, 1e9], colors=['#f3e3c3', '#d5dff0']
    )
    for number, marker in enumerate(('o', '^')):
        dots = {'color': style.look(number).color, 'markersize': 2.5, 'alpha': 0.7}
        axis.plot(*features[labels == number].T, marker, **dots, label=f'$z$ of class {number + 1}')
        axis.annotate(
            '', kernel[:, number], (0, 0), arrowprops={'arrowstyle': '-|>', 'color': 'black', 'linewidth': 2}
        )
        length = np.linalg.norm(kernel[:, number])
        beyond = kernel[:, number] * (1 + 0.09 * half / length)
        axis.annotate(f'$W_{number + 1}$', beyond, ha='center', va='center', fontsize=11)
    axis.set_xlim(-half, half)
    axis.set_ylim(-half, half)
    axis.set_aspect('equal')
    axis.set_title(
        f'{curve["label"]}: adversarial features, and the side that each class decides', fontsize=9
    )
    axis.set_xlabel('$z_1$')
    axis.set_ylabel('$z_2$')
    axis.legend(fontsize=8, loc='lower left')
