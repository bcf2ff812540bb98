"""What every training step shares: means over the real rows of all devices, terms, the guarded update.

A step is written for one shard of the batch. Losses and metrics are sums over the shard's real rows divided
by the number of real rows of the whole batch, and gradients are summed over the shards; so a padded row, or a
shard of nothing else, counts for nothing.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from si_jax.defenses import SEEN, Defense, Position
from si_jax.errors import InputError
from si_jax.models.layers import unit_kernels
from si_jax.objectives import with_soft_labels
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from si_jax.training import segment
from si_jax.training.average import Average
from si_jax.training.awp import Perturbation
from si_jax.training.ramps import Ramps
from si_jax.training.state import Batch, TrainState

Array = jax.Array
MEASURED = ('nat', 'adv')  # the passes of which a step returns the accuracy


class Rows(NamedTuple):
    """The rows of a batch of which this device has a shard.

    Attributes:
        mask: [B] bool, the real rows of the shard.
        real: The number of real rows of the whole batch.
        axis_name: The axis to reduce over; None on one device.
    """

    mask: Array
    real: Array
    axis_name: str | None

    def total(self, x: Array) -> Array:
        """The sum over the devices."""
        return jax.lax.psum(x, self.axis_name) if self.axis_name else x

    def gathered(self, x: Array) -> Array:
        """[B, ...] of every device, one after another."""
        return jax.lax.all_gather(x, self.axis_name, tiled=True) if self.axis_name else x

    def own(self, x: Array) -> Array:
        """The rows of this device among those of every device."""
        if not self.axis_name:
            return x
        size = len(self.mask)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(self.axis_name) * size, size)

    def mean(self, per_image: Array, weights: Array | None = None) -> Array:
        """The shard's part of the mean over the real rows of the whole batch; `weights` [B] weigh it.

        Raises:
            InputError: There is not one number for each image, as from an objective of the user's that has
                taken the mean already: padded rows would count.
        """
        if jnp.shape(per_image) != self.mask.shape:
            raise InputError(
                f'a term of the loss has shape {list(jnp.shape(per_image))} for {self.mask.shape[0]} images: '
                'let its objective return one number for each image, [B], and no mean over them'
            )
        if weights is None:
            return jnp.sum(jnp.where(self.mask, per_image, 0)) / self.real
        weights = jnp.where(self.mask, weights, 0)
        whole = jnp.maximum(self.total(jnp.sum(weights)), jnp.finfo(weights.dtype).tiny)
        return jnp.sum(jnp.where(self.mask, weights * per_image, 0)) / whole


def rows_of(mask: Array, axis_name: str | None) -> Rows:
    """The rows with this mask [B]."""
    count = jnp.sum(mask)
    return Rows(mask, jax.lax.psum(count, axis_name) if axis_name else count, axis_name)


class Calendar(NamedTuple):
    """The length of a run, from which weights that change over it follow."""

    steps_per_epoch: int
    epochs: int

    def at(self, step: Array, memory: Any = ()) -> Position:
        """The position of step number `step`, with what terms remember there."""
        return Position(step, step % self.steps_per_epoch, self.steps_per_epoch * self.epochs, memory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What a training step is made of.

    Attributes:
        defense: A row of `si_jax.defenses.DEFENSES`.
        model: `model.apply(variables, images, train=..., mask=...)` returns Outputs.
        optimiser: An optax transformation.
        threat: The ball of the training attack.
        attack_steps: Steps of the training attack.
        attack_step_size: As a fraction of the pixel range.
        axis_name: The axis to reduce over, as given to pmap or shard_map; None on one device without either.
        sync_bn: Whether the model's batch normalisation reduces over that axis. If not, the devices' running
            statistics are averaged after each step, so that all copies of the state stay equal.
        calendar: The length of the run; None where no weight of the defense changes over it.
        class_weights: One for each class: every term is then a mean weighted by them. () for equal ones.
        average: How the weights are averaged; None where they are not.
        ramps: How the attack grows over the run; None where it does not.
        bn_first_step: Whether the passes of the first step replace the running statistics.
        awp: The adversarial perturbation of the weights; None for none.
        helper: The network that labels the points of the pass 'helped'; None where there is no such pass.
    """

    defense: Defense
    model: nn.Module
    optimiser: optax.GradientTransformation
    threat: Threat
    attack_steps: int = 1
    attack_step_size: float
    axis_name: str | None = None
    sync_bn: bool = True
    calendar: Calendar | None = None
    class_weights: tuple[float, ...] = ()
    average: Average | None = None
    ramps: Ramps | None = None
    bn_first_step: bool = False

    def at(self, step: Array, dtype: Any) -> 'Ingredients':
        """As they are in step number `step`, from 0, on images of this dtype."""
        changes: dict[str, Any] = {}
        if self.ramps is not None:
            attack = self.threat, self.attack_steps, self.attack_step_size
            changes |= self.ramps.at(step, dtype, *attack)
        if self.bn_first_step:
            momentum = jnp.where(step == 0, 1.0, self.model.bn_momentum)
            changes['model'] = self.model.clone(bn_momentum=momentum)
        return dataclasses.replace(self, **changes) if changes else self

    def with_model(self, model: nn.Module) -> 'Ingredients':
        """The same with another network."""
        return dataclasses.replace(self, model=model)

    awp: Perturbation | None = None
    helper: nn.Module | None = None

    def train_pass(self, params: Any, stats: Any, images: Array, mask: Array) -> tuple[Any, Outputs]:
        """A forward pass in train mode: the running statistics after it, and the outputs."""
        outputs, updates = self.model.apply(
            {'params': params, 'batch_stats': stats}, images, train=True, mask=mask, mutable=['batch_stats']
        )
        return updates.get('batch_stats', stats), outputs

    def joined(self, rows: Rows, stats: Any) -> Any:
        """Running statistics as all devices have them: their mean, where each device has its own."""
        if self.sync_bn:
            return stats
        share = jnp.sum(rows.mask) / rows.real
        return jax.tree.map(lambda x: rows.total(share.astype(x.dtype) * x), stats)


