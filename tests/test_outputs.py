"""Outputs of classifiers, and the cosine score with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.outputs import (
    Outputs,
    as_outputs,
    cosine,
    logits,
    over_top_gap,
    scaled_by_gap,
    scaled_cosine,
)


def outputs(features, kernel, bias=0.0):
    features, kernel = jnp.asarray(features, jnp.float64), jnp.asarray(kernel, jnp.float64)
    return Outputs(features @ kernel + bias, features, kernel)


@pytest.fixture
def random_outputs():
    rng = np.random.default_rng(0)
    return outputs(rng.normal(size=(5, 7)), rng.normal(size=(7, 4)))


def test_cosine_by_hand():
    # z = (3, 4), |z| = 5. W_1 = (1, 0): 3/5. W_2 = (0, 2): 8/(5 2) = 4/5. W_3 = (-6, -8): -50/(5 10) = -1.
    value = cosine(outputs([[3, 4]], [[1, 0, -6], [0, 2, -8]]))
    np.testing.assert_allclose(value, [[0.6, 0.8, -1.0]], rtol=1e-15)


def test_scaled_cosine_is_s_times_the_cosine():
    value = scaled_cosine(15.0)(outputs([[3, 4]], [[1, 0], [0, 2]]))
    np.testing.assert_allclose(value, [[9.0, 12.0]], rtol=1e-15)


def test_logits_of_a_fixed_scale_by_hand():
    value = Outputs(jnp.array([[1.0, 9.0, 3.0, 7.0], [2.0, 2.0, 2.0, 2.0]]))
    # 9 - 3 = 6 and 9 - 7 = 2; equal logits have no scale and stay.
    np.testing.assert_allclose(scaled_by_gap(value), [[0.5, 4.5, 1.5, 3.5], [6.0, 6.0, 6.0, 6.0]], rtol=1e-15)
    np.testing.assert_allclose(over_top_gap(value), [[0.5, 4.5, 1.5, 3.5], [2.0, 2.0, 2.0, 2.0]], rtol=1e-15)
    np.testing.assert_allclose(scaled_by_gap(Outputs(jnp.array([[5.0, 1.0]]))), [[3.75, 0.75]], rtol=1e-15)


@pytest.mark.parametrize('score', [scaled_by_gap, over_top_gap])
def test_logits_of_a_fixed_scale_keep_the_decision_and_their_denominator(score):
    g = jnp.asarray(np.random.default_rng(3).normal(size=(6, 5)))
    np.testing.assert_array_equal(score(Outputs(2.0**20 * g)), score(Outputs(g)))
    np.testing.assert_allclose(score(Outputs(1e-3 * g)), score(Outputs(g)), rtol=1e-12)
    np.testing.assert_array_equal(jnp.argmax(score(Outputs(g)), axis=1), jnp.argmax(g, axis=1))
    # The denominator is a constant of the gradient: every logit has the slope 1 / denominator.
    slope = jax.vmap(jax.grad(lambda row, k: score(Outputs(row[None]))[0, k]), (0, None))(g, 2)
    np.testing.assert_allclose(slope[:, 2], score(Outputs(g))[:, 2] / g[:, 2], rtol=1e-12)
    np.testing.assert_array_equal(jnp.delete(slope, 2, axis=1), 0.0)


def test_logits_are_the_decision():
    value = outputs([[3, 4]], [[1, 0], [0, 2]], bias=jnp.array([10.0, 0.0]))
    np.testing.assert_array_equal(logits(value), [[13.0, 8.0]])


def test_cosine_does_not_see_bias_or_logits(random_outputs):
    moved = random_outputs._replace(logits=1e3 * random_outputs.logits + 7.0)
    np.testing.assert_array_equal(cosine(moved), cosine(random_outputs))


@pytest.mark.parametrize('factor', [2.0**-10, 2.0**10])
@pytest.mark.parametrize('part', ['features', 'kernel'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_cosine_is_bit_equal_when_scaled_by_a_power_of_two(random_outputs, factor, part, dtype):
    value = jax.tree.map(lambda x: x.astype(dtype), random_outputs)
    scaled = value._replace(**{part: factor * getattr(value, part)})
    assert cosine(value).dtype == dtype
    np.testing.assert_array_equal(cosine(scaled), cosine(value))


def test_cosine_is_blind_to_the_norm_of_each_weight_vector(random_outputs):
    scaled = random_outputs._replace(kernel=random_outputs.kernel * jnp.array([1e-3, 1.0, 1e3, 0.3]))
    np.testing.assert_allclose(cosine(scaled), cosine(random_outputs), rtol=1e-13)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_zero_features_and_zero_weights_have_cosine_zero_and_a_finite_gradient(dtype):
    features = jnp.array([[0.0, 0.0], [1.0, 2.0]], dtype)
    kernel = jnp.array([[0.0, 1.0], [0.0, 3.0]], dtype)

    def total(z, w):
        value = cosine(Outputs(z @ w, z, w))
        return jnp.sum(jnp.arange(1, 5, dtype=dtype).reshape(2, 2) * value), value

    (dz, dw), value = jax.grad(total, (0, 1), has_aux=True)(features, kernel)
    np.testing.assert_array_equal(value[0], [0.0, 0.0])
    np.testing.assert_array_equal(value[:, 0], [0.0, 0.0])
    assert np.isfinite(dz).all() and np.isfinite(dw).all()
    # At zero features: 1e12 W_k / |W_k|, here of the second class with its factor 2.
    np.testing.assert_allclose(dz[0], 2e12 * np.array([1, 3]) / np.sqrt(10), rtol=1e-5)
    # The second image with the second class is the only pair without a zero vector.
    assert np.abs(dz[1]).max() > 0 and np.abs(dw[:, 1]).max() > 0

    # Where both vectors are zero nothing can be learnt: exactly zero.
    dz, dw = jax.grad(lambda z, w: total(z, w)[0], (0, 1))(jnp.zeros_like(features), jnp.zeros_like(kernel))
    np.testing.assert_array_equal(dz, 0)
    np.testing.assert_array_equal(dw, 0)


def test_dead_features_leave_the_network_before_them_without_gradient():
    """The features that matter in practice: ReLU set all of them to zero."""
    kernel = jnp.eye(2)

    def total(x):
        z = jax.nn.relu(x)
        return jnp.sum(cosine(Outputs(z @ kernel, z, kernel)))

    np.testing.assert_array_equal(jax.grad(total)(-jnp.ones((1, 2))), [[0.0, 0.0]])


def test_gradient_flows_through_both_norms(random_outputs):
    """Identity 4 of the paper's argument: the gradient of any function of the cosines is tangential."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))

    def total(z, w):
        return jnp.sum(weights * cosine(Outputs(z @ w, z, w)))

    z, w = random_outputs.features, random_outputs.kernel
    dz, dw = jax.grad(total, (0, 1))(z, w)
    lengths = jnp.linalg.norm(w, axis=0) * jnp.linalg.norm(dw, axis=0)
    np.testing.assert_array_less(jnp.abs(jnp.sum(w * dw, axis=0)) / lengths, 1e-14)
    lengths = jnp.linalg.norm(z, axis=1) * jnp.linalg.norm(dz, axis=1)
    np.testing.assert_array_less(jnp.abs(jnp.sum(z * dz, axis=1)) / lengths, 1e-14)
    # d cos / dz = (W_k/|W_k| - cos z/|z|) / |z|, by hand.
    unit_w, unit_z = w / jnp.linalg.norm(w, axis=0), z / jnp.linalg.norm(z, axis=1, keepdims=True)
    by_hand = weights @ unit_w.T - jnp.sum(weights * (unit_z @ unit_w), axis=1, keepdims=True) * unit_z
    np.testing.assert_allclose(dz, by_hand / jnp.linalg.norm(z, axis=1, keepdims=True), rtol=1e-12)


