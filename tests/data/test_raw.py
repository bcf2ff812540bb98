"""The files of the authors of CIFAR and SVHN, written here in their layout, and pickles that are none."""

import os
import pickle
import struct

import numpy as np
import pytest
import scipy.io

from si_jax import data
from si_jax.data.raw import plain_pickle
from si_jax.errors import InputError
from tests.helpers.own_data import python2_batch, write_cifar10

RNG = np.random.default_rng(0)


def test_cifar10_batches_are_joined_in_their_order(tmp_path):
    images, labels = write_cifar10(tmp_path)
    train, test = data.load('cifar10', 'train', tmp_path), data.load('cifar10', 'test', tmp_path)
    np.testing.assert_array_equal(train.images, images[:-12])
    np.testing.assert_array_equal(test.images, images[-12:])
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert train.files[4] == str(tmp_path / 'cifar-10-batches-py' / 'data_batch_5')
    assert (train.num_classes, train.crop, train.flip, train.classes[9]) == (10, 4, True, 'truck')
    inside = data.load('cifar10', 'test', tmp_path / 'cifar-10-batches-py')  # the folder itself will do
    np.testing.assert_array_equal(inside.images, test.images)
    (tmp_path / 'cifar-10-batches-py' / 'data_batch_4').unlink()
    with pytest.raises(InputError, match=r'data_batch_4 is not there: unpack'):
        data.load('cifar10', 'train', tmp_path)


@pytest.mark.parametrize('protocol', range(6))
def test_cifar100_as_any_python_writes_it(tmp_path, protocol):
    rows = RNG.integers(0, 256, (3, 3072), np.uint8)
    content = {'data': rows, 'fine_labels': [7, 99, 0], 'coarse_labels': [1, 2, 3], 'batch_label': b'x'}
    (tmp_path / 'cifar-100-python').mkdir()
    (tmp_path / 'cifar-100-python' / 'test').write_bytes(pickle.dumps(content, protocol))
    if protocol == 5:  # which no author wrote, and in which NumPy has another way to make an array
        with pytest.raises(InputError, match='it asks for numpy._core.numeric._frombuffer'):
            data.load('cifar100', 'test', tmp_path)
        return
    test = data.load('cifar100', 'test', tmp_path)
    np.testing.assert_array_equal(test.images, rows.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
    assert list(test.labels) == [7, 99, 0] and test.num_classes == 100


def test_svhn_has_its_zeros_under_ten(tmp_path):
    images = RNG.integers(0, 256, (32, 32, 3, 4), np.uint8)
    scipy.io.savemat(
        tmp_path / 'train_32x32.mat', {'X': images, 'y': np.array([[10], [1], [9], [10]], np.uint8)}
    )
    train = data.load('svhn', 'train', tmp_path)
    assert list(train.labels) == [0, 1, 9, 0] and train.crop == 4 and not train.flip
    np.testing.assert_array_equal(train.images, images.transpose(3, 0, 1, 2))
    (tmp_path / 'train_32x32.mat').write_bytes(b'MATLAB 5.0 MAT-file' + bytes(200))
    with pytest.raises(InputError, match=r'train_32x32\.mat is damaged'):
        data.load('svhn', 'train', tmp_path)


class Call:
    """Pickled, it calls a function with arguments as it is read."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


MALICIOUS = {
    'system': (lambda marker: Call(os.system, f'touch {marker}'), 'system'),
    'eval': (lambda marker: Call(eval, f'open({str(marker)!r}, "w")'), 'eval'),
    'getattr': (lambda marker: Call(getattr, 'text', 'upper'), 'getattr'),
    'numpy load': (lambda marker: Call(np.load, str(marker)), 'load'),
    'codec': (lambda marker: Call(__import__('_codecs').lookup, 'idna'), 'lookup'),
    'numpy function': (lambda marker: Call(np.ones, 10**12), 'ones'),
}


@pytest.mark.parametrize('name', MALICIOUS)
@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_a_pickle_that_asks_for_more_is_refused_and_runs_nothing(tmp_path, name, protocol):
    make, asked = MALICIOUS[name]
    marker, path = tmp_path / 'ran', tmp_path / 'cifar-10-batches-py' / 'test_batch'
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({'data': make(marker), 'labels': [1]}, protocol))
    with pytest.raises(InputError, match=r'test_batch is refused: it asks for ') as caught:
        data.load('cifar10', 'test', tmp_path)
    assert asked in str(caught.value) and 'could run any code' in str(caught.value) and not marker.exists()


def test_stand_ins_take_no_lie(tmp_path):
    path = tmp_path / 'cifar-10-batches-py' / 'test_batch'
    path.parent.mkdir()
    good = python2_batch(RNG.integers(0, 256, (2, 3072), np.uint8), [1, 2])

    def refused(content, words='is damaged, or not the file of its authors'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            data.load('cifar10', 'test', tmp_path)

    path.write_bytes(good)
    assert set(plain_pickle(path)) == {'batch_label', 'data', 'labels', 'filenames'}
    for kept in (0, 1, 40, len(good) // 2, len(good) - 1):
        refused(good[:kept])
    refused(good.replace(b'U\x02u1', b'U\x02O8'))  # an array of objects
    refused(good.replace(b'U\x02u1', b'U\x02f4'))  # of another size than its bytes
    refused(good.replace(struct.pack('<i', 3072), struct.pack('<i', 2**31 - 1)))
    refused(pickle.dumps({'data': [1], 'labels': [1]}))
    refused(pickle.dumps({'data': np.zeros((1, 3072), np.uint8), 'labels': [{}]}))
    refused(pickle.dumps([1, 2]))
    refused(pickle.dumps({'labels': [1]}))
    many = b'\x80\x02]' + b'q\x00(h\x00h\x00e' * 3 + b'.'  # a list within itself
    refused(many)
