"""The convolution's two forms agree in value and in derivatives of first and second order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.models.convolution import convolve, use_convolution


def inputs(size, kernel, channels=(3, 4)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, channels[0]))
    return jnp.asarray(x), jnp.asarray(rng.normal(size=(kernel, kernel, *channels)))


def in_form(kind, function, *arguments):
    with use_convolution(kind):
        return jax.jit(function)(*arguments)


def first_and_second(x, kernel, stride, padding):
    """Value, both gradients, and the gradient of a function of both gradients (as GradAlign needs it)."""

    def loss(x, kernel):
        return jnp.sum(jnp.tanh(convolve(x, kernel, stride, padding)))

    def gradient_size(x, kernel):
        return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, argnums=(0, 1))(x, kernel))

    first = jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)
    return first, jax.grad(gradient_size, argnums=(0, 1))(x, kernel)


# Outputs of 4 and 6 are computed several neighbours at a time where the width allows.
CASES = [(kernel, stride, padding, (5, 4)) for kernel in (1, 3, 4) for stride in (1, 2) for padding in (0, 1)]
# With few channels and a stride, or many outputs: a product of patches.
CASES += [(kernel, 2, padding, (3, 4)) for kernel in (1, 3, 4) for padding in (0, 1)]
CASES += [(5, 3, 2, (3, 4)), (2, 3, 0, (1, 4)), (3, 1, 1, (2, 33)), (7, 2, 3, (3, 8)), (2, 3, 3, (5, 6))]
# Three or four channels in pairs of pixels, or more of them where the kernel's width does not allow it.
CASES += [(3, 1, padding, (channels, 8)) for channels in (3, 4) for padding in (0, 1, 2)] + [
    (4, 1, 1, (3, 8))
]
CASES += [(3, 1, 1, (5, 6)), (3, 1, 1, (17, 16)), (3, 2, 1, (17, 4)), (1, 2, 0, (17, 4)), (4, 3, 2, (6, 5))]


@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'channels'), CASES)
def test_both_forms_have_the_same_derivatives(kernel, stride, padding, channels):
    x, weights = inputs((5, 6), kernel, channels)  # An odd and an even size.
    results = [
        in_form(kind, lambda x, w: first_and_second(x, w, stride, padding), x, weights)
        for kind in ('fast', 'lax')
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), *results)


@pytest.mark.parametrize(
    ('channels', 'outputs', 'size', 'height', 'width'),
    [
        (5, 4, (8, 8), 4, 2),
        (5, 3, (8, 8), 4, 2),
        (5, 3, (7, 8), 7, 2),
        (8, 8, (8, 8), 8, 4),
        (3, 16, (8, 8), 8, 4),
    ],
)
def test_neighbours_of_a_narrow_convolution_are_computed_together(channels, outputs, size, height, width):
    x, kernel = inputs(size, 3, (channels, outputs))
    with use_convolution('fast'):
        program = jax.make_jaxpr(lambda x: convolve(x, kernel, 1, 1))(x)
    (found,) = [e for e in _equations(program.jaxpr) if e.primitive.name == 'conv_general_dilated']
    assert found.outvars[0].aval.shape == (2, height, width, outputs * math.prod(size) // (height * width))


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('channels', [(3, 4), (5, 3), (17, 33)])
def test_bfloat16_has_its_own_dtype_and_rounding(stride, channels):
    x, kernel = inputs((9, 8), 3, channels)
    narrow = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

    def loss(x, kernel):
        return jnp.sum(jnp.tanh(convolve(x, kernel, stride, 1).astype(jnp.float32)))

    found = in_form('fast', jax.grad(loss, argnums=(0, 1)), *narrow)
    expected = in_form('lax', jax.grad(loss, argnums=(0, 1)), *(a.astype(jnp.float64) for a in narrow))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float64), b, atol=0.05 * jnp.abs(b).max())


@pytest.mark.parametrize('channels', [3, 5])
def test_forward_is_that_of_torch(channels):
    torch = pytest.importorskip('torch', reason='the reference convolution is torch.nn.functional.conv2d')
    x, kernel = inputs((7, 6), 3, (channels, 4))
    expected = torch.nn.functional.conv2d(
        torch.tensor(np.array(x).transpose(0, 3, 1, 2)),
        torch.tensor(np.array(kernel).transpose(3, 2, 0, 1)),
        stride=2,
        padding=1,
    )
    np.testing.assert_allclose(
        convolve(x, kernel, 2, 1), expected.numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(('window', 'parts'), [(1, 1), (3, 4)])
def test_no_gradient_of_the_fast_form_spreads_its_input_by_a_stride(window, parts):
    x, kernel = inputs((8, 8), window, (5, 9))

    def convolutions(kind):
        with use_convolution(kind):
            loss = jax.grad(lambda x, w: jnp.sum(convolve(x, w, 2, window // 2) ** 2), argnums=(0, 1))
            program = jax.make_jaxpr(loss)(x, kernel)
        return [e for e in _equations(program.jaxpr) if e.primitive.name == 'conv_general_dilated']

    def spread(equation):
        return equation.params['lhs_dilation'] != (1, 1) or equation.params['rhs_dilation'] != (1, 1)

    assert sum(map(spread, convolutions('lax'))) == 2
    fast = convolutions('fast')
    assert not any(map(spread, fast))
    # The gradient of the kernel is matrix products, that of the image one convolution for each remainder.
    assert len(fast) == 1 + parts


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from _equations(inner)


def test_default_is_fast_on_the_cpu_only(monkeypatch):
    x, kernel = inputs((4, 4), 3)

    def is_fast():
        return 'custom_vjp' in str(jax.make_jaxpr(lambda x: convolve(x, kernel, 1, 1))(x))

    assert is_fast()
    with use_convolution('lax'):
        assert not is_fast()
        with use_convolution(None):
            assert is_fast()
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert not is_fast()


def test_a_failure_inside_of_the_context_restores_the_choice():
    x, kernel = inputs((4, 4), 3)
    with pytest.raises(RuntimeError, match='inside'), use_convolution('lax'):
        raise RuntimeError('inside')
    assert 'custom_vjp' in str(jax.make_jaxpr(lambda x: convolve(x, kernel, 1, 1))(x))


def test_unknown_form_is_refused():
    match = "unknown convolution 'fat': did you mean fast"
    with pytest.raises(InputError, match=match), use_convolution('fat'):
        pass
