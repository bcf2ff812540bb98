"""What two passes may differ by comes from the classes that compete, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, evaluate
from si_jax.evaluation import gates
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.tolerances import FLOAT32, check_explained, disagreement, resolution
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(10)
KEYS = jax.random.split(jax.random.key(0), 8)


def masked(*classes, value=-1e9):
    mask = jnp.zeros(4).at[jnp.asarray(classes)].set(value)
    return lambda o, x: o._replace(logits=o.logits + mask)


def huge(o, x):
    """The logits, and the features that make them, times 1e5 on a tenth of the images."""
    factor = jnp.where(jnp.abs(x[:, 0, 0, 0] - 0.5) > 0.45, 1e5, 1.0)[:, None]
    return o._replace(logits=factor * (o.logits - NET.b), features=factor * o.features)


DISGUISES = {
    'none': lambda o, x: o,
    'a masked class': masked(1),
    'two masked classes': masked(1, 3),
    'a class that is never masked out': masked(1, value=1e9),
    'masked by less': masked(2, value=-1e4),
    'huge logits on some images': huge,
    'a common offset': lambda o, x: o._replace(logits=o.logits + 1e3),
}


def probe(function, images=IMAGES[:8]):
    return gates.probe(classifier_of(function), images, KEYS[: len(images)])


@pytest.mark.parametrize('name', DISGUISES)
@pytest.mark.parametrize('images', [IMAGES[:8], np.repeat(IMAGES[6:7], 8, axis=0)])
def test_no_constant_hides_a_fault(name, images):
    disguise, rng = DISGUISES[name], np.random.default_rng(0)

    def honest(x):
        return disguise(NET(x), x)

    def dependent(x):
        return disguise(NET(x + 0.05 * x.mean(axis=0)), x)

    def random(x):
        return disguise(NET(x + 0.01 * rng.normal(size=x.shape).astype(np.float32)), x)

    outputs = probe(honest, images)
    with pytest.raises(InputError, match='with the other images of its batch'):
        probe(dependent, images)
    with pytest.raises(InputError, match='two calls on the same images disagree'):
        probe(random, images)
    compiled = jax.jit(honest)(images).logits
    gates.check_compiled(compiled, outputs.logits)
    with pytest.raises(InputError, match='compiled by JAX'):
        gates.check_compiled(jax.jit(honest)(0.99 * images).logits, outputs.logits)
    products = outputs.features @ outputs.kernel
    check_explained(outputs.logits, products)
    other, z = np.roll(outputs.kernel, 1, axis=1), outputs.features
    clipped = np.maximum(z - 0.1 * z.mean(axis=1, keepdims=True), 0)
    for wrong in (-products, z @ other, clipped @ outputs.kernel):
        with pytest.raises(InputError, match='do not explain'):
            check_explained(outputs.logits, wrong)


@pytest.mark.parametrize('classes', [2, 3, 10])
@pytest.mark.parametrize('spread', [0.0, 1e-7, 1e-3, 1.0])
def test_rounding_is_never_refused(classes, spread):
    """Near-ties of all classes, of two, and images that are all alike, off by 1e-6 of the logits' size."""
    rng = np.random.default_rng(0)
    for offset in (0.0, 1.0, -300.0):
        logits = spread * rng.normal(size=(16, classes)) + offset + np.arange(classes) * (classes != 2)
        logits[3] = logits[3].mean()
        logits[4, :2] = logits[4].max()
        off = 1e-6 * rng.uniform(-1, 1, logits.shape) * np.abs(logits)
        assert disagreement(logits, logits + off) == ''
        assert disagreement(logits[:1], (logits + off)[:1]) == ''
    # Two classes of opposite logits, nearly tied on one image: an error of 1e-6 of the others' size.
    z = rng.normal(size=(16, 1)) * (np.arange(16)[:, None] > 0)
    logits = np.concatenate([-z, z], axis=1) / 2
    assert disagreement(logits, logits + 1e-6) == ''


@pytest.mark.parametrize('squash', [jax.nn.softmax, jax.nn.sigmoid, jax.nn.relu, jax.nn.log_softmax])
@pytest.mark.parametrize('scale', [1.0, 30.0, 1e3])
def test_rounding_before_a_function_that_saturates_is_not_refused(squash, scale):
    logits = np.asarray(NET(jnp.asarray(IMAGES)).logits)
    off = 1 + 2e-7 * np.random.default_rng(0).uniform(-1, 1, logits.shape)
    assert disagreement(squash(scale * logits), squash(scale * logits * off)) == ''


def in_half(dtype):
    half = jax.tree.map(lambda array: array.astype(dtype), NET)

    def deep(x):
        z = half(x.astype(dtype)).features
        for _ in range(3):
            z = jax.nn.relu(jnp.tanh(z) @ half.v[:24] + z)
        return z @ half.w + half.b

    return deep


def test_a_network_in_bfloat16_is_evaluated():
    found = evaluate(in_half('bfloat16'), IMAGES, LABELS, attacks='pgd,sipgd', eps=0.02, steps=2)
    assert found.precision['verification'] == 'float32'


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_faults_are_found_in_half_precision(dtype):
    deep, rng = in_half(dtype), np.random.default_rng(0)
    coarse = resolution(jax.make_jaxpr(deep)(IMAGES).jaxpr)

    def compiled(function):
        eager = gates.probe(classifier_of(function), IMAGES[:8], KEYS, coarse)
        gates.check_compiled(jax.jit(deep)(IMAGES[:8]), eager.logits, coarse)

    compiled(deep)
    for fault, match in (
        (lambda x: deep(x + rng.normal(size=x.shape).astype(np.float32)), 'two calls'),
        (lambda x: deep(x + 0.5 * x.mean(axis=0)), 'other images of its batch'),
        (lambda x: deep(0.7 * x), 'compiled by JAX'),
    ):
        with pytest.raises(InputError, match=match):
            compiled(fault)


def test_the_resolution_is_that_of_the_coarsest_type():
    def of(function):
        return resolution(jax.make_jaxpr(function)(jnp.ones(3)).jaxpr)

    assert of(jnp.tanh) == FLOAT32
    assert of(lambda x: x.astype('float16') + 1) == 2.0**-10
    assert (
        of(
            jax.jit(
                lambda x: jax.lax.cond(
                    x[0] > 0, lambda y: y.astype('bfloat16') * 1.0, lambda y: y.astype('bfloat16'), x
                )
            )
        )
        == 2.0**-7
    )
    assert of(lambda x: jax.lax.reduce_precision(x, 8, 9)) == 2.0**-9
