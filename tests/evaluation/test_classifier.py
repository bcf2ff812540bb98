"""Lifting the weights out of a classifier changes nothing but where they are."""

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from si_jax import InputError, Outputs, Randomised
from si_jax.evaluation.classifier import classifier_of, lift
from si_jax.models.convolution import convolve


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(width: int):
    v, w = jnp.asarray(normal(12, width)), jnp.asarray(normal(width, 3, seed=1))
    return lambda x: jax.nn.relu(x.reshape(len(x), -1) @ v) @ w


def jitted(width: int):
    return jax.jit(plain(width))


def nested(width: int):
    inner, shift = jax.jit(plain(width)), jnp.asarray(normal(3, seed=2))
    return jax.jit(lambda x: jax.jit(lambda x: jax.nn.gelu(inner(x)))(x) + inner(x) + shift)


def of_numpy(width: int):
    v, w = normal(12, width), normal(width, 3, seed=1)
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ v) @ w


def own_convolution(width: int):
    kernel, w = jnp.asarray(normal(2, 2, 3, width)), jnp.asarray(normal(width, 3, seed=1))
    return jax.jit(lambda x: jax.nn.relu(convolve(x, kernel)).mean((1, 2)) @ w)


def own_gradient(width: int):
    w = jnp.asarray(normal(12, width))

    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, cotangent: (cotangent,))
    return lambda x: straight_through(x.reshape(len(x), -1) @ w) @ w[:3].T


def in_a_loop(width: int):
    w = jnp.asarray(normal(12, width))
    step = jax.jit(lambda z: jnp.tanh(z @ w @ w.T))
    return lambda x: jax.lax.fori_loop(0, 3, lambda _, z: step(z), x.reshape(len(x), -1))


CLASSIFIERS = [plain, jitted, nested, of_numpy, own_convolution, own_gradient]


@pytest.mark.parametrize('make', [*CLASSIFIERS, in_a_loop])
def test_lifted_classifier_has_the_same_values_and_gradients(make):
    function, x = make(7), jnp.asarray(normal(5, 2, 2, 3))
    lifted = lift(function, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert_allclose(lifted.apply(lifted.weights, x), function(x), rtol=1e-6, atol=1e-6)
    got = jax.jit(jax.grad(lambda x: jnp.sum(lifted.apply(lifted.weights, x) ** 2)))(x)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(function(x) ** 2)))(x)
    assert np.abs(expected).max() > 0
    assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('make', CLASSIFIERS)
def test_the_program_does_not_grow_with_the_weights(make):
    x = jax.ShapeDtypeStruct((5, 2, 2, 3), jnp.float32)

    def text_size(width: int) -> int:
        lifted = lift(make(width), x)

        def loss(weights, x):
            return jnp.sum(lifted.apply(weights, x))

        return len(jax.jit(jax.grad(loss, argnums=1)).lower(lifted.weights, x).as_text())

    # Numbers of more digits take a few characters; 1,000 weights would take thousands. Both have one form of
    # convolution on the CPU, which the number of outputs decides.
    assert text_size(1000) - text_size(100) < 200
    constants = len(jax.jit(make(1000)).lower(x).as_text()) - len(jax.jit(make(100)).lower(x).as_text())
    assert constants > 10_000  # what the lift avoids, so that the first assertion can fail


def test_an_array_that_is_used_twice_is_lifted_once():
    w = jnp.asarray(normal(3, 3))
    inner = jax.jit(lambda x: x @ w)
    lifted = lift(lambda x: inner(x) + jax.jit(lambda x: x @ w.T)(x) @ w, jnp.ones((2, 3)))
    assert len(lifted.weights) == 1


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((1, 1), (1, 1)), ((0, 2), (1, 0))])
@pytest.mark.parametrize(
    'layout', [('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW'), ('NHWC', 'OIHW', 'NCHW')]
)
def test_convolutions_of_any_layout_are_replaced_by_equal_ones(stride, padding, layout):
    kernel = jnp.asarray(normal(3, 3, 3, 3).astype(np.float64))
    x = jnp.asarray(normal(2, 3, 3, 3, seed=1).astype(np.float64))

    def function(x):
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)

    lifted = lift(function, x)
    assert 'custom_vjp' in str(jax.make_jaxpr(lifted.apply)(lifted.weights, x))
    assert_allclose(lifted.apply(lifted.weights, x), function(x), rtol=1e-13)
    got = jax.grad(lambda x: jnp.sum(lifted.apply(lifted.weights, x) ** 2))(x)
    assert_allclose(got, jax.grad(lambda x: jnp.sum(function(x) ** 2))(x), rtol=1e-12, atol=1e-12)