def test_cosine_needs_features():
    with pytest.raises(InputError, match='needs the features and the kernel'):
        cosine(Outputs(jnp.zeros((2, 3))))


def test_as_outputs_accepts_the_three_forms(random_outputs):
    assert as_outputs(random_outputs) == random_outputs
    assert as_outputs(tuple(random_outputs)) == random_outputs
    assert isinstance(as_outputs(tuple(random_outputs)), Outputs)
    assert as_outputs(random_outputs.logits) == Outputs(random_outputs.logits, None, None)
    assert as_outputs((random_outputs.logits, None, None)).features is None


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (None, 'must return logits'),
        (np.zeros(3), r'ndarray of shape \(3,\)'),
        (np.zeros((2, 3, 4)), r'shape \(2, 3, 4\)'),
        ((np.zeros((2, 3)), np.zeros((2, 4))), 'must return logits'),
        ({'logits': np.zeros((2, 3))}, r"not dict with 'logits': return the one .*outputs\['logits'\]"),
        ([np.zeros((2, 3))], r'not list of 1 \(ndarray \(2, 3\)\): return the first'),
        (jnp.zeros((2, 3, 1)), r'not array of shape \(2, 3, 1\): drop the axes of size 1'),
        (jnp.zeros(2), r'one number for each image.*jnp.stack\(\[-z / 2, z / 2\], axis=-1\)$'),
        (jnp.zeros((2, 1)), r'one number for each image.*axis=-1\) with z = z\[:, 0\]'),
        (None, 'not NoneType'),
        ((np.zeros((2, 3)), np.zeros((2, 4)), None), 'give both'),
        ((np.zeros((2, 3)), None, np.zeros((4, 3))), 'give both'),
        # A kernel as torch stores it, [K, F].
        ((np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((3, 4))), r'\[B, F\] and \[F, K\]'),
        ((np.zeros((2, 3)), np.zeros((5, 4)), np.zeros((4, 3))), r'features \(5, 4\)'),
        ((np.zeros((2, 3)), np.zeros((2, 4, 4)), np.zeros((4, 3))), r'features \(2, 4, 4\)'),
        ((np.zeros((2, 3)), np.zeros(()), np.zeros(())), r'features \(\)'),
    ],
)
def test_as_outputs_refuses(value, message):
    with pytest.raises(InputError, match=message):
        as_outputs(value)
