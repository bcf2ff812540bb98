"""Where the gradient gets lost: input gradients of the stages between the features and the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import losses
from si_jax.attacks.facts import for_classes
from si_jax.attacks.family import ATTACKS
from si_jax.draws import drawn
from si_jax.evaluation.network import Network
from si_jax.outputs import Outputs, scaled_by_gap
from si_jax.runtime import devices

Array = jax.Array

# Beside the margin's gradient, a smaller one is below what float32 resolves of 1 - p: it lost its direction.
TINY = 1e-6
# What float32 still holds, with room for the products on the way back to the image.
FLOOR = 1e-30


def stages(name: str, classes: int) -> dict[str, Callable[[Outputs, Array], Array]]:
    """(outputs, labels) -> [B] for each stage, in the order in which a gradient passes on its way back.

    'attack' is the loss of the audited attack, 'cross-entropy' that of the logits, 'scaled' that of logits
    brought to a fixed scale, 'logits' their margin, and 'features' a random projection of the features.
    """
    attack = for_classes(ATTACKS[name], classes)
    table: dict[str, Callable[[Outputs, Array], Array]] = {
        'attack': lambda outputs, y: attack.objective(attack.score(outputs), None, y),
        'cross-entropy': lambda outputs, y: losses.cross_entropy(outputs.logits, y),
        'scaled': lambda outputs, y: losses.cross_entropy(scaled_by_gap(outputs), y),
        'logits': lambda outputs, y: losses.margin(outputs.logits, y),
    }

    def features(outputs: Outputs, y: Array) -> Array:
        z = outputs.features
        assert z is not None
        return z @ jax.random.normal(jax.random.key(0), z.shape[1:], z.dtype)

    return table | {'features': features}


def measure(network: Network, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The gradients at the original images of these rows [M], by stage, under the attack of this name.

    Returns:
        `zero_STAGE` [M] bool, whether all entries of the gradient are exactly 0; `largest_STAGE` [M], its
        largest entry, where those that are not finite count as 0, as they do in attacks; `not_finite` [M]
        bool, whether the attack's has such entries; and `moves` [M] bool, whether the logits change when
        every pixel goes to one of the two ends of the ball.
    """
    table, threat = stages(name, network.request.classes), network.request.threat
    if network.outputs.features is None:
        del table['features']

    def gradients(weights: Any, images: Array, labels: Array, keys: Array) -> dict[str, Array]:
        typed = network.typed(keys)

        def forward(x: Array) -> tuple[tuple[Array, Array | None], Array | None]:
            outputs = network.apply(weights, x, typed)
            return (outputs.logits, outputs.features), outputs.kernel

        (logits, features), pull, kernel = jax.vjp(forward, images, has_aux=True)

        def cotangent(stage: Callable[[Outputs, Array], Array]) -> tuple[Array, Array | None]:
            def total(logits: Array, features: Array | None) -> Array:
                return jnp.sum(stage(Outputs(logits, features, kernel), labels))

            if features is None:
                return jax.grad(lambda g: total(g, None))(logits), None
            return jax.grad(total, argnums=(0, 1))(logits, features)

        # One pass back for all stages, vectorised: a pass for each would compile as many copies of it.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(cotangent, table.values()))
        (gradient,) = jax.vmap(pull)(stacked)
        finite = jnp.isfinite(gradient)
        largest = jnp.max(jnp.abs(jnp.where(finite, gradient, 0)), axis=(2, 3, 4))
        signs = jax.vmap(lambda key: drawn(jax.random.rademacher, key, images.shape[1:], images.dtype))(typed)
        moved = network.apply(weights, threat.project(images + threat.eps * signs, images), typed).logits
        found = {'moves': jnp.any(moved != logits, axis=1)}
        found['not_finite'] = ~jnp.all(finite[list(table).index('attack')], axis=(1, 2, 3))
        for stage, entry in zip(table, largest, strict=True):
            found |= {f'zero_{stage}': entry == 0, f'largest_{stage}': entry}
        return found

    compiled = devices.compile_rows(gradients, network.devices)
    arrays = network.images[rows], network.labels[rows], network.keys(0)[rows]
    return network.map(compiled, network.weights, arrays)


def summary(gradients: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By stage: the shares of images with a zero and with a tiny gradient, and the median largest entry.

    Tiny, but not zero: below `TINY` of the margin's where the loss is a function of the logits, else below
    what float32 holds.
    """
    found = {}
    for stage in ('attack', 'cross-entropy', 'scaled', 'logits', 'features'):
        if f'zero_{stage}' not in gradients:
            continue
        zero, largest = gradients[f'zero_{stage}'], gradients[f'largest_{stage}']
        floor = np.full(len(zero), FLOOR)
        if stage in ('attack', 'cross-entropy', 'scaled'):
            floor = np.maximum(floor, TINY * gradients['largest_logits'])
        found[stage] = {
            'zero': float(np.mean(zero)),
            'tiny': float(np.mean(~zero & (largest < floor))),
            'median_largest_entry': float(np.median(largest)),
        }
    return found
