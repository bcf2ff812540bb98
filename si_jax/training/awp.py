"""Adversarial weight perturbation (AWP): the update is made where the weights, too, are the worst nearby.

    v_l = |w_l| g_l / (|g_l| + 1e-20)          g the gradient of the whole objective at w, by layer l
    w <- (w + gamma v, stepped by the optimiser with the gradient there) - gamma v

Perturbed are the kernels of convolutions and linear layers: not batch normalisation, and no bias. The images
are the same in both gradients, and so are the running statistics that they begin from; those of the first
gradient's passes are dropped. Weight decay reads w + gamma v, as in the authors' code, where it is part of
the optimiser.

Source: Wu et al. (2020), repository csdongxian/AWP, utils_awp.py. Its proxy network makes one step of plain
    SGD,
and its difference from w is scaled to the length of w, so that the rate of the step cancels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.defenses import Defense
from si_jax.errors import InputError

Array = jax.Array
TINY = 1e-20


class Perturbation(NamedTuple):
    """How far the weights are moved, and from which step on.

    Attributes:
        gamma: The length of a kernel's perturbation, as a share of its own.
        first_step: The first step that perturbs; before it the gradient costs nothing either.
    """

    gamma: float
    first_step: int = 0

    def offset(
        self, step: Array, params: Any, gradient: Callable[[Any], Any], total: Callable[[Array], Array]
    ) -> Any:
        """gamma v, in the structure of `params`.

        Args:
            step: [] int32, the number of the step.
            params: w.
            gradient: params -> the gradient of the objective; of the shard, where there are several.
            total: The sum over the devices.
        """

        def climb() -> Any:
            return jax.tree.map(self._scaled, params, jax.tree.map(total, gradient(params)))

        if not self.first_step:
            return climb()
        return jax.lax.cond(step >= self.first_step, climb, lambda: jax.tree.map(jnp.zeros_like, params))

    def _scaled(self, weight: Array, gradient: Array) -> Array:
        if weight.ndim < 2:
            return jnp.zeros_like(weight)
        length, of_gradient = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (weight, gradient))
        return self.gamma * length / (of_gradient + TINY) * gradient


def perturbation_of(
    config: Mapping[str, Any], defense: Defense, *, possible: bool, steps_per_epoch: int
) -> Perturbation | None:
    """The perturbation of a config's section `awp`; None where gamma is 0.

    Args:
        config: gamma and start_epoch.
        defense: That of the config.
        possible: Whether the defense's training step can perturb weights.
        steps_per_epoch: Steps in an epoch.

    Raises:
        InputError: A value is out of range, or AWP has no form for this defense.
    """
    gamma, start = config['gamma'], config['start_epoch']
    if not 0 <= gamma < 1:
        raise InputError(
            f'awp.gamma={gamma:g} is not in [0, 1), a share of the length of the weights: 0.01 (AT) and '
            '0.005 (TRADES) are published, 0 is no perturbation'
        )
    if start < 0:
        raise InputError(
            f'awp.start_epoch={start} is negative: 0 perturbs the weights from the first epoch on'
        )
    if not gamma:
        return None
    if not possible:
        raise InputError(
            f'awp.gamma={gamma:g}: the step {defense.step!r} takes one gradient for weights and images, and '
            'no form with perturbed weights was published: use --config.awp.gamma=0'
        )
    if defense.hypersphere:
        raise InputError(
            f'awp.gamma={gamma:g}: with hypersphere embedding the weight vectors have length one, which '
            'perturbed ones would not, and no form for it was published: use --config.awp.gamma=0'
        )
    return Perturbation(gamma, start * steps_per_epoch)
