"""The training step: attack and update in one pure function.

It is written for one shard of the batch. Losses and metrics are sums over the shard's real rows divided by
the number of real rows of the whole batch, and gradients are summed over the shards; so a padded row, or a
shard of nothing else, counts for nothing.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from si_jax.attacks import gradient
from si_jax.defenses import Defense
from si_jax.outputs import Outputs, as_outputs
from si_jax.threat import Threat
from si_jax.training.state import Batch, TrainState

Array = jax.Array
Carry = Any
Step = Callable[[TrainState, Carry, Batch], tuple[TrainState, Carry, dict[str, Array]]]


def metric_names(defense: Defense) -> tuple[str, ...]:
    """The names of the metrics that a step of this defense returns."""
    accuracies = tuple(f'{name}_accuracy' for name in dict.fromkeys(defense.passes))
    return ('loss', 'gradient_norm', *defense.outer, *accuracies)


def make_train_step(
    defense: Defense,
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    threat: Threat,
    attack_steps: int,
    attack_step_size: float,
    axis_name: str | None,
    sync_bn: bool = True,
) -> Step:
    """The step (state, carry, batch) -> (state, carry, metrics) of a multi-step defense.

    Args:
        defense: A row of `si_jax.defenses.DEFENSES`.
        model: `model.apply(variables, images, train=..., mask=...)` returns Outputs.
        optimiser: An optax transformation.
        threat: The ball of the training attack.
        attack_steps: Steps of the training attack.
        attack_step_size: As a fraction of the pixel range.
        axis_name: The axis to reduce over, as given to pmap or shard_map; None on one device without either.
        sync_bn: Whether the model's batch normalisation reduces over that axis. If not, the devices' running
            statistics are averaged after each step, so that all copies of the state stay equal.

    Returns:
        A pure function. `carry` is per-device state that a method may keep; here it passes through.
    """

    def total(x: Array) -> Array:
        return jax.lax.psum(x, axis_name) if axis_name else x

    def attacked(state: TrainState, batch: Batch) -> Array:
        if defense.attack is None:
            return batch.images
        variables = {'params': state.params, 'batch_stats': state.batch_stats}

        def classifier(images: Array, keys: Array) -> Outputs:
            del keys
            # Without `mutable` the running statistics stay as they are in either mode.
            train = defense.attack_bn == 'train'
            outputs = as_outputs(model.apply(variables, images, train=train, mask=batch.mask))

            def real(x: Array) -> Array:
                # In train mode the loss of a padded row would reach the real ones through the statistics.
                return jnp.where(batch.mask[:, None], x, jax.lax.stop_gradient(x))

            features = None if outputs.features is None else real(outputs.features)
            return outputs._replace(logits=real(outputs.logits), features=features)

        ascent = gradient.run(
            defense.attack,
            classifier,
            batch.images,
            batch.labels,
            batch.keys,
            threat=threat,
            steps=attack_steps,
            step_size=attack_step_size,
        )
        return jax.lax.stop_gradient(ascent.last)

    def step(state: TrainState, carry: Carry, batch: Batch) -> tuple[TrainState, Carry, dict[str, Array]]:
        images = {'nat': batch.images, 'adv': attacked(state, batch)}
        count = total(jnp.sum(batch.mask))

        def mean(per_image: Array) -> Array:
            """The shard's part of the mean over the real rows of the whole batch."""
            return jnp.sum(jnp.where(batch.mask, per_image, 0)) / count

        def loss(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            stats = state.batch_stats
            outputs: dict[str, Outputs] = {}
            for name in defense.passes:
                result, updates = model.apply(
                    {'params': params, 'batch_stats': stats},
                    images[name],
                    train=True,
                    mask=batch.mask,
                    mutable=['batch_stats'],
                )
                stats = updates.get('batch_stats', stats)
                outputs.setdefault(name, result)
            metrics = {}
            for name, term in defense.outer.items():
                scores = {part: term.score(outputs[part]) for part in term.objective.uses}
                metrics[name] = mean(term.objective(scores.get('adv'), scores.get('nat'), batch.labels))
            for name, result in outputs.items():
                correct = jnp.argmax(result.logits, axis=1) == batch.labels
                metrics[f'{name}_accuracy'] = mean(correct.astype(result.logits.dtype))
            value = jnp.asarray(sum(term.weight * metrics[name] for name, term in defense.outer.items()))
            return value, (stats, metrics)

        (value, (stats, metrics)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        # The gradients are summed, not the loss: differentiating a psum would count every device's copy.
        gradients = jax.tree.map(total, gradients)
        if not sync_bn:
            share = jnp.sum(batch.mask) / count
            stats = jax.tree.map(lambda x: total(share.astype(x.dtype) * x), stats)
        metrics = {'loss': value, **jax.tree.map(jnp.asarray, metrics)}
        metrics = {name: total(metric) for name, metric in metrics.items()}
        metrics['gradient_norm'] = optax.tree.norm(gradients)
        metrics = {name: metrics[name].astype(jnp.float32) for name in metric_names(defense)}

        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        updated = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=stats,
            opt_state=opt_state,
        )
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
        failed = state._replace(bad_step=state.step, bad_terms=metrics)
        good = state.bad_step < 0
        new = jax.tree.map(
            lambda kept, bad, new: jnp.where(good, jnp.where(finite, new, bad), kept), state, failed, updated
        )
        return new, carry, metrics

    return step
