"""The last linear layer of functions that return logits alone is found in their programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from si_jax import InputError, Outputs, Randomised, evaluate
from si_jax.evaluation.classifier import classifier_of, lift
from si_jax.evaluation.last_layer import with_features
from tests.helpers.problems import SHAPE, images_and_labels, net

NET = net(dtype='float64')
IMAGES, LABELS = images_and_labels(10, NET, dtype='float64')
KEYS = jax.random.split(jax.random.key(0), 10)


def hidden(x):
    return jax.nn.relu((x - 0.5).reshape(len(x), -1) @ NET.v)


def one(x):
    """As in Equinox: of one image, weights [K, F] first."""
    return NET.w.T @ jax.nn.relu(NET.v.T @ (x.ravel() - 0.5)) + NET.b


def rows(x):
    """One image as a batch of one, mapped."""
    return NET(x[None]).logits[0]


COLUMNS = jnp.linspace(0.5, 2.0, 4)
# Name -> the logits, and what they are per features @ NET.w.
LOGITS = {
    'plain': (lambda x: NET(x).logits, 1),
    'jitted': (jax.jit(lambda x: jax.jit(hidden)(x) @ NET.w + NET.b), 1),
    'no bias': (lambda x: hidden(x) @ NET.w, 1),
    'einsum': (lambda x: jnp.einsum('bf,fk->bk', hidden(x), NET.w), 1),
    'mapped': (jax.vmap(one), 1),
    'mapped rows': (jax.vmap(rows), 1),
    'transposed': (lambda x: (NET.w.T @ hidden(x).T).T + NET.b, 1),
    'temperature': (lambda x: 5 * (hidden(x) @ NET.w + NET.b) / 2, 2.5),
    'columns': (lambda x: 1 + -(COLUMNS - hidden(x) @ (NET.w / COLUMNS) * COLUMNS * COLUMNS), COLUMNS),
    'scaled after transposition': (lambda x: ((NET.w.T @ hidden(x).T) * COLUMNS[:, None]).T, COLUMNS),
    'inside a map': (lambda x: jax.vmap(lambda z: (z @ NET.w) / COLUMNS)(hidden(x)), 1 / COLUMNS),
    'two axes': (
        lambda x: jnp.tensordot(hidden(x).reshape(-1, 4, 6), NET.w.reshape(4, 6, 4), axes=((1, 2), (0, 1))),
        1,
    ),
}


@pytest.mark.parametrize('name', LOGITS)
def test_features_and_kernel_of_the_last_layer(name):
    logits, factor = LOGITS[name]
    found = with_features(classifier_of(logits).function, IMAGES, KEYS)
    assert not isinstance(found, str), found
    for count in (10, 1):
        outputs = jax.jit(found)(jnp.asarray(IMAGES[:count]), KEYS[:count])
        expected = jnp.asarray(IMAGES[:count])
        np.testing.assert_allclose(outputs.logits, logits(expected), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outputs.features, hidden(expected), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outputs.kernel, NET.w * factor, rtol=1e-12, atol=1e-12)


NONE = {
    'softmax': (lambda x: jax.nn.softmax(NET(x).logits), "'div' of arrays that all depend on the images"),
    'power': (lambda x: NET(x).logits ** 3, "'integer_pow', not of a linear layer"),
    'bias alone': (lambda x: jnp.tile(NET.b, (len(x), 1)), 'do not depend on the images'),
    'two heads': (lambda x: NET(x).logits + hidden(x)[:, :4] @ NET.w[:4], "'add' of arrays that all"),
    'quotient': (lambda x: 1 / NET(x).logits, 'a quotient'),
    'bilinear': (lambda x: hidden(x) @ hidden(x)[:4].T, "'dot_general' of arrays that all"),
    'pooled': (lambda x: x.mean((1, 2)), 'the logits are the result of'),
    'pixels': (lambda x: x.reshape(len(x), -1) + 1, 'change of shape'),
    'patches': (lambda x: (x.reshape(len(x), 2, 36) @ NET.v[:36, :2]).reshape(len(x), 4), 'change of shape'),
}


@pytest.mark.parametrize('name', NONE)
def test_where_there_is_none_a_sentence_says_why(name):
    logits, reason = NONE[name]
    assert reason in with_features(classifier_of(logits).function, IMAGES, KEYS)


def test_si_pgd_on_logits_is_that_on_outputs():
    settings = {'attacks': 'sipgd', 'eps': 0.05, 'steps': 4, 'devices': jax.local_devices()[:1]}
    expected = evaluate(NET, IMAGES, LABELS, return_images=True, **settings)
    got = evaluate(jax.jit(lambda x: NET(x).logits), IMAGES, LABELS, return_images=True, **settings)
    np.testing.assert_allclose(got.images['sipgd'], expected.images['sipgd'], atol=1e-12)
    np.testing.assert_array_equal(got.correct['sipgd'], expected.correct['sipgd'])


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        # The outer layer is made first: Dense_0.
        return nn.Dense(4)(nn.relu(nn.Dense(6)(x.reshape(len(x), -1))))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.last = nnx.Linear(72, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def linen():
    module = Linen()
    variables = module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return lambda x: module.apply(variables, x), variables['params']['Dense_0']['kernel']


def of_nnx():
    module = Nnx(nnx.Rngs(0))
    return nnx.jit(lambda x: module(x)), module.last.kernel[...]


@pytest.mark.parametrize('make', [linen, of_nnx])
def test_networks_of_flax(make):
    logits, kernel = make()
    found = with_features(classifier_of(logits).function, IMAGES.astype(np.float32), KEYS)
    outputs = found(jnp.asarray(IMAGES, jnp.float32), KEYS)
    assert outputs.features.shape == (10, 6)
    np.testing.assert_array_equal(outputs.kernel, kernel)


def test_the_found_arrays_are_lifted_and_no_pass_is_added():
    function = classifier_of(lambda x: NET(x).logits).function
    found = lift(with_features(function, IMAGES, KEYS), IMAGES, KEYS)
    assert len(found.weights) == len(lift(function, IMAGES, KEYS).weights) == 3
    products = str(jax.make_jaxpr(found.apply)(found.weights, IMAGES, KEYS)).count('dot_general')
    assert products == str(jax.make_jaxpr(function)(IMAGES, KEYS)).count('dot_general') == 2


def test_a_scale_of_the_images_does_not_pass_as_a_constant():
    with pytest.raises(InputError, match="'sipgd' needs the features.*none was found: .*'div' of arrays"):
        evaluate(lambda x: jax.nn.softmax(NET(x).logits), IMAGES, LABELS, attacks='sipgd')
    # A factor that differs between the images of a batch does not depend on them, but is no layer's scale.
    factor = jnp.linspace(0.5, 2, 16)[:, None]
    uneven = Outputs(NET(jnp.asarray(IMAGES)).logits * factor[:10], *NET(jnp.asarray(IMAGES))[1:])
    found = with_features(classifier_of(lambda x: NET(x).logits * factor[: len(x)]).function, IMAGES, KEYS)
    np.testing.assert_allclose(found(IMAGES, KEYS).logits, uneven.logits)
    with pytest.raises(InputError, match='change by|do not explain|disagree'):
        evaluate(lambda x: NET(x).logits * factor[: len(x)], IMAGES, LABELS, attacks='sipgd')


def test_a_randomised_classifier_may_draw_its_features_but_not_its_kernel():
    def noisy(x, keys):
        return NET(x + jax.vmap(lambda k: 0.01 * jax.random.normal(k, SHAPE))(keys)).logits

    assert callable(with_features(classifier_of(Randomised(noisy)).function, IMAGES, KEYS))

    def drawn(x, keys):
        return hidden(x) @ (NET.w + jax.random.normal(keys[0], NET.w.shape))

    assert 'all depend' in with_features(classifier_of(Randomised(drawn)).function, IMAGES, KEYS)
