import numpy as np
import pytest
from sklearn.datasets import load_digits

from si_jax import data
from si_jax.errors import InputError


def test_digits_are_the_real_ones_in_their_order():
    train, test = data.load('digits', 'train'), data.load('digits', 'test')
    assert train.images.shape == (1400, 8, 8, 1) and test.images.shape == (397, 8, 8, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    original = load_digits()
    np.testing.assert_array_equal(np.concatenate([train.images, test.images])[..., 0], original.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), original.target)
    assert (train.num_classes, train.scale, train.crop, train.flip) == (10, 16, 0, False)
    assert data.to_unit(train.images, train.scale).max() == 1
    assert np.bincount(test.labels).min() >= 35


def test_digits_need_no_folder(tmp_path):
    assert len(data.load('digits', 'test', tmp_path / 'absent').labels) == 397


def test_table():
    assert {name: source.flip for name, source in data.SOURCES.items()} == {
        'cifar10': True,
        'cifar100': True,
        'svhn': False,
        'digits': False,
    }
    assert data.SOURCES['cifar100'].num_classes == 100
    assert data.SOURCES['svhn'].tfds_name == 'svhn_cropped'


def test_unknown_names_are_errors_with_the_near_ones():
    with pytest.raises(InputError, match="unknown data set 'cifar': did you mean cifar10"):
        data.load('cifar', 'test')
    with pytest.raises(InputError, match="unknown split 'tests': did you mean test"):
        data.load('digits', 'tests')
