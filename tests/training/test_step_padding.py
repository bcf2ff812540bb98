"""Rows that only pad a batch count for nothing, whatever the defense."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.defenses import DEFENSES, with_si
from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import Conv, Linear, global_mean, outputs_of
from si_jax.threat import Threat
from si_jax.training.schedules import sgd
from si_jax.training.state import Batch, TrainState, create_state
from si_jax.training.step import make_train_step
from si_jax.training.update import Calendar, Ingredients, metric_names, rows_of

SHAPE, CLASSES, REAL, PADDED = (6, 6, 3), 4, 5, 3


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = Conv(6, 3, stride=2, padding=1, name='conv')(x)
        x = jnp.tanh(BatchNorm(name='bn')(x, train=train, mask=mask))
        return outputs_of(global_mean(x), Linear(CLASSES, name='linear'))


@pytest.mark.parametrize(
    ('name', 'attack_bn', 'class_weights'),
    [
        ('at-si', 'train', ()),
        ('trades', 'eval', (1.0, 2.0, 3.0, 0.5)),
        ('gradalign-si', 'train', (1.0, 2.0, 3.0, 0.5)),
        ('gat', 'eval', ()),
    ],
)
def test_padded_rows_change_nothing(name, attack_bn, class_weights):
    """In train mode their losses could reach the real images through the statistics of the batch."""
    row, _, si = name.partition('-')
    defense = with_si(DEFENSES[row]) if si else DEFENSES[row]
    defense = defense._replace(attack_bn=attack_bn)
    optimiser = sgd(lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=5e-4, clip_norm=0.0)
    model = Net()
    state = create_state(model, optimiser, metric_names(defense), seed=0, image_shape=SHAPE)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state._asdict())
    step = jax.jit(
        make_train_step(
            Ingredients(
                defense=defense,
                model=model,
                optimiser=optimiser,
                threat=Threat('linf', 0.1),
                attack_steps=min(4, defense.steps),
                attack_step_size=0.03,
                calendar=Calendar(2, 1),
                class_weights=class_weights,
            )
        )
    )
    rng = np.random.default_rng(0)
    real = Batch(
        images=jnp.asarray(rng.uniform(size=(REAL, *SHAPE))),
        labels=jnp.asarray(rng.integers(0, CLASSES, REAL), jnp.int32),
        mask=jnp.ones(REAL, bool),
        keys=jax.random.split(jax.random.key(0), REAL),
    )
    padding = Batch(
        images=jnp.asarray(rng.uniform(size=(PADDED, *SHAPE))),
        labels=jnp.asarray(rng.integers(0, CLASSES, PADDED), jnp.int32),
        mask=jnp.zeros(PADDED, bool),
        keys=jax.random.split(jax.random.key(1), PADDED),
    )
    padded = jax.tree.map(lambda *parts: jnp.concatenate(parts), real, padding)
    alone, _, metrics = step(TrainState(**wide), (), real)
    filled, _, padded_metrics = step(TrainState(**wide), (), padded)
    for ours, theirs in zip(jax.tree.leaves(filled), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    for key, value in metrics.items():
        np.testing.assert_allclose(padded_metrics[key], value, rtol=1e-5, err_msg=key)


def test_a_mean_weighted_by_class():
    rows = rows_of(jnp.array([True, True, True, False]), None)
    losses, weights = jnp.array([1.0, 2.0, 4.0, jnp.nan]), jnp.array([1.0, 3.0, 0.5, 9.0])
    assert float(rows.mean(losses)) == pytest.approx(7 / 3)
    assert float(rows.mean(losses, weights)) == pytest.approx((1 + 6 + 2) / 4.5)
    assert float(rows.mean(losses, jnp.full(4, 2.0))) == pytest.approx(7 / 3)
