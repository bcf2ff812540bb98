"""Batch normalisation with padded rows, on one and eight devices; test_parity.py compares it with torch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from si_jax.errors import InputError
from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import Conv

DEVICES = 8


def random_variables(channels, rng):
    return {
        'params': {
            'scale': jnp.asarray(rng.uniform(0.5, 2, channels)),
            'bias': jnp.asarray(rng.normal(size=channels)),
        },
        'batch_stats': {
            'mean': jnp.asarray(rng.normal(size=channels)),
            'var': jnp.asarray(rng.uniform(0.5, 2, channels)),
        },
    }


def test_padded_rows_count_for_nothing():
    rng = np.random.default_rng(0)
    variables = random_variables(3, rng)
    x = jnp.asarray(rng.normal(2, 3, size=(8, 4, 4, 3)))
    mask = jnp.arange(8) < 5
    apply = partial(BatchNorm().apply, variables, train=True, mutable=['batch_stats'])
    masked, masked_stats = apply(x.at[5:].set(1e3), mask=mask)
    alone, alone_stats = apply(x[:5])
    np.testing.assert_allclose(masked[:5], alone, rtol=1e-12, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), masked_stats, alone_stats)


def test_running_variance_is_unbiased_and_one_value_is_no_division_by_zero():
    x = jnp.asarray([[1.0, 5.0], [3.0, 5.0]])
    module = BatchNorm(momentum=1.0)
    variables = module.init(jax.random.key(0), x)
    _, updates = module.apply(variables, x, True, mutable=['batch_stats'])
    np.testing.assert_allclose(updates['batch_stats']['mean'], [2, 5])
    np.testing.assert_allclose(updates['batch_stats']['var'], [2, 0])  # Biased it would be 1.
    y, updates = module.apply(variables, x[:1], True, mutable=['batch_stats'])
    np.testing.assert_array_equal(y, np.zeros((1, 2)))
    np.testing.assert_array_equal(updates['batch_stats']['var'], [0, 0])


def test_a_batch_without_real_rows_changes_no_statistic():
    rng = np.random.default_rng(0)
    variables = random_variables(3, rng)
    x = jnp.asarray(rng.normal(size=(4, 2, 2, 3)))
    y, updates = BatchNorm().apply(variables, x, True, jnp.zeros(4, bool), mutable=['batch_stats'])
    assert jnp.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])


def test_training_mode_without_mutable_uses_the_batch_and_leaves_the_statistics():
    rng = np.random.default_rng(0)
    variables = random_variables(3, rng)
    x = jnp.asarray(rng.normal(size=(4, 2, 2, 3)))
    frozen = BatchNorm().apply(variables, x, True)
    updated, _ = BatchNorm().apply(variables, x, True, mutable=['batch_stats'])
    np.testing.assert_array_equal(frozen, updated)
    assert jnp.abs(frozen - BatchNorm().apply(variables, x)).max() > 0.1


def test_initialisation_in_training_mode_leaves_the_statistics_and_needs_no_axis():
    stats = BatchNorm(axis='batch').init(jax.random.key(0), jnp.full((2, 2, 2, 3), 7.0), True)['batch_stats']
    np.testing.assert_array_equal(stats['mean'], np.zeros(3))
    np.testing.assert_array_equal(stats['var'], np.ones(3))


def test_variance_survives_a_mean_a_thousand_times_the_deviation():
    rng = np.random.default_rng(0)
    x = rng.normal(1000, 1, size=(DEVICES, 16, 4, 4, 3)).astype(np.float32)
    expected = np.var(x.astype(np.float64).reshape(-1, 3), axis=0, ddof=1)
    module = BatchNorm(momentum=1.0)
    variables = module.init(jax.random.key(0), x[0])
    # A running mean that has settled, as after some training steps; the shards' means are taken from it.
    variables['batch_stats']['mean'] = jnp.full(3, 1000.5, jnp.float32)

    def variance(x, axis=None):
        _, updates = BatchNorm(momentum=1.0, axis=axis).apply(variables, x, True, mutable=['batch_stats'])
        return updates['batch_stats']['var']

    np.testing.assert_allclose(variance(x.reshape(-1, 4, 4, 3)), expected, rtol=1e-4)
    np.testing.assert_allclose(
        jax.pmap(partial(variance, axis='batch'), axis_name='batch')(x)[0], expected, rtol=1e-4
    )


def test_bfloat16_activations_have_float32_statistics():
    x = jax.random.normal(jax.random.key(0), (64, 4, 4, 2), jnp.bfloat16) + 20
    module = BatchNorm(momentum=1.0)
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(-1, 2)
    assert updates['batch_stats']['var'].dtype == jnp.float32
    np.testing.assert_allclose(updates['batch_stats']['mean'], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(updates['batch_stats']['var'], exact.var(0, ddof=1), rtol=1e-5)


def test_mask_of_another_length_is_refused():
    variables = random_variables(3, np.random.default_rng(0))
    with pytest.raises(InputError, match=r'mask has shape \(3,\): it must be \(4,\)'):
        BatchNorm().apply(variables, jnp.zeros((4, 2, 2, 3)), True, jnp.ones(3, bool))


# Batch normalisation over devices. The step's convention: loss = sum_local / psum(count), gradients summed.


class TwoLayers(nn.Module):
    """Batch normalisation inside and at the end, so that a gradient crosses two reductions."""

    axis: str | None = None

    @nn.compact
    def __call__(self, x, mask):
        for i in range(2):
            x = Conv(4, 3, stride=2, name=f'conv{i}')(x)
            x = nn.relu(BatchNorm(self.axis, name=f'bn{i}')(x, True, mask))
        return x


def local_step(axis, variables, x, mask, target, adversarial):
    """Outputs, statistics and gradients of one device (or of all rows without an axis)."""

    def reduce(value):
        return value if axis is None else jax.lax.psum(value, axis)

    def loss(params, x):
        y, updates = TwoLayers(axis).apply(
            {'params': params, 'batch_stats': variables['batch_stats']}, x, mask, mutable=['batch_stats']
        )
        per_image = jnp.sum(jnp.square(jnp.tanh(y) - target), axis=(1, 2, 3))
        return jnp.sum(jnp.where(mask, per_image, 0)) / reduce(jnp.sum(mask)), (y, updates)

    def penalised(params):
        value, aux = loss(params, x)
        if adversarial:  # A gradient inside of the loss, as GradAlign has it.
            image_gradient = jax.grad(lambda x: loss(params, x)[0])(x)
            value += jnp.sum(jnp.where(mask, jnp.sum(jnp.sin(10 * image_gradient), axis=(1, 2, 3)), 0))
        return value, aux

    (value, (y, updates)), gradient = jax.value_and_grad(penalised, has_aux=True)(variables['params'])
    image_gradient = jax.grad(lambda x: loss(variables['params'], x)[0])(x)
    return reduce(value), reduce(gradient), updates, y, image_gradient


@pytest.mark.parametrize(('mapped', 'adversarial'), [('shard_map', False), ('pmap', True)])
def test_one_and_eight_devices_agree_on_104_rows_with_an_empty_shard(mapped, adversarial):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, size=(128, 6, 6, 3))
    target = rng.uniform(-1, 1, size=(128, 2, 2, 4))
    mask = np.arange(128) < 104  # Of shards of 16 rows the seventh is half full and the eighth empty.
    variables = TwoLayers().init(jax.random.key(0), x, mask)
    variables = jax.tree.map(lambda v: jnp.asarray(v + rng.uniform(0, 0.3, v.shape)), variables)

    one = jax.jit(partial(local_step, None, adversarial=adversarial))(
        variables, x[:104], mask[:104], target[:104]
    )
    step = partial(local_step, 'batch', adversarial=adversarial)
    if mapped == 'pmap':
        split = [v.reshape(DEVICES, -1, *v.shape[1:]) for v in (x, mask, target)]
        value, gradient, updates, y, image_gradient = jax.pmap(
            step, axis_name='batch', in_axes=(None, 0, 0, 0), out_axes=(None, None, None, 0, 0)
        )(variables, *split)
        y, image_gradient = (v.reshape(128, *v.shape[2:]) for v in (y, image_gradient))
    else:
        rows, copied = PartitionSpec('batch'), PartitionSpec()
        value, gradient, updates, y, image_gradient = jax.jit(
            jax.shard_map(
                step,
                mesh=Mesh(np.array(jax.devices()[:DEVICES]), ('batch',)),
                in_specs=(copied, rows, rows, rows),
                out_specs=(copied, copied, copied, rows, rows),
                check_vma=False,
            )
        )(variables, x, mask, target)

    assert all(np.isfinite(v).all() for v in (y, image_gradient))
    assert not np.asarray(image_gradient[104:]).any()
    eight = value, gradient, updates, y[:104], image_gradient[:104]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), one, eight)
