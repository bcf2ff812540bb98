import numpy as np
import pytest

from si_jax import data
from si_jax.errors import InputError
from tests.helpers.own_data import write_npz


def save(folder, name, n, first=0, **change):
    """A small made file in the layout of CIFAR-10; `first` marks its pixels."""
    arrays = {
        'images': np.full((n, 32, 32, 3), first, np.uint8)
        + np.arange(n, dtype=np.uint8)[:, None, None, None],
        'labels': (np.arange(n) % 10).astype(np.uint8),
    }
    np.savez(folder / name, **{k: v for k, v in (arrays | change).items() if v is not None})


def test_reads_images_and_labels(tmp_path):
    save(tmp_path, 'cifar10_test.npz', 12, lossy_idx=np.array([3]))
    test = data.load('cifar10', 'test', tmp_path)
    assert test.name == 'cifar10' and test.images.shape == (12, 32, 32, 3) and test.images.dtype == np.uint8
    assert test.labels.dtype == np.int32
    np.testing.assert_array_equal(test.images[:, 5, 5, 1], np.arange(12))
    np.testing.assert_array_equal(test.labels, np.arange(12) % 10)
    assert (test.num_classes, test.scale, test.crop, test.flip) == (10, 255, 4, True)


def test_training_parts_are_joined_in_their_order(tmp_path):
    for part in range(10, 0, -1):
        save(tmp_path, f'cifar10_train_{part}.npz', 2, first=10 * part)
    train = data.load('cifar10', 'train', str(tmp_path))
    np.testing.assert_array_equal(train.images[::2, 0, 0, 0], [10 * part for part in range(1, 11)])


def test_each_split_needs_its_own_files_only(tmp_path):
    save(tmp_path, 'svhn_test.npz', 4)
    assert len(data.load('svhn', 'test', tmp_path).labels) == 4
    with pytest.raises(InputError, match=r'has no svhn_train\.npz, nor svhn_train_1\.npz'):
        data.load('svhn', 'train', tmp_path)
    (tmp_path / 'svhn_test.npz').rename(tmp_path / 'svhn_train.npz')
    assert len(data.load('svhn', 'train', tmp_path).labels) == 4
    with pytest.raises(InputError, match=r'has no svhn_test\.npz.*--config\.data\.dir=FOLDER'):
        data.load('svhn', 'test', tmp_path)


def test_cifar10_files_are_not_taken_for_cifar100(tmp_path):
    save(tmp_path, 'cifar10_test.npz', 4)
    with pytest.raises(
        InputError, match=r'has npz files \(cifar10_test\.npz, \.\.\.\), but none of cifar100'
    ):
        data.load('cifar100', 'test', tmp_path)


BAD = {
    'float images': ({'images': np.zeros((3, 32, 32, 3), np.float32)}, 'images are float32, not uint8'),
    'other shape': (
        {'images': np.zeros((3, 28, 28, 1), np.uint8)},
        r'shape \(3, 28, 28, 1\), not \(N, 32, 32, 3\)',
    ),
    'channels first': ({'images': np.zeros((3, 3, 32, 32), np.uint8)}, r'not \(N, 32, 32, 3\)'),
    'flat images': ({'images': np.zeros((3, 3072), np.uint8)}, r'shape \(3, 3072\)'),
    'time spans': ({'labels': np.zeros(3, 'm8[s]')}, r'labels are timedelta64\[s\], not integers'),
    'float labels': ({'labels': np.zeros(3)}, 'labels are float64, not integers'),
    'one-hot labels': ({'labels': np.eye(10, dtype=np.uint8)[:3]}, r'labels have shape \(3, 10\)'),
    'too few labels': (
        {'labels': np.zeros(2, np.uint8)},
        r'labels have shape \(2,\) for images \(3, 32, 32, 3\)',
    ),
    'no image': (
        {'images': np.zeros((0, 32, 32, 3), np.uint8), 'labels': np.zeros(0, np.uint8)},
        'at least one image',
    ),
    'label too large': ({'labels': np.array([0, 10, 3])}, r'label 10 of image 1 is not in \[0, 9\]'),
    'label negative': ({'labels': np.array([0, 1, -1])}, r'label -1 of image 2 is not in \[0, 9\]'),
    'no labels': ({'labels': None}, r"has no array 'labels', only \['images'\]"),
    'pickled labels': (
        {'labels': np.array([0, 'a', None], dtype=object)},
        "holds Python objects as 'labels'",
    ),
}