def metric_names(defense: Defense) -> tuple[str, ...]:
    """The names of the metrics that a step of this defense returns."""
    accuracies = tuple(f'{name}_accuracy' for name in dict.fromkeys(defense.passes) if name in MEASURED)
    return ('loss', 'gradient_norm', *defense.outer, *accuracies)


def evaluate_terms(
    parts: Ingredients,
    outputs: dict[str, Outputs],
    gradients: tuple[Array, Array] | None,
    batch: Batch,
    rows: Rows,
    position: Position | None,
    labels: Mapping[str, Array] = MappingProxyType({}),
) -> tuple[Array, dict[str, Array]]:
    """The shard's part of the outer objective, and of every term and accuracy.

    `outputs` are those of each pass. `gradients` are the image gradients [B, H, W, C] of the inner objective
    at the random points and at the natural images, where a term compares them. The position may be None where
    no term has a schedule. `labels` [B] are those of the passes that have labels of their own. Terms between
    branches are left out.
    """
    defense, metrics, weights = parts.defense, {}, weighted(parts, batch)
    for name, term in defense.outer.items():
        if term.of_branches:
            continue
        if term.of_gradients:
            assert gradients is not None
            # By the square, of which the cosine is made: it is zero for entries below 1e-22, too.
            defined = [jnp.sum(gradient**2, axis=(1, 2, 3)) > 0 for gradient in gradients]
            defined_rows = rows_of(rows.mask & defined[0] & defined[1], rows.axis_name)
            defined_rows = defined_rows._replace(real=jnp.maximum(defined_rows.real, 1))
            metrics[name] = defined_rows.mean(term.objective(*gradients, batch.labels), weights)
        elif term.of_segment:
            values = segment.losses(defense, outputs['segment'], batch)
            metrics[name] = rows.mean(term.objective(*values, batch.labels), weights)
        else:
            scores = {part: term.score(outputs[part]) for part in term.reads}
            recalled = None
            if term.memory:
                assert position is not None
                recalled = term.memory.read(position.memory[name], position.batch == 0)
            objective = term.objective.on(rows, recalled)
            if batch.soft is not None:
                objective = with_soft_labels(objective, batch.soft)
            pair, own = (scores.get(term.on), scores.get('nat')), labels.get(term.on, batch.labels)
            metrics[name] = rows.mean(objective(*pair, own), weights)
            if term.memory and term.memory.seen:
                metrics[SEEN.format(name)] = term.memory.seen(*pair, batch.labels, rows.mask)
    for name in outputs:
        if name in MEASURED:
            correct = jnp.argmax(outputs[name].logits, axis=1) == batch.labels
            metrics[f'{name}_accuracy'] = rows.mean(correct.astype(outputs[name].logits.dtype))
    return total(defense, metrics, position), metrics