def test_grouped_convolutions_stay_as_they_are():
    kernel, x = jnp.asarray(normal(3, 3, 1, 4)), jnp.asarray(normal(2, 5, 5, 4, seed=1))

    def function(x):
        layout = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), 'SAME', dimension_numbers=layout, feature_group_count=4
        )

    lifted = lift(function, x)
    assert_array_equal(lifted.apply(lifted.weights, x), function(x))


def test_what_a_classifier_may_return():
    x, key = jnp.ones((2, 1, 1, 3)), jax.random.split(jax.random.key(0), 2)
    logits, features, kernel = jnp.ones((2, 4)), jnp.ones((2, 5)), jnp.ones((5, 4))
    for value in (logits, (logits, None, None), Outputs(logits)):
        outputs = classifier_of(lambda x, value=value: value).function(x, key)
        assert_array_equal(outputs.logits, logits)
        assert outputs.features is None and outputs.kernel is None
    for value in ((logits, features, kernel), Outputs(logits, features, kernel)):
        for got, given in zip(
            classifier_of(lambda x, value=value: value).function(x, key), value, strict=True
        ):
            assert_array_equal(got, given)
    random = classifier_of(Randomised(lambda x, keys: jax.vmap(lambda k: jax.random.normal(k, (4,)))(keys)))
    assert random.randomised and random.function(x, key).logits.shape == (2, 4)
    with pytest.raises(InputError, match='must return logits'):
        classifier_of(lambda x: x).function(x, key)
    with pytest.raises(InputError, match='a classifier is a callable'):
        classifier_of('resnet18')


@pytest.mark.parametrize(
    'function',
    [lambda x: np.tanh(np.asarray(x)), lambda x: x if x.sum() > 0 else -x, lambda x: x * float(x[0, 0])],
)
def test_a_function_that_jax_cannot_trace_is_refused(function):
    with pytest.raises(InputError, match='cannot be compiled by JAX'):
        lift(function, jnp.ones((2, 3)))


class Flax(flax.nnx.Module):
    def __init__(self):
        self.layer = flax.nnx.Linear(3, 4, rngs=flax.nnx.Rngs(0))
        self.norm = flax.nnx.BatchNorm(4, rngs=flax.nnx.Rngs(0))

    def __call__(self, images):
        return self.norm(self.layer(images[:, 0, 0]))


@pytest.mark.parametrize(
    ('function', 'match'),
    [
        (
            lambda x: x.reshape(128, -1),
            r'cannot take images of shape \[2, 1, 1, 3\] \(TypeError: .*any number',
        ),
        (lambda x: x[:, 0, 0] @ jnp.ones((5, 4)), r'\(TypeError: .*images \[1, 1, 3\]'),
        (lambda x: {}['a'], 'KeyError'),
        (Flax(), 'TraceContextError.*model.eval()'),
    ],
)
def test_what_a_classifier_raises_is_said_with_a_remedy(function, match):
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(InputError, match=match):
        lift(classifier_of(function).function, jnp.ones((2, 1, 1, 3)), keys)


def test_the_remedies_work():
    x, keys = jnp.asarray(normal(2, 1, 1, 3)), jax.random.split(jax.random.key(0), 2)
    model = Flax()
    model.eval()
    one = jax.vmap(lambda image: image.reshape(3))
    z = x[:, 0, 0, :1]
    for function in (model, one, lambda x: jnp.stack([-z[:, 0] / 2, z[:, 0] / 2], axis=-1)):
        assert lift(classifier_of(function).function, x, keys).shape.logits.shape[0] == 2
