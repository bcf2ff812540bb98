"""FMN finds the nearest misclassified image of a linear network, in every norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks.fmn import fmn, keep_largest
from si_jax.attacks.hyperplane import displacement
from si_jax.attacks.search import Problem
from si_jax.errors import InputError
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from tests.helpers.searches import run_search

SHAPE, CLASSES, STEPS = (4, 4, 2), 3, 100
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(32, CLASSES)).astype(np.float32)
# Some pixels are black or white, so that the range of pixels plays a part.
IMAGES = np.clip(RNG.uniform(-0.2, 1.2, (6, *SHAPE)), 0, 1).astype(np.float32)
LABELS = np.argmin((IMAGES - 0.5).reshape(6, -1) @ KERNEL, axis=1)


def classifier(images, keys):
    # The lowest class wins, with room to spare, so that the nearest boundary is some way off.
    return Outputs(-(images - 0.5).reshape(len(images), -1) @ jnp.asarray(KERNEL))


def biased(images, keys):
    # Class 0 wins by far, so that several entries must change.
    return Outputs(classifier(images, keys).logits + jnp.asarray([4.0, 0, 0], jnp.float32))


def problem(images, labels):
    keys = jax.random.split(jax.random.key(0), len(images))
    return Problem(jnp.asarray(images), jnp.asarray(labels), keys, jnp.zeros(len(images), jnp.int32)), keys


nearest = jax.jit(displacement, static_argnums=3)


def exact(norm, images=IMAGES, labels=LABELS, bias=(0.0, 0.0, 0.0)):
    """The least distance of each image from another class, [N], by the linear program of one hyperplane."""
    flat, found = images.reshape(len(images), -1), []
    for x, label in zip(flat, labels, strict=True):
        z, each = -(x - 0.5) @ KERNEL + np.array(bias), []
        for other in set(range(CLASSES)) - {label}:
            w, gap = KERNEL[:, label] - KERNEL[:, other], z[label] - z[other]
            if norm == 'l0':  # the entries that can do most
                gain = np.sort(np.abs(w) * np.where(w > 0, 1 - x, x))[::-1].cumsum()
                each.append(np.searchsorted(gain, gap) + 1)
            else:
                d = nearest(*(np.asarray(a)[None] for a in (x, w, -gap)), norm)[0]
                each.append(
                    np.linalg.norm(np.asarray(d, np.float64), {'linf': np.inf, 'l2': 2, 'l1': 1}[norm])
                )
        found.append(min(each))
    return np.array(found)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_distances_of_a_linear_network_are_exact(norm):
    where, keys = problem(IMAGES, LABELS)
    # In two parts; of the radius only the flags depend.
    middle = float(np.median(exact(norm))) * 1.02
    state = run_search(fmn(norm, steps=STEPS), where, Threat(norm, middle), (50, 50), classifier)
    np.testing.assert_allclose(state.inner.distance, exact(norm), rtol=0.01)
    assert (np.asarray(state.inner.distance) >= exact(norm) * (1 - 1e-5)).all()
    np.testing.assert_array_equal(state.fooled, np.asarray(state.inner.distance) <= middle)
    logits = np.asarray(classifier(state.inner.nearest, keys).logits)
    assert (logits.argmax(axis=1) != LABELS).all()
    assert ((state.inner.nearest >= 0) & (state.inner.nearest <= 1)).all()
    np.testing.assert_array_equal(state.found[~state.fooled], IMAGES[~np.asarray(state.fooled)])
    assert (np.asarray(state.queries) == STEPS).all() and (state.inner.queries[state.fooled] < STEPS).all()


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_logits_may_be_as_small_as_they_like(norm):
    where, _ = problem(IMAGES, LABELS)
    small = lambda x, keys: Outputs(1e-30 * classifier(x, keys).logits)  # noqa: E731
    state = run_search(fmn(norm, steps=STEPS), where, Threat(norm, 1.0), (STEPS,), small)
    np.testing.assert_allclose(state.inner.distance, exact(norm), rtol=0.01)


def test_the_number_of_entries_is_exact_where_all_have_the_same_room():
    images = np.clip(0.5 + 0.005 * RNG.normal(size=(6, *SHAPE)), 0, 1).astype(np.float32)
    labels = np.zeros(6, int)
    least = exact('l0', images, labels, (4.0, 0.0, 0.0))
    assert least.min() > 2
    where, _ = problem(images, labels)
    state = run_search(fmn('l0', steps=STEPS), where, Threat('l0', 0.0), (50, 50), biased)
    np.testing.assert_array_equal(state.inner.distance, least)
    # FMN ranks entries by how far they move, not by what they do: with little room they are more.
    where, _ = problem(IMAGES, LABELS)
    state = run_search(fmn('l0', steps=STEPS), where, Threat('l0', 0.0), (50, 50), classifier)
    more = np.asarray(state.inner.distance) - exact('l0')
    assert more.min() == 0 and more.max() <= 1


def test_the_largest_changes_are_kept_and_ties_in_order():
    delta = np.array([0.1, -0.3, 0.2, 0.2, 0.2, 0], np.float32).reshape(1, 1, 6, 1)
    for most, kept in ((0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [0, 1, 2, 3, 4])):
        found = keep_largest(delta, np.zeros_like(delta), jnp.asarray([float(most)]))
        assert np.flatnonzero(found).tolist() == kept


def test_wrong_arguments():
    with pytest.raises(InputError, match="unknown norm 'l3'"):
        fmn('l3')
    with pytest.raises(InputError, match='at least two steps, not steps=1'):
        fmn('l2', steps=1)
