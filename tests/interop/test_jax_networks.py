"""Networks of Flax and Equinox, given to `evaluate` as their libraries have them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from si_jax import InputError
from si_jax.evaluation.arrays import layout_of
from si_jax.evaluation.classifier import classifier_of, with_logit_scale
from si_jax.interop.jax_networks import as_function

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 4, 4, 1)), jnp.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x.reshape(len(x), -1)))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def logits(value, **options):
    return classifier_of(value, **options).function(IMAGES, None).logits


def test_linen_with_its_variables_predicts():
    module = Linen()
    variables = module.init(jax.random.key(0), IMAGES, train=False)
    wanted = module.apply(variables, IMAGES, train=False)
    np.testing.assert_array_equal(logits((module, variables)), wanted)
    np.testing.assert_allclose(
        with_logit_scale((module, variables), 2.0)(IMAGES).logits, 2 * wanted, rtol=1e-6
    )
    # Bound to its variables it is a callable like any other.
    bound = Linen().bind(variables)
    np.testing.assert_array_equal(logits(lambda images: bound(images, train=False)), wanted)


def test_linen_without_variables_says_what_is_missing():
    with pytest.raises(InputError, match=r'Linen is a flax.linen module without variables: give the pair'):
        classifier_of(Linen())


def test_nnx_is_a_callable():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.linear(x.reshape(len(x), -1))

    model = Net(nnx.Rngs(0))
    np.testing.assert_array_equal(logits(model), model(IMAGES))
    assert as_function(model) is None


def test_equinox_takes_one_image_with_channels_first():
    eqx = pytest.importorskip('equinox')
    key = jax.random.key(0)

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        dropout: eqx.nn.Dropout
        linear: eqx.nn.Linear

        def __call__(self, x, key=None):  # [C, H, W]
            return self.linear(self.dropout(self.conv(x).ravel(), key=key))

    model = Net(
        eqx.nn.Conv2d(1, 2, 3, key=key, dtype=jnp.float32),
        eqx.nn.Dropout(0.5),
        eqx.nn.Linear(8, 3, key=key, dtype=jnp.float32),
    )
    predicting = eqx.nn.inference_mode(model)
    wanted = jnp.stack([predicting(image) for image in jnp.moveaxis(IMAGES, 3, 1)])
    np.testing.assert_allclose(logits(model), wanted, rtol=1e-6)
    assert layout_of(None, model, jnp.moveaxis(IMAGES, 3, 1)) == 'nchw'
    assert layout_of(None, model, IMAGES) == 'nhwc'


def test_linen_with_its_parameters_alone_says_how_to_give_them():
    module = nn.Dense(3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(InputError, match="Dense have kernel, bias and no params: give .*'params': params"):
        classifier_of((module, variables['params']))