@pytest.mark.parametrize('change, message', BAD.values(), ids=BAD)
def test_wrong_arrays_are_errors_that_name_the_file(tmp_path, change, message):
    save(tmp_path, 'cifar10_test.npz', 3, **change)
    with pytest.raises(InputError, match=message) as caught:
        data.load('cifar10', 'test', tmp_path)
    assert str(tmp_path / 'cifar10_test.npz') in str(caught.value)


def test_a_bad_part_of_several_is_named(tmp_path):
    save(tmp_path, 'cifar10_train_1.npz', 3)
    save(tmp_path, 'cifar10_train_2.npz', 3, labels=np.array([1, 2, 77]))
    with pytest.raises(InputError, match=r'cifar10_train_2\.npz: label 77 of image 2'):
        data.load('cifar10', 'train', tmp_path)


@pytest.mark.parametrize('kept', [0, 10, 0.5, 0.99])
def test_truncated_file(tmp_path, kept):
    path = tmp_path / 'cifar10_test.npz'
    save(tmp_path, path.name, 3)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match=r'cifar10_test\.npz cannot be read as an npz file .*truncated'):
        data.load('cifar10', 'test', tmp_path)


def test_damaged_bytes_inside(tmp_path):
    path = tmp_path / 'cifar10_test.npz'
    save(tmp_path, path.name, 3)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1  # a pixel: the checksum of the archive tells
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match='cannot be read as an npz file .*CRC'):
        data.load('cifar10', 'test', tmp_path)


@pytest.mark.parametrize(
    'write',
    [
        lambda path: path.write_text('hello'),
        lambda path: path.mkdir(),
        lambda path: np.save(path, np.zeros(3)) or path.with_suffix('.npz.npy').rename(path),
    ],
    ids=['text', 'folder', 'npy'],
)
def test_not_an_npz_file(tmp_path, write):
    path = tmp_path / 'cifar10_test.npz'
    write(path)
    with pytest.raises(InputError, match='cannot be read as an npz file'):
        data.load('cifar10', 'test', tmp_path)


def test_real_cifar10(shared):
    test = data.load('cifar10', 'test', shared / 'data')
    assert test.images.shape == (10000, 32, 32, 3)
    np.testing.assert_array_equal(test.labels[:10], [3, 8, 8, 0, 6, 6, 1, 6, 3, 1])
    np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)
    train = data.load('cifar10', 'train', shared / 'data')
    assert train.images.shape == (50000, 32, 32, 3)
    means = train.images.mean((0, 1, 2), dtype=np.float64) / train.scale
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)


def test_real_cifar100(shared):
    test = data.load('cifar100', 'test', shared / 'data')
    assert test.images.shape == (10000, 32, 32, 3) and test.num_classes == 100
    np.testing.assert_array_equal(np.bincount(test.labels), [100] * 100)


def test_real_svhn(shared, tmp_path):
    source = shared / 'data' / 'svhn_train_head1083.npz'
    for name in ('svhn_train.npz', 'svhn_test.npz'):
        (tmp_path / name).symlink_to(source)
    for split in ('train', 'test'):
        part = data.load('svhn', split, tmp_path)
        assert part.images.shape == (1083, 32, 32, 3) and part.num_classes == 10
        assert set(part.labels) == set(range(10)) and not part.flip and part.crop == 4


