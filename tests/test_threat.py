"""Threat models: projection, random start, limits of eps and the audit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from si_jax.attacks import ATTACKS, run
from si_jax.attacks.apgd import apgd
from si_jax.attacks.search import Problem
from si_jax.draws import drawn
from si_jax.errors import InputError
from si_jax.objectives import margin
from si_jax.outputs import Outputs
from si_jax.threat import BALLS, NORMS, Threat

SHAPE = (3, 4, 4, 2)
pixels = hnp.arrays(np.float64, SHAPE, elements=st.floats(0, 1))
anything = hnp.arrays(np.float64, SHAPE, elements=st.floats(-1e3, 1e3))
radii = {'linf': st.floats(1e-3, 1), 'l2': st.floats(1e-3, 5), 'l1': st.floats(1e-3, 20)}


def norms(delta, norm):
    delta = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(delta, {'linf': np.inf, 'l2': 2, 'l1': 1}[norm], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def project(norm, eps, images, centre):
    return Threat(norm, eps).project(images, centre)


@pytest.mark.parametrize('norm', NORMS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), images=anything, centre=pixels)
def test_projection_is_inside_and_moves_nothing_twice(norm, data, images, centre):
    threat = Threat(norm, data.draw(radii[norm]))
    once = np.asarray(project(norm, threat.eps, images, centre))
    assert once.min() >= 0 and once.max() <= 1
    assert (norms(once - centre, norm) <= threat.eps * (1 + 1e-12)).all()
    twice = np.asarray(project(norm, threat.eps, once, centre))
    np.testing.assert_allclose(twice, once, rtol=0, atol=0 if norm == 'linf' else 1e-14)


@pytest.mark.parametrize('norm', NORMS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), centre=pixels, seed=st.integers(0, 1000))
def test_projection_keeps_what_is_inside(norm, data, centre, seed):
    threat = Threat(norm, data.draw(radii[norm]))
    delta = np.random.default_rng(seed).uniform(-1, 1, SHAPE)
    delta *= 0.99 * threat.eps / norms(delta, norm).max()
    inside = np.clip(centre + delta, 0, 1)
    projected = project(norm, threat.eps, inside, centre)
    np.testing.assert_allclose(projected, inside, rtol=0, atol=1e-15)


def test_linf_projection_is_the_nearest_point_of_ball_and_range():
    """Ball first, then range; by hand."""
    centre = jnp.array([0.02, 0.5, 0.99, 0.5]).reshape(1, 1, 4, 1)
    images = jnp.array([-1.0, 0.9, 2.0, 0.55]).reshape(1, 1, 4, 1)
    projected = Threat('linf', 0.1).project(images, centre)
    np.testing.assert_allclose(projected.ravel(), [0.0, 0.6, 1.0, 0.55], rtol=1e-15)


def test_l2_projection_by_hand():
    # |(3, 4)| = 5, so a ball of radius 0.1 keeps 1/50 of the perturbation; the other image is inside.
    centre = jnp.full((2, 1, 2, 1), 0.5)
    delta = jnp.array([[3.0, 4.0], [0.03, 0.04]]).reshape(2, 1, 2, 1)
    projected = Threat('l2', 0.1).project(centre + delta, centre)
    np.testing.assert_allclose(projected.reshape(2, 2), [[0.56, 0.58], [0.53, 0.54]], rtol=1e-13)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_uniform_start_is_inside_and_fills_the_ball(norm, dtype):
    eps = 0.1 if norm == 'linf' else 0.8
    threat = Threat(norm, eps)
    images = jnp.full((64, 6, 6, 3), 0.5, dtype)
    start = threat.uniform_start(jax.random.split(jax.random.key(0), 64), images)
    assert start.dtype == dtype
    delta = np.asarray(start - images, np.float64)
    distance = norms(delta, norm)
    assert (distance <= eps + 1e-6).all()
    assert distance.max() > 0.99 * eps
    if norm == 'linf':
        # U(-eps, eps): mean 0, standard deviation eps / sqrt(3); 6,912 draws.
        assert abs(delta.mean()) < 0.025 * eps
        assert delta.std() == pytest.approx(eps / np.sqrt(3), rel=0.03)
    else:
        # Uniform in the ball of 108 dimensions, in L2 and L1: E[(r/eps)^108] = 1/2.
        assert ((distance / eps) ** 108).mean() == pytest.approx(0.5, abs=0.15)
    assert len(np.unique(delta.reshape(64, -1)[:, 0])) == 64


@pytest.mark.parametrize('implementation', ['threefry2x32', 'rbg'])
@pytest.mark.parametrize(
    'how', [jax.random.uniform, jax.random.normal, jax.random.rademacher, jax.random.laplace]
)
def test_numbers_that_are_drawn_in_one_dimension_are_the_same(how, implementation):
    key = jax.random.key(3, impl=implementation)
    assert_array_equal(drawn(how, key, (4, 5, 3), jnp.float32), how(key, (4, 5, 3), jnp.float32))


@pytest.mark.parametrize('norm', NORMS)
def test_uniform_start_does_not_depend_on_the_batch(norm):
    threat = Threat(norm, 0.1)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 4, 4, 3)))
    keys = jax.random.split(jax.random.key(3), 5)
    uniform_start = jax.jit(threat.uniform_start)
    together = uniform_start(keys, images)
    for i in range(5):
        np.testing.assert_array_equal(uniform_start(keys[i : i + 1], images[i : i + 1])[0], together[i])
    order = jnp.array([3, 1, 4, 0, 2])
    np.testing.assert_array_equal(uniform_start(keys[order], images[order]), together[order])
    assert together.min() >= 0 and together.max() <= 1


@pytest.mark.parametrize('norm', NORMS)
def test_distance(norm):
    centre = jnp.zeros((2, 1, 2, 1))
    images = jnp.array([[3.0, -4.0], [0.0, 0.0]]).reshape(2, 1, 2, 1)
    np.testing.assert_array_equal(
        Threat(norm, 0.1).distance(images, centre), {'linf': [4, 0], 'l2': [5, 0], 'l1': [7, 0]}[norm]
    )


@pytest.mark.parametrize(
    ('norm', 'eps', 'message'),
    [
        ('linf', 8, r'eps=8 is not in \(0, 1\] for linf: did you mean 8/255\?'),
        ('linf', 1.0001, r'not in \(0, 1\]'),
        ('linf', 0, 'eps=0 is not in'),
        ('linf', -1, 'eps=-1 is not in .*: give a fraction'),
        ('linf', float('nan'), 'eps=nan is not in'),
        ('linf', float('inf'), 'eps=inf is not in .*: give a fraction'),
        ('l2', 6.94, r'eps=6.94 is not in \(0, 6.9282\] for l2'),
        ('l2', 128, 'did you mean 128/255'),
        ('l2', 0, 'eps=0 is not in'),
        ('l2', float('nan'), 'eps=nan is not in'),
        ('l1', 49, r'eps=49 is not in \(0, 48\] for l1'),
        ('l1', -12, 'eps=-12 is not in'),
    ],
)
def test_wrong_radii_are_refused(norm, eps, message):
    with pytest.raises(InputError, match=message):
        Threat(norm, eps).check((4, 4, 3))


@pytest.mark.parametrize(
    ('norm', 'eps'), [('linf', 8 / 255), ('linf', 1), ('l2', 0.5), ('l2', 48**0.5), ('l1', 12)]
)
def test_right_radii_are_accepted(norm, eps):
    Threat(norm, eps).check((4, 4, 3))


@pytest.mark.parametrize(('norm', 'near'), [('linff', 'linf'), ('L2', 'l2'), ('Linf', 'linf'), ('L1', 'l1')])
def test_unknown_norm_names_the_near_one(norm, near):
    with pytest.raises(InputError, match=f'unknown norm {norm!r}: did you mean {near}'):
        Threat(norm, 0.1).check((4, 4, 3))


def test_audit_passes_on_the_grid_of_bytes():
    """Every byte moved by exactly 8/255, in float32, where the difference is not exactly 8/255."""
    centre = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(1, 16, 16, 1)
    up = (np.minimum(np.arange(256) + 8, 255).astype(np.float32) / np.float32(255)).reshape(1, 16, 16, 1)
    down = (np.maximum(np.arange(256) - 8, 0).astype(np.float32) / np.float32(255)).reshape(1, 16, 16, 1)
    for images in (up, down):
        largest = Threat('linf', 8 / 255).audit(images, centre, source='pgd')
        assert largest == pytest.approx(8 / 255, abs=1e-7)
        assert largest > 8 / 255  # so the tolerance was needed


@pytest.mark.parametrize('norm', NORMS)
def test_audit_returns_the_largest_perturbation(norm):
    centre = np.full((3, 2, 2, 1), 0.5)
    images = centre.copy()
    images[1, 0, 0, 0] += 0.05
    assert Threat(norm, 0.1).audit(images, centre, source='pgd') == pytest.approx(0.05)
    assert Threat(norm, 0.1).audit(images[:0], centre[:0], source='pgd') == 0.0


FAULTS = {
    'beyond eps': (0.1 + 1e-5, 'distance 0.10001'),
    'not a number': (float('nan'), 'distance nan'),
    'infinite': (float('inf'), 'distance inf'),
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('norm', NORMS)
def test_audit_catches(norm, fault):
    centre = np.full((4, 3, 3, 1), 0.5)
    images = centre.copy()
    images[2, 1, 1, 0] += FAULTS[fault][0]
    with pytest.raises(
        AssertionError, match=f'sipgd left its threat model on image 102: {norm} {FAULTS[fault][1]}'
    ):
        Threat(norm, 0.1).audit(images, centre, source='sipgd', indices=np.arange(100, 100 + len(images)))


@pytest.mark.parametrize('pixel', [-1e-9, 1 + 1e-9])
@pytest.mark.parametrize('norm', NORMS)
def test_audit_catches_pixels_outside_the_range(norm, pixel):
    """No tolerance here: clipping to [0, 1] is exact."""
    centre = np.full((1, 2, 2, 1), round(pixel), np.float64)
    images = centre.copy()
    images[0, 0, 0, 0] = pixel
    with pytest.raises(AssertionError, match=r'1e-09 outside \[0, 1\]'):
        Threat(norm, 0.1).audit(images, centre, source='pgd')
    images[0, 0, 0, 0] = round(pixel)
    Threat(norm, 0.1).audit(images, centre, source='pgd')


def test_a_new_norm_is_a_new_ball(monkeypatch):
    """Attacks ask the ball: one more row, and PGD and APGD run in its norm."""

    class Half(type(BALLS['linf'])):
        """The Linf ball of half the radius."""

        def length(self, delta, xp=jnp):
            return 2 * super().length(delta, xp)

        def steepest(self, gradient):
            return super().steepest(gradient) / 2

        def project(self, images, centre, eps):
            return super().project(images, centre, eps / 2)

        def uniform(self, key, shape, dtype, eps):
            return super().uniform(key, shape, dtype, eps / 2)

    monkeypatch.setitem(BALLS, 'half', Half())
    images, labels = jnp.full((2, 2, 2, 3), 0.5), jnp.array([0, 1])
    keys = jax.random.split(jax.random.key(0), 2)

    def classifier(x, keys):
        return Outputs(x.mean(axis=(1, 2)))

    def found(threat):
        pgd = run(ATTACKS['cw'], classifier, images, labels, keys, threat=threat, steps=3, step_size=0.1)
        search, problem = apgd(margin, steps=3), Problem(images, labels, keys, labels)
        state = search.init(classifier, problem, threat)
        return pgd.last, search.advance(classifier, problem, threat, state, jnp.asarray(0), 4).inner[0]

    half, linf = Threat('half', 0.2), Threat('linf', 0.1)
    half.check((2, 2, 3))
    for ours, theirs in zip(found(half), found(linf), strict=True):
        assert half.audit(ours, images, source='pgd') == pytest.approx(0.2)
        np.testing.assert_allclose(jnp.abs(ours - images).max(), jnp.abs(theirs - images).max(), rtol=1e-6)
