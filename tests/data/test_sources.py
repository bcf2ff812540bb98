import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from si_jax import data
from si_jax.errors import InputError
from tests.helpers.own_data import OWN, write_npz


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


def test_digits_come_from_scikit_learns_function_where_its_file_is_elsewhere(monkeypatch):
    before = data.load('digits', 'test')
    monkeypatch.setattr(pathlib.Path, 'is_file', lambda path: False)
    after = data.load('digits', 'test')
    np.testing.assert_array_equal(before.images, after.images)
    np.testing.assert_array_equal(before.labels, after.labels)
    assert before.images.dtype == after.images.dtype and before.labels.dtype == after.labels.dtype


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
    assert data.SOURCES['svhn'].described == 'TensorFlow Datasets, svhn_cropped'
    assert len(data.SOURCES['cifar10'].classes) == 10


def test_unknown_names_are_errors_with_the_near_ones():
    with pytest.raises(InputError, match="unknown data set 'cifar': did you mean cifar10"):
        data.load('cifar', 'test')
    with pytest.raises(InputError, match="unknown split 'tests': did you mean test"):
        data.load('digits', 'tests')


@pytest.fixture
def own(tmp_path):
    """A file that registers the set `rings`, which is forgotten afterwards."""
    path = tmp_path / 'own.py'
    path.write_text(OWN)
    yield path
    data.SOURCES.pop('rings', None)


def test_a_set_of_a_file_is_loaded_by_its_name(own):
    with pytest.raises(InputError, match="unknown data set 'rings'"):
        data.load('rings', 'train')
    train = data.load(f'{own}:rings', 'train')
    assert train.name == 'rings' and train.images.shape == (24, 28, 28, 1) and train.files == (str(own),)
    assert list(train.labels[:4]) == [0, 1, 2, 0] and train.classes == ('one', 'two', 'three')
    assert data.load('rings', 'test').scale == 16
    with pytest.raises(InputError, match=r"registers no data set 'disks', only rings"):
        data.load(f'{own}:disks', 'train')
    with pytest.raises(InputError, match=r'there is no file nowhere\.py'):
        data.load('nowhere.py:rings', 'train')
    own.write_text('import sys\nsys.exit(0)\n')
    with pytest.raises(InputError, match=r'called sys\.exit\(0\)'):
        data.load(f'{own}:rings', 'train')


ARRAYS = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2


@pytest.mark.parametrize(
    'change, words',
    [
        ({'read': 3}, 'read is not callable'),
        ({'shape': (8, 8)}, '(8, 8) is not (height, width, channels)'),
        ({'shape': (8, 0, 1)}, 'is not (height, width, channels)'),
        ({'num_classes': 1}, 'num_classes=1: there are at least two'),
        ({'classes': ('a', 'b', 'c')}, 'num_classes=2, and classes names 3'),
        ({'classes': ('a', 'a')}, "names the class 'a' twice"),
        ({'scale': 0}, 'scale=0'),
        ({'crop': -1}, 'crop=-1'),
    ],
)
def test_a_row_that_is_no_data_set_is_refused(change, words):
    row = data.Source(lambda split, folder: ARRAYS, (8, 8, 1), num_classes=2)._replace(**change)
    with pytest.raises(InputError) as caught:
        data.register('wrong', row)
    assert words in str(caught.value) and 'wrong' not in data.SOURCES


def test_names_that_cannot_be_registered():
    row = data.Source(lambda split, folder: ARRAYS, (8, 8, 1), num_classes=2)
    for name, words in {
        'cifar10': 'a row of this library',
        'npz:x': 'cannot be the name',
        '': 'cannot',
    }.items():
        with pytest.raises(InputError, match=words):
            data.register(name, row)
    with pytest.raises(InputError, match=r'must be a si_jax\.data\.Source, not tuple'):
        data.register('pair', ARRAYS)


@pytest.mark.parametrize(
    'made, words',
    [
        ((ARRAYS[0][..., 0], ARRAYS[1]), 'images have shape (4, 8, 8), not (N, 8, 8, 1)'),
        ((ARRAYS[0], ARRAYS[1] + 1), 'label 2 of image 1 is not in [0, 1]'),
        ([(ARRAYS[0][0], 0), (ARRAYS[0][0][:4], 0)], 'image 1 of the test split of made is uint8 (4, 8, 1)'),
        ([(ARRAYS[0][0] / 1, 0)], 'is float64 (8, 8, 1), not uint8 (8, 8, 1)'),
        ([(ARRAYS[0][0], 0.5)], 'label 0.5 of image 0 of the test split of made is no integer'),
        ([], 'at least one image'),
    ],
)
def test_what_a_reader_returns_is_checked(made, words):
    data.register('made', data.Source(lambda split, folder: made, (8, 8, 1), num_classes=2))
    try:
        with pytest.raises(InputError) as caught:
            data.load('made', 'test')
        assert words in str(caught.value), caught.value
    finally:
        del data.SOURCES['made']


def test_a_reader_gets_the_split_and_the_folder():
    asked = []

    def read(split, folder):
        asked.append((split, folder))
        return ARRAYS

    data.register('made', data.Source(read, (8, 8, 1), num_classes=2))
    try:
        assert len(data.load('made', 'train', 'there').labels) == 4
        data.load('made', 'test')
        assert asked == [('train', 'there'), ('test', None)]
        assert data.SOURCES['made'].code == str(pathlib.Path(__file__).resolve())
        with pytest.raises(InputError, match='preprocessing=Crop4 is for folder: and tfds:'):
            data.load('made', 'test', preprocessing='Crop4')
    finally:
        del data.SOURCES['made']


def test_names_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(write_npz(tmp_path / 'set').parent)
    assert data.canonical('npz:set') == f'npz:{tmp_path.resolve() / "set"}'
    assert data.canonical('folder:../x') == f'folder:{tmp_path.resolve().parent / "x"}'
    assert data.canonical('cifar10') == 'cifar10' and data.canonical('tfds:mnist') == 'tfds:mnist'
    assert data.load('npz:set', 'test').name == f'npz:{tmp_path.resolve() / "set"}'


def test_a_remembered_file_is_imported_if_it_is_what_it_was(own, tmp_path):
    section = {'name': 'rings', 'dir': None, 'preprocessing': '', 'num_classes': 3}
    data.canonical(f'{own}:rings')
    section |= data.facts('rings', data.SOURCES.pop('rings'))
    assert section['code'] == str(own.resolve()) and section['image_shape'] == (28, 28, 1)
    assert len(data.remembered(section, 'test').labels) == 24
    del data.SOURCES['rings']
    with pytest.raises(InputError, match='has 3 classes here, and had 4 when the network was trained'):
        data.remembered(section | {'num_classes': 4}, 'test')
    del data.SOURCES['rings']
    own.write_text(OWN.replace("'three'", "'four'"))
    with pytest.raises(InputError, match=r'has changed since \(SHA-256\).*give --dataset=FILE\.py:rings'):
        data.remembered(section, 'test')
    link = tmp_path / 'link.py'
    link.symlink_to(own)
    for gone in (tmp_path / 'gone.py', link):
        with pytest.raises(InputError, match='is not there: put it back'):
            data.remembered(section | {'code': str(gone)}, 'test')
    assert 'rings' not in data.SOURCES
    assert data.load(f'{own}:rings', 'test').classes[2] == 'four'  # by name it is run


def test_a_set_of_the_table_leaves_nothing_in_a_config():
    assert data.facts('cifar10', data.SOURCES['cifar10']) == {
        'image_shape': (), 'num_classes': 0, 'code': '', 'code_digest': '',
    }  # fmt: skip