def test_parts_are_the_whole_or_numbered_without_gaps_and_nothing_else(tmp_path):
    names = [f'cifar10_train_{part}.npz' for part in (1, 2)]
    for name in names:
        save(tmp_path, name, 2)
    save(tmp_path, 'cifar10_test.npz', 2)

    def refused(name, words):
        save(tmp_path, name, 2)
        with pytest.raises(InputError) as caught:
            data.load('cifar10', 'train', tmp_path)
        assert all(word in str(caught.value) for word in [str(tmp_path), name, *words]), caught.value
        assert len(data.load('cifar10', 'test', tmp_path).labels) == 2  # which needs no training set

    refused('cifar10_train.npz', ['both', 'cifar10_train_1.npz', 'Leave the whole file there, or its parts'])
    (tmp_path / 'cifar10_train.npz').unlink()
    for name in (
        'cifar10_train_extra.npz',
        'cifar10_training.npz',
        'cifar10_train_01.npz',
        'cifar10_train_0.npz',
    ):
        refused(name, ['move it to another folder', 'call it cifar10_train_3.npz'])
        (tmp_path / name).rename(tmp_path / 'cifar10_train_3.npz')  # as it says
        assert len(data.load('cifar10', 'train', tmp_path).labels) == 6
        (tmp_path / 'cifar10_train_3.npz').unlink()
    refused('cifar10_train_99999999999.npz', ['no cifar10_train_3.npz', 'without gaps'])
    (tmp_path / 'cifar10_train_99999999999.npz').unlink()
    train = data.load('cifar10', 'train', tmp_path)
    assert train.files == tuple(str(tmp_path / name) for name in names)
    # A whole file and another: both become parts, as it says.
    for name in names:
        (tmp_path / name).unlink()
    save(tmp_path, 'cifar10_train.npz', 2)
    refused(
        'cifar10_train_generated.npz',
        ['call it cifar10_train_2.npz, and cifar10_train.npz cifar10_train_1.npz'],
    )
    (tmp_path / 'cifar10_train_generated.npz').rename(tmp_path / 'cifar10_train_2.npz')
    (tmp_path / 'cifar10_train.npz').rename(tmp_path / 'cifar10_train_1.npz')
    assert len(data.load('cifar10', 'train', tmp_path).labels) == 4


def test_a_single_file_of_another_name_says_how_to_call_it(tmp_path):
    save(tmp_path, 'svhn_train_head.npz', 3)
    with pytest.raises(InputError, match=r'svhn_train_head\.npz, .* call it svhn_train\.npz'):
        data.load('svhn', 'train', tmp_path)
    (tmp_path / 'svhn_train_head.npz').rename(tmp_path / 'svhn_train.npz')
    assert len(data.load('svhn', 'train', tmp_path).labels) == 3


def test_digits_are_read_from_a_folder_that_has_them(tmp_path):
    images = np.full((2, 8, 8, 1), 16, np.uint8)
    np.savez(tmp_path / 'digits_train.npz', images=images, labels=np.array([3, 4]))
    train = data.load('digits', 'train', tmp_path)
    assert list(train.labels) == [3, 4] and train.scale == 16 and train.images.max() == 16
    np.savez(tmp_path / 'digits_train.npz', images=images + 1, labels=np.array([3, 4]))
    with pytest.raises(InputError, match='images go up to 17, where white is 16'):
        data.load('digits', 'train', tmp_path)
    assert data.load('digits', 'train').files == ('scikit-learn',)


def test_a_folder_of_its_own_says_shape_counts_and_classes(tmp_path):
    write_npz(tmp_path, shape=(28, 20, 2), classes=3, each=9)
    source = data.describe(f'npz:{tmp_path}')
    assert (source.shape, source.num_classes, source.train_images) == ((28, 20, 2), 3, 9)
    train = data.load(f'npz:{tmp_path}', 'train')
    assert train.images.shape == (9, 28, 20, 2) and train.labels.dtype == np.int32 and train.classes == ()
    assert (train.name, train.scale, train.crop, train.flip) == (f'npz:{tmp_path}', 255, 0, False)
    assert train.files == (str(tmp_path / 'train.npz'),)
    (tmp_path / 'classes.txt').write_text('cat\ndog\nnewt\n')
    assert data.load(f'npz:{tmp_path}', 'test').classes == ('cat', 'dog', 'newt')
    moved = data.load('npz:elsewhere', 'test', tmp_path)  # the folder replaces that in the name
    np.testing.assert_array_equal(moved.images, data.load(f'npz:{tmp_path}', 'test').images)


