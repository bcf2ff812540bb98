"""FreeAT's training step: parameters and a persistent perturbation move along gradients of one backward pass.

Source: Shafahi et al. (2019), repository ashafahi/free_adv_train.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from si_jax.attacks.pgd import value_function
from si_jax.defenses import Defense
from si_jax.errors import InputError
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from si_jax.training.state import Batch, TrainState
from si_jax.training.step import Step, register_step
from si_jax.training.update import Calendar, evaluate_terms, guarded_update, rows_of

Array = jax.Array


def _still(batch_size: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros((batch_size, *shape), np.float32)


@register_step('free', carry=_still, persistent=True)
def make_free_step(
    defense: Defense,
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    threat: Threat,
    attack_step_size: float,
    axis_name: str | None,
    sync_bn: bool = True,
    attack_steps: int = 1,
    calendar: Calendar | None = None,
) -> Step:
    """The step (state, perturbation, batch) -> (state, perturbation, metrics), one replay of a batch.

    The perturbation [B, H, W, C] is the per-device carry: row i belongs to whatever image is row i of a
    batch, and the rows that only pad keep theirs. It is cut to the ball, not to [0, 1]; the perturbed images
    are cut to [0, 1], and the gradient is taken there. Both moves use the gradients at the old parameters and
    the old perturbation.

    Args:
        defense: A row of `si_jax.defenses.DEFENSES` with step 'free'.
        model: `model.apply(variables, images, train=..., mask=...)` returns Outputs.
        optimiser: An optax transformation.
        threat: An Linf ball.
        attack_step_size: Of the perturbation, as a fraction of the pixel range.
        axis_name: The axis to reduce over; None on one device.
        sync_bn: As for `si_jax.training.step.make_train_step`.
        attack_steps: Of no use: each step moves the perturbation once.
        calendar: Of no use: no weight changes over the run.

    Raises:
        InputError: The ball is not of the Linf norm.
    """
    del attack_steps, calendar
    if threat.norm != 'linf':
        raise InputError(f"threat.norm={threat.norm!r}: free adversarial training is defined for 'linf'")

    def step(state: TrainState, carry: Array, batch: Batch) -> tuple[TrainState, Array, dict[str, Array]]:
        rows = rows_of(batch.mask, axis_name)
        perturbed = threat.project(batch.images + carry, batch.images)

        def forward(params: Any, images: Array) -> tuple[Outputs, Any]:
            variables = {'params': params, 'batch_stats': state.batch_stats}
            outputs, updates = model.apply(
                variables, images, train=True, mask=batch.mask, mutable=['batch_stats']
            )
            return outputs, updates.get('batch_stats', state.batch_stats)

        def loss(params: Any, images: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            outputs, stats = forward(params, images)
            value, metrics = evaluate_terms(defense, {'adv': outputs}, None, batch, rows, None)
            return value, (stats, metrics)

        (value, (stats, metrics)), (gradients, slope) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            state.params, perturbed
        )
        if defense.inner is not None:
            slope = _slope(defense, lambda images: forward(state.params, images)[0], perturbed, batch)
        new, metrics, made = guarded_update(
            state,
            gradients,
            stats,
            {'loss': value, **metrics},
            defense=defense,
            optimiser=optimiser,
            rows=rows,
            sync_bn=sync_bn,
        )
        moved = jnp.clip(carry + attack_step_size * threat.ball.steepest(slope), -threat.eps, threat.eps)
        return new, jnp.where(made & batch.mask[:, None, None, None], moved, carry), metrics

    return step


def _slope(defense: Defense, network: Any, images: Array, batch: Batch) -> Array:
    """The gradient of the inner objective with respect to the images, by a backward pass of its own."""
    assert defense.inner is not None

    def classifier(images: Array, keys: Array) -> Outputs:
        del keys
        return network(images)

    objective = defense.inner._replace(
        loss=lambda adv, nat, y, i: jnp.where(batch.mask, defense.inner.loss(adv, nat, y, i), 0)  # type: ignore[union-attr]
    )
    value = value_function(objective, defense.inner_score, classifier, batch.labels, None, batch.keys)
    return value(jnp.asarray(0), images)[1]
