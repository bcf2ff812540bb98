"""What a training step takes and returns, and how a run begins."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from si_jax.draws import key_of
from si_jax.training.average import Average
from si_jax.training.initial import Initial

Array = jax.Array


class TrainState(NamedTuple):
    """The replicated state of a run.

    Attributes:
        step: int32, the number of updates made; the position in the data follows from it.
        params: Parameters, float32.
        batch_stats: Running statistics of batch normalisation ({} without).
        opt_state: State of the optimiser.
        bad_step: int32, the first step whose loss, gradient or update was not finite, or -1. Once set, the
            state no longer changes.
        bad_terms: The metrics of that step.
        average: The average of the weights, as `si_jax.training.average` keeps it; () without one.
        memory: What terms of the defense remember from batch to batch, by their names; () where none does.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    bad_step: Array
    bad_terms: dict[str, Array]
    average: Any = ()
    memory: Any = ()


class Batch(NamedTuple):
    """One shard of a batch.

    Attributes:
        images: [B, H, W, C] in [0, 1].
        labels: [B] int32.
        mask: [B] bool, False for the rows that only pad.
        keys: [B] typed PRNG keys, one an image and step.
        soft: [B, K], the labels as distributions over the classes where images are mixtures; else None.
        augmented: Augmented copies of the images, [B, H, W, C] each; () where the defense has no branches.
    """

    images: Array
    labels: Array
    mask: Array
    keys: Array
    soft: Array | None = None
    augmented: tuple[Array, ...] = ()


def create_state(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    metric_names: tuple[str, ...],
    *,
    seed: int,
    image_shape: tuple[int, ...],
    average: Average | None = None,
    memory: Any = (),
    initial: Initial | None = None,
) -> TrainState:
    """The state before the first step.

    `metric_names` are those of `si_jax.training.update.metric_names`, `memory` is the defense's
    `first_memory`, and `initial` what is to stand in place of random weights.
    """
    # Not jitted: each shape's initialiser compiles once, where the whole takes XLA several times as long.
    variables = model.init(key_of(seed), jnp.zeros((1, *image_shape), jnp.float32))
    if initial is not None:
        variables = initial.over(variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=optimiser.init(variables['params']),
        bad_step=jnp.full((), -1, jnp.int32),
        bad_terms={name: jnp.zeros((), jnp.float32) for name in metric_names},
        average=average.begin(variables['params'], variables.get('batch_stats', {})) if average else (),
        memory=memory,
    )
