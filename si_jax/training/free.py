"""FreeAT's training step: parameters and a persistent perturbation move along gradients of one backward pass.

Source: Shafahi et al. (2019), repository ashafahi/free_adv_train.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.pgd import value_function
from si_jax.errors import InputError
from si_jax.objectives import Objective
from si_jax.outputs import Outputs
from si_jax.training.state import Batch, TrainState
from si_jax.training.step import Step, register_step
from si_jax.training.update import Ingredients, evaluate_terms, guarded_update, rows_of

Array = jax.Array


@register_step(
    'free',
    carry=lambda batch_size, shape: np.zeros((batch_size, *shape), np.float32),
    persistent=True,
)
def make_free_step(ingredients: Ingredients) -> Step:
    """The step (state, perturbation, batch) -> (state, perturbation, metrics), one replay of a batch.

    The perturbation [B, H, W, C] is the per-device carry: row i belongs to whatever image is row i of a
    batch, and the rows that only pad keep theirs. It is cut to the ball, not to [0, 1]; the perturbed images
    are cut to [0, 1], and the gradient is taken there. Both moves use the gradients at the old parameters and
    the old perturbation. Each step moves the perturbation once, whatever `attack_steps` says.

    Raises:
        InputError: The ball is not of the Linf norm.
    """
    defense, threat = ingredients.defense, ingredients.threat
    if threat.norm != 'linf':
        raise InputError(f"threat.norm={threat.norm!r}: free adversarial training is defined for 'linf'")

    def step(state: TrainState, carry: Array, batch: Batch) -> tuple[TrainState, Array, dict[str, Array]]:
        parts = ingredients.at(state.step, batch.images.dtype)
        threat, calendar = parts.threat, parts.calendar
        position = calendar.at(state.step) if calendar and defense.scheduled else None
        rows = rows_of(batch.mask, parts.axis_name)
        perturbed = threat.project(batch.images + carry, batch.images)

        def loss(params: Any, images: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            stats, outputs = parts.train_pass(params, state.batch_stats, images, batch.mask)
            value, metrics = evaluate_terms(parts, {'adv': outputs}, None, batch, rows, position)
            return value, (stats, metrics)

        (value, (stats, metrics)), (gradients, slope) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            state.params, perturbed
        )
        if defense.inner is not None:
            slope = _slope(parts, defense.inner, state, perturbed, batch)
        metrics = {'loss': value, **metrics}
        new, metrics, made = guarded_update(parts, rows, state, gradients, stats, metrics)
        moved = carry + parts.attack_step_size * threat.ball.steepest(slope)
        moved = jnp.clip(moved, -threat.eps, threat.eps)
        return new, jnp.where(made & batch.mask[:, None, None, None], moved, carry), metrics

    return step


def _slope(parts: Ingredients, inner: Objective, state: TrainState, images: Array, batch: Batch) -> Array:
    """The gradient of the inner objective with respect to the images, by a backward pass of its own."""

    def classifier(images: Array, keys: Array) -> Outputs:
        del keys
        return parts.train_pass(state.params, state.batch_stats, images, batch.mask)[1]

    real = inner._replace(loss=lambda *given: jnp.where(batch.mask, inner.loss(*given), 0))
    score = parts.defense.inner_score
    return value_function(real, score, classifier, batch.labels, None, batch.keys)(jnp.asarray(0), images)[1]