def test_parts_of_a_folder_of_its_own(tmp_path):
    write_npz(tmp_path, each=6)
    (tmp_path / 'train.npz').rename(tmp_path / 'train_1.npz')
    assert len(data.load(f'npz:{tmp_path}', 'train').labels) == 6
    (tmp_path / 'training.txt').touch()
    with pytest.raises(InputError, match=r'training\.txt, which is neither train\.npz nor a numbered part'):
        data.load(f'npz:{tmp_path}', 'train')


def test_names_in_an_array(tmp_path):
    write_npz(tmp_path)
    with np.load(tmp_path / 'test.npz') as found:
        arrays = dict(found)
    np.savez(tmp_path / 'test.npz', **arrays, classes=np.array(['cat', 'dog', 'newt']))
    assert data.load(f'npz:{tmp_path}', 'train').classes == ('cat', 'dog', 'newt')
    (tmp_path / 'classes.txt').write_text('cat\ndog\nowl\n')
    with pytest.raises(InputError, match=r'classes\.txt and test\.npz name other classes'):
        data.load(f'npz:{tmp_path}', 'train')
    (tmp_path / 'classes.txt').unlink()
    np.savez(tmp_path / 'test.npz', **arrays, classes=np.arange(3))
    with pytest.raises(InputError, match=r'test\.npz: classes are int64 \(3,\), not one text a class'):
        data.load(f'npz:{tmp_path}', 'train')


@pytest.mark.parametrize(
    'train, test, names, words',
    [
        ([0, 1, 2], [0, 3], '', 'test.npz has label 3, which is not in train.npz, from 0 to 2'),
        ([0, 1, 2], [0, 1], 'cat\ndog\n', 'train.npz has label 2, which is not a name in 2 classes'),
        ([0, 1, 3], [0, 1], '', 'no training image of class 2'),
        ([0, 1, 10**9], [0, 1], '', 'no training image of class 2'),
        ([0, 1, 2], [0, 1], 'cat\ndog\nnewt\nowl\n', 'no training image of class 3 (owl)'),
        ([0, 0], [0], '', 'no training image of class 1'),
        ([0, -1], [0], '', 'not integers from 0'),
        ([0.0, 1.0], [0], '', 'labels are float64 (2,), not integers'),
    ],
)
def test_labels_that_do_not_fit(tmp_path, train, test, names, words):
    for split, labels in {'train': train, 'test': test}.items():
        np.savez(
            tmp_path / f'{split}.npz',
            images=np.zeros((len(labels), 4, 4, 1), np.uint8),
            labels=np.array(labels),
        )
    if names:
        (tmp_path / 'classes.txt').write_text(names)
    for split in ('train', 'test'):
        with pytest.raises(InputError) as caught:
            data.load(f'npz:{tmp_path}', split)
        assert words in str(caught.value), caught.value


def test_what_is_no_folder_of_arrays(tmp_path):
    def refused(words, **options):
        with pytest.raises(InputError) as caught:
            data.load(f'npz:{tmp_path / "set"}', 'test', **options)
        assert words in str(caught.value), caught.value

    refused('is no folder')
    (tmp_path / 'set').mkdir()
    refused('has neither train.npz nor test.npz')
    write_npz(tmp_path / 'set')
    refused('preprocessing=Crop8 is for folder: and tfds:', preprocessing='Crop8')
    np.savez(tmp_path / 'set' / 'train.npz', images=np.zeros((3, 8, 8)), labels=np.arange(3))
    refused('has no array `images` [N, height, width, channels]')
    np.savez(tmp_path / 'set' / 'train.npz', images=np.zeros((3, 8, 8, 1), np.uint8), labels=np.arange(3))
    refused('test.npz: images have shape (24, 28, 28, 1), not (N, 8, 8, 1)')
    np.savez(tmp_path / 'set' / 'train.npz', x=np.zeros((3, 8, 8, 1), np.uint8), y=np.arange(3))
    refused('if it calls them x and y')
    (tmp_path / 'set' / 'test.npz').unlink()
    write_npz(tmp_path / 'set')
    (tmp_path / 'set' / 'test.npz').unlink()
    refused('has no test.npz')
