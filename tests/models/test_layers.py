"""Initialisation, input normalisation and the end of a network; whole networks are in test_parity.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.models.layers import (
    NORMALISATIONS,
    Conv,
    Linear,
    he_fan_in,
    he_fan_out,
    normalise_images,
    outputs_of,
    unit_kernels,
)


def params_of(module, *shape):
    return module.init(jax.random.key(0), jnp.zeros(shape, jnp.float32))['params']


# Initialisation.


def test_torch_default_init_is_uniform_within_one_over_root_fan_in():
    conv = params_of(Conv(64, 3, use_bias=True), 1, 4, 4, 32)
    linear = params_of(Linear(500), 1, 200)
    for params, fan_in in ((conv, 9 * 32), (linear, 200)):
        bound = fan_in**-0.5
        for value in params.values():
            assert value.dtype == jnp.float32
            assert jnp.abs(value).max() <= bound * (1 + 1e-6)
            assert jnp.abs(value).max() > 0.95 * bound
        kernel = params['kernel']
        # The variance of U(-b, b) is b^2 / 3; a normal distribution of this variance would pass the bound.
        assert jnp.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.02)
        assert abs(jnp.mean(kernel)) < 4 * bound / kernel.size**0.5


def test_he_inits_are_normal_with_the_fan_of_the_reference_code():
    conv = params_of(Conv(64, 3, kernel_init=he_fan_out), 1, 4, 4, 32)['kernel']
    linear = params_of(Linear(500, kernel_init=he_fan_in, bias_init=nn.initializers.zeros), 1, 200)
    for kernel, variance in ((conv, 2 / (9 * 64)), (linear['kernel'], 2 / 200)):
        assert jnp.std(kernel) == pytest.approx(variance**0.5, rel=0.02)
        # 4.55 % of a normal distribution lie beyond two standard deviations, none of a uniform one.
        assert jnp.mean(jnp.abs(kernel) > 2 * variance**0.5) == pytest.approx(0.0455, abs=0.006)
    assert not linear['bias'].any()


# Input normalisation and the end of the network.


def test_normalisation_is_mean_and_std_per_channel():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 2, 2, 3)))
    np.testing.assert_array_equal(normalise_images(images, 'none'), images)
    np.testing.assert_allclose(normalise_images(images, '2x-1'), 2 * images - 1, rtol=1e-12, atol=1e-15)
    expected = (np.asarray(images) - [0.4914, 0.4822, 0.4465]) / [0.2471, 0.2435, 0.2616]
    np.testing.assert_allclose(normalise_images(images, 'cifar10'), expected, rtol=1e-12)


@pytest.mark.parametrize('name', [name for name, row in NORMALISATIONS.items() if row])
def test_normalisation_stays_float32_for_narrow_images(name):
    assert normalise_images(jnp.zeros((1, 2, 2, 3), jnp.bfloat16), name).dtype == jnp.float32


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match='made for 3 channels, the images have 1'):
        normalise_images(jnp.zeros((1, 2, 2, 1)), 'cifar10')
    with pytest.raises(InputError, match='images are uint8: divide them'):
        normalise_images(jnp.zeros((1, 2, 2, 3), jnp.uint8), 'none')


def test_gradients_reach_the_weights_through_outputs_kernel():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return outputs_of(x, Linear(3))

    x = jnp.ones((2, 4), jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: jnp.sum(Net().apply(v, x).kernel))(variables)['params']['Linear_0']
    np.testing.assert_array_equal(gradient['kernel'], np.ones((4, 3)))
    np.testing.assert_array_equal(gradient['bias'], np.zeros(3))


# Hypersphere embedding.


class Renamed(nn.Module):
    """A network whose last layer has a name of its own, inside another module."""

    name_of_last: str = 'classifier_head'
    bias_before: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, use_bias=self.bias_before, name='linear')(x))
        return outputs_of(x, Linear(3, hypersphere=True, name=self.name_of_last))


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Renamed(name='backbone')(2 * x)


def test_weight_vectors_get_length_one_whatever_the_last_layer_is_called():
    params = params_of(Renamed(), 1, 4)
    scaled = params | {'classifier_head': {'kernel': 3 * params['classifier_head']['kernel']}}
    unit = unit_kernels(scaled)
    np.testing.assert_allclose(jnp.linalg.norm(unit['classifier_head']['kernel'], axis=0), 1, rtol=1e-6)
    # Whatever is called `linear` but is not the last layer stays.
    jax.tree.map(np.testing.assert_array_equal, unit['linear'], params['linear'])

    inner = unit_kernels({'backbone': scaled})['backbone']
    jax.tree.map(np.testing.assert_array_equal, inner, unit)
    assert jax.tree.structure(unit_kernels(params_of(Wrapped(), 1, 4))) == jax.tree.structure(
        params_of(Wrapped(), 1, 4)
    )


def test_a_network_whose_last_layer_cannot_be_told_is_refused():
    with pytest.raises(InputError, match='2 of them: linear, classifier_head.*hypersphere=True'):
        unit_kernels(params_of(Renamed(bias_before=False), 1, 4))
    with pytest.raises(InputError, match=r'has none.*Linear\(num_classes, hypersphere=True\)'):
        unit_kernels(params_of(nn.Dense(3), 1, 4))
    unit_kernels(params_of(Renamed(), 1, 4))  # the advice followed