def total(defense: Defense, metrics: Mapping[str, Array], position: Position | None) -> Array:
    """The sum of the terms that were evaluated, with their weights."""
    present = [(name, term) for name, term in defense.outer.items() if name in metrics]
    return jnp.asarray(sum(term.weight_at(position) * metrics[name] for name, term in present))


def weighted(parts: Ingredients, batch: Batch) -> Array | None:
    """The weight of each image [B] by its class; None for equal ones."""
    if not parts.class_weights:
        return None
    return jnp.asarray(parts.class_weights, batch.images.dtype)[batch.labels]


def guarded_update(
    parts: Ingredients,
    rows: Rows,
    state: TrainState,
    gradients: Any,
    stats: Any,
    metrics: dict[str, Array],
    offset: Any = None,
) -> tuple[TrainState, dict[str, Array], Array]:
    """The state after a step, its metrics, and whether it was made.

    Where the loss, the gradient or anything in the state after the update is not finite, or was not in an
    earlier step, the state stays as it is. `gradients` (of the parameters) and `metrics` (loss, terms and
    accuracies) are the shard's parts; `stats` are the running statistics after the step's passes. Where the
    gradients were taken at the parameters plus an `offset`, the optimiser steps from there (so that weight
    decay reads the sum, as in the code of AWP), and the offset is taken away again.
    """
    # The gradients are summed, not the loss: differentiating a psum would count every device's copy.
    gradients = jax.tree.map(rows.total, gradients)
    stats = parts.joined(rows, stats)
    metrics = {name: rows.total(jnp.asarray(metric)) for name, metric in metrics.items()}
    metrics['gradient_norm'] = optax.tree.norm(gradients)
    memory = state.memory
    if memory:
        new_epoch = parts.calendar.at(state.step).batch == 0 if parts.calendar else jnp.zeros((), bool)
        memory = parts.defense.remembered(memory, metrics, new_epoch)
    metrics = {name: metrics[name].astype(jnp.float32) for name in metric_names(parts.defense)}

    at = state.params if offset is None else optax.tree.add(state.params, offset)
    updates, opt_state = parts.optimiser.update(gradients, state.opt_state, at)
    params = optax.apply_updates(at, updates)
    if offset is not None:
        params = optax.tree.sub(params, offset)
    updated = state._replace(
        step=state.step + 1,
        params=unit_kernels(params) if parts.defense.hypersphere else params,
        batch_stats=stats,
        opt_state=opt_state,
        memory=memory,
    )
    if parts.average is not None:
        average = parts.average.moved(state.average, updated.step, updated.params, stats)
        updated = updated._replace(average=average)
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
    # An update can overflow though loss and gradient are finite: that state must not be the one that is kept.
    finite &= all_finite((updated.params, updated.batch_stats, updated.opt_state))
    failed = state._replace(bad_step=state.step, bad_terms=metrics)
    good = state.bad_step < 0
    new = jax.tree.map(
        lambda kept, bad, new: jnp.where(good, jnp.where(finite, new, bad), kept), state, failed, updated
    )
    return new, metrics, good & finite


def all_finite(tree: Any) -> Array:
    """Whether the floating-point leaves of a tree are finite, as one value []."""
    floating = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in floating])
    # jnp.all of them would become a chain of scalars, which XLA repeats in the selection of every leaf:
    # half of the time that a step of a ResNet took to compile. A weighted sum stays one operation.
    return jnp.sum(jnp.where(bad, jnp.arange(1, len(floating) + 1), 0)) == 0
