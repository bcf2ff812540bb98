"""Smallest perturbations: distances per image, their median and curve, and the files that hold them."""

import json

import jax
import numpy as np
import pytest

import si_jax
from benchmarks.selfcheck import problem
from si_jax import InputError, Smallest
from tests.helpers.searches import quicken

ONE = jax.local_devices()[:1]


def needed(p, order):
    """The exact distance of each image, in the norm whose dual has this order; 0 if it is misclassified."""
    flat = (p.images.astype(np.float64) - 0.5).reshape(len(p.images), -1)
    logits = flat @ p.kernel
    gaps = np.take_along_axis(logits, p.labels[:, None], 1) - logits
    lengths = np.linalg.norm(p.kernel[:, :, None] - p.kernel[:, None, :], order, axis=0)[p.labels]
    others = np.arange(p.kernel.shape[1]) != p.labels[:, None]
    return np.maximum(np.where(others, gaps / np.where(others, lengths, 1), np.inf).min(axis=1), 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture(scope='module')
def found():
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        p = problem(3, 'linf')
        given = {'attacks': 'fmn,fab-t', 'return_images': True, 'devices': ONE}
        return p, si_jax.smallest(p.logits, p.images, p.labels, **given)


def test_distances_are_exact_and_so_is_the_curve(found):
    p, measured = found
    exact = needed(p, 1)
    for name, tolerance in (('fmn', 0.01), ('fab-t', 0.05)):
        distances = measured.distances[name]
        np.testing.assert_allclose(distances, exact, rtol=tolerance)
        assert (distances >= exact * (1 - 1e-5)).all() and distances.dtype == np.float64
        images = measured.images[name]
        wrong = np.argmax(p.logits(images), axis=1) != p.labels
        assert wrong.all()
        far = np.abs(images.astype(np.float64) - p.images).max(axis=(1, 2, 3))
        np.testing.assert_array_equal(distances, far)
    least = measured.least['worst_case']
    np.testing.assert_array_equal(least, np.minimum(*measured.distances.values()))
    assert measured.median['worst_case'] == np.median(least)
    eps = np.array([0, p.eps, 1])
    np.testing.assert_array_equal(
        measured.accuracy(eps)['fmn'], [measured.clean.mean(), p.withstands.mean(), 0]
    )
    assert measured.about['warnings'] == []


def test_in_l0_the_entries_that_change_are_counted():
    p = problem(3, 'l1')
    measured = si_jax.smallest(p.logits, p.images, p.labels, attacks='fmn', norm='l0', devices=ONE)
    distances = measured.distances['fmn']
    np.testing.assert_array_equal(distances, np.rint(distances))
    assert (distances[measured.clean] >= 1).all() and (distances[~measured.clean] == 0).all()
    assert 'l0' in measured.table()


def test_where_nothing_is_found(tmp_path):
    p = problem(3, 'linf')

    def one_class(images):
        return 1e-3 * p.logits(images) + np.array([9.0, 0, 0], np.float32)

    labels = np.zeros(len(p.images), int)
    given = {'attacks': 'fmn', 'devices': ONE, 'state_path': tmp_path / 'a'}
    measured = si_jax.smallest(one_class, p.images, labels, **given)
    assert np.isinf(measured.distances['fmn']).all() and np.isinf(measured.median['fmn'])
    assert measured.accuracy(1.0)['fmn'] == 1
    measured.save(tmp_path / 'none.json')
    about = json.loads((tmp_path / 'none.json').read_text())['smallest']['attacks']['fmn']
    assert about['median'] is None and about['found'] == 0
    assert 'each row sums to 9' in ' '.join(measured.about['warnings'])


def test_files(found, tmp_path):
    _, measured = found
    measured.save(tmp_path / 'far.json')
    about = json.loads((tmp_path / 'far.json').read_text())
    fmn = about['smallest']['attacks']['fmn']
    curve = fmn['accuracy']
    assert about['smallest']['norm'] == 'linf' and curve == sorted(curve, reverse=True)
    assert curve[0] == measured.clean.mean() and fmn['found'] == len(measured.labels)
    assert (tmp_path / 'far.png').read_bytes().startswith(b'\x89PNG')
    arrays = np.load(tmp_path / 'far.npz')
    np.testing.assert_array_equal(arrays['distances_fab-t'], measured.distances['fab-t'])
    read = Smallest.load(tmp_path / 'far.json')
    assert read.table() == measured.table() and read.to_json() == about
    (tmp_path / 'far.npz').write_bytes(b'')
    with pytest.raises(InputError, match='does not hold the distances'):
        Smallest.load(tmp_path / 'far.json')
    (tmp_path / 'far.json').write_text('{"schema": 1}')
    with pytest.raises(InputError, match='is not what Smallest.save wrote'):
        Smallest.load(tmp_path / 'far.json')


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'norm': 'l3'}, "unknown norm 'l3'"),
        ({'attacks': 'pgd'}, 'pgd does not look for the nearest image: give fab or fab-t or fmn'),
        ({'attacks': 'fab', 'norm': 'l0'}, 'fab has no version for l0: give fmn'),
        ({'attacks': lambda *_: 0}, 'does not look for the nearest image'),
    ],
)
def test_wrong_arguments(given, message):
    p = problem(3, 'linf')
    with pytest.raises(InputError, match=message):
        si_jax.smallest(p.logits, p.images, p.labels, **given)


def test_l0_is_refused_where_there_is_a_radius():
    p = problem(3, 'linf')
    with pytest.raises(InputError, match="norm='l0' is for smallest perturbations"):
        si_jax.evaluate(p.logits, p.images, p.labels, attacks='pgd', norm='l0')
