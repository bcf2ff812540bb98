import ast
import enum
import importlib.util
import json
import os
import pathlib
import pickle
import shlex
import shutil
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import scipy.io

from si_jax import data
from si_jax.data.stream import Lazy
from si_jax.errors import InputError
from tests.helpers.fixtures_data import cifar10_files

VERSION = 'cifar10/3.0.2'


@pytest.fixture
def no_network(monkeypatch):
    """As on a machine without a network, or a proxy to one."""

    def fail(host, *_):
        raise socket.gaierror(f'no {host}')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    monkeypatch.setattr('urllib.request.getproxies', dict)


@pytest.fixture
def prepared_by(monkeypatch):
    """Records the commands that would prepare data, and ends them with a chosen exit status."""
    ran = []

    def choose(status):
        def run(arguments, **_):
            ran.append(arguments)
            return types.SimpleNamespace(returncode=status)

        monkeypatch.setattr(subprocess, 'run', run)
        return ran

    return choose


@pytest.mark.parametrize('split', ['train', 'test'])
def test_tfds_gives_the_original_order(tfds_cifar10, shared, split):
    files = [part for name, part in cifar10_files(shared).items() if ('test' in name) == (split == 'test')]
    images, labels = (np.concatenate(parts) for parts in zip(*files, strict=True))
    ours = data.load('cifar10', split, tfds_cifar10)
    np.testing.assert_array_equal(ours.images, images)
    np.testing.assert_array_equal(ours.labels, labels)
    assert ours.images.dtype == np.uint8 and ours.labels.dtype == np.int32
    assert ours.classes == data.SOURCES['cifar10'].classes and (ours.crop, ours.flip) == (4, True)
    lazy = data.load('tfds:cifar10', split, tfds_cifar10, lazy=True)
    assert isinstance(lazy.images, Lazy) and lazy.classes == ours.classes and 'cifar10/3.0.2' in lazy.identity
    assert len(labels) == {'train': 2000, 'test': 10_000}[split]
    there, last = pickle.loads(pickle.dumps(lazy.images)), len(labels) - 1  # as in a worker process
    np.testing.assert_array_equal(there[[last, 0, 1234]], images[[last, 0, 1234]])
    np.testing.assert_array_equal(lazy.labels, labels)


def test_reading_imports_no_tensorflow(tfds_cifar10):
    script = (
        'import sys; from si_jax import data; '
        f'assert len(data.load("cifar10", "train", {str(tfds_cifar10)!r}).labels) == 2000; '
        'assert "tensorflow_datasets" in sys.modules; assert "tensorflow" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_default_folder_is_that_of_tfds(tfds_cifar10):
    script = 'from si_jax import data; print(data.load("cifar10", "train", "").labels[:4].tolist())'
    environment = {'TFDS_DATA_DIR': str(tfds_cifar10)}
    done = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.stdout == '[6, 9, 9, 4]\n', done.stderr


@pytest.fixture(scope='module')
def svhn_downloads(shared, tmp_path_factory):
    """A download folder of TFDS with the files of SVHN, which hold 1,083 real images each."""
    pytest.importorskip('tensorflow_datasets')
    if importlib.util.find_spec('tensorflow') is None:
        pytest.skip('preparing a TFDS data set needs tensorflow')
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, resource

    downloads = tmp_path_factory.mktemp('svhn') / 'downloads'
    urls = tfds.builder('svhn_cropped', data_dir=str(downloads.parent)).url_infos
    manager = download_manager.DownloadManager(
        dataset_name='svhn_cropped', download_dir=str(downloads), url_infos=urls
    )
    with np.load(shared / 'data' / 'svhn_train_head1083.npz') as real:
        images, labels = real['images'], real['labels']
    for url, info in urls.items():
        path = pathlib.Path(manager._get_dl_path(resource.Resource(url=url), info.checksum))
        path.parent.mkdir(parents=True, exist_ok=True)
        # As in the original files: images last, and the digit 0 under the label 10.
        mat = {'X': images.transpose(1, 2, 3, 0), 'y': np.where(labels == 0, 10, labels)[:, None]}
        with path.open('wb') as stream:
            scipy.io.savemat(stream, mat)
        content = {'original_fname': url.rpartition('/')[2], 'urls': [url], 'dataset_names': ['svhn_cropped']}
        pathlib.Path(resource.get_info_path(path)).write_text(json.dumps(content))
    return downloads


def assert_is_real_svhn(part, shared):
    with np.load(shared / 'data' / 'svhn_train_head1083.npz') as real:
        np.testing.assert_array_equal(part.images, real['images'])
        np.testing.assert_array_equal(part.labels, real['labels'])


def test_tfrecord_is_prepared_again_from_the_finished_download(
    svhn_downloads, tmp_path, shared, no_network, capfd
):
    (tmp_path / 'downloads').symlink_to(svhn_downloads)
    script = (
        f"import tensorflow_datasets as tfds; tfds.builder('svhn_cropped', data_dir={str(tmp_path)!r}, "
        "file_format='tfrecord').download_and_prepare()"
    )
    subprocess.run([sys.executable, '-c', script], check=True)
    assert list(tmp_path.glob('svhn_cropped/3.1.0/*.tfrecord*'))
    capfd.readouterr()

    assert_is_real_svhn(data.load('svhn', 'test', tmp_path), shared)
    assert list(tmp_path.glob('array_record/svhn_cropped/3.1.0/*.array_record*'))
    assert 'preparing it, once, with TensorFlow' in capfd.readouterr().err

    train = data.load('svhn', 'train', tmp_path)
    assert 'preparing it' not in capfd.readouterr().err  # what was made is found
    assert_is_real_svhn(train, shared)
    assert not train.flip and train.num_classes == 10


def test_missing_folder_names_the_command(tmp_path):
    folder = tmp_path / 'absent'
    with pytest.raises(InputError, match='is not there') as caught:
        data.load('cifar10', 'train', folder)
    message = str(caught.value)
    assert str(folder) in message
    assert '--config.data.dir=FOLDER' in message and 'cifar10_test.npz' in message
    command = next(line.strip() for line in message.splitlines() if line.strip().startswith('python -c '))
    for part in ('download_and_prepare', 'tfds.builder(', 'array_record', str(folder)):
        assert part in command
    assert command.startswith("python -c 'import ") and '\\' not in command and command.count("'") == 2
    assert not folder.exists()
    with pytest.raises(InputError) as caught:
        data.load('cifar10', 'train', tmp_path / 'it\'s "é"')
    (_, _, script) = shlex.split(next(line for line in str(caught.value).splitlines() if ' -c ' in line))
    texts = [node.value for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Constant)]
    assert str(tmp_path / 'it\'s "é"') in texts


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='is not a folder'):
        data.load('cifar10', 'train', tmp_path / 'file')


@pytest.mark.parametrize(
    'name, host',
    [
        ('cifar10', 'www.cs.toronto.edu'),
        ('cifar100', 'www.cs.toronto.edu'),
        ('svhn', 'ufldl.stanford.edu'),
    ],
)
def test_without_a_network_the_error_comes_at_once(tmp_path, no_network, prepared_by, name, host):
    ran = prepared_by(0)
    with pytest.raises(
        InputError, match=rf'(?s){name} is not prepared in .*{host} cannot be found.*python -c '
    ):
        data.load(name, 'train', tmp_path)
    assert not ran


def test_a_download_of_something_else_does_not_count(tmp_path, no_network, prepared_by):
    ran = prepared_by(0)
    (tmp_path / 'downloads').mkdir()
    (tmp_path / 'downloads' / 'mnist.gz.INFO').write_text('{"urls": ["https://example.org/mnist.gz"]}')
    with pytest.raises(InputError, match='cannot be found on the network'):
        data.load('cifar10', 'train', tmp_path)
    assert not ran


def test_failed_preparing_is_an_error_with_the_command(tmp_path, prepared_by, monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: [])
    ran = prepared_by(3)
    with pytest.raises(InputError, match=r'(?s)exit status 3.*pip install "si_jax.tfds.".*python -c '):
        data.load('svhn', 'test', tmp_path)
    ((python, _, script),) = ran
    assert python == sys.executable
    assert 'tfds.builder("svhn_cropped"' in script and f'data_dir="{tmp_path}"' in script


def test_proxy_counts_as_a_network(tmp_path, no_network, prepared_by, monkeypatch):
    monkeypatch.setattr('urllib.request.getproxies', lambda: {'https': 'http://proxy.example.org'})
    ran = prepared_by(1)
    with pytest.raises(InputError, match='exit status 1'):
        data.load('cifar10', 'test', tmp_path)
    assert len(ran) == 1


@pytest.mark.parametrize('name, kept', [('cifar10', 0), ('cifar10', 0.5), ('tfds:cifar10', 0.5)])
def test_truncated_records_are_an_error(tfds_cifar10, tmp_path, name, kept):
    shutil.copytree(tfds_cifar10 / VERSION, tmp_path / VERSION)
    (path,) = (tmp_path / VERSION).glob('cifar10-train.array_record*')
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r'(?s)3\.0\.2 is damaged .*delete that folder.*python -c '):
        data.load(name, 'train', tmp_path, lazy=True)


class FileFormat(enum.Enum):
    ARRAY_RECORD = 'array_record'


class Records(list):
    """What `tfds.data_source` returns, made of (id, label)."""

    def __getitems__(self, keys):
        image = np.zeros((32, 32, 3), np.uint8)
        return [{'id': self[i][0].encode(), 'label': self[i][1], 'image': image + self[i][1]} for i in keys]


@pytest.mark.parametrize(
    'name, ids',
    [
        ('cifar10', ['test_00002', 'test_00000', 'test_00001']),
        ('svhn', ['test_000002', 'test_000000', 'test_000001']),
    ],
)
def test_ids_give_the_original_order(tmp_path, monkeypatch, name, ids):
    use_records(monkeypatch, Records(zip(ids, [5, 3, 8], strict=True)))
    part = data.load(name, 'test', tmp_path)
    np.testing.assert_array_equal(part.labels, [3, 8, 5])
    np.testing.assert_array_equal(part.images[:, 1, 1, 1], [3, 8, 5])


@pytest.mark.parametrize('ids', [['test_00000', 'test_00000'], ['test_00000', 'test_00002']])
def test_missing_or_repeated_ids_are_an_error(tmp_path, monkeypatch, ids):
    use_records(monkeypatch, Records(zip(ids, [5, 3], strict=True)))
    with pytest.raises(InputError, match='ids are missing or repeated'):
        data.load('cifar10', 'test', tmp_path)


def use_records(monkeypatch, records):
    builder = types.SimpleNamespace(
        is_prepared=lambda: True,
        info=types.SimpleNamespace(available_file_formats=lambda: FileFormat),
        as_data_source=lambda split: records,
        data_path='made',
    )
    monkeypatch.setattr('si_jax.data.tfds._builder', lambda *_: builder)


def features(image, classes=3, **more):
    label = types.SimpleNamespace(num_classes=classes, names=['cat', 'dog', 'newt'][:classes])
    return {'image': types.SimpleNamespace(shape=image), 'label': label, **more}


def use_set(monkeypatch, kinds, images, splits=('train', 'validation'), ids=None):
    """Any set of TensorFlow Datasets, with these features and images."""

    class Items(list):
        def __getitems__(self, keys):
            return [self[i] for i in keys]

    items = [{'image': image, 'label': number % 3} for number, image in enumerate(images)]
    for item, one in zip(items, ids or [], strict=bool(ids)):
        item['id'] = one
    counts = {split: types.SimpleNamespace(num_examples=len(items), num_bytes=9) for split in splits}
    builder = types.SimpleNamespace(
        is_prepared=lambda: True,
        info=types.SimpleNamespace(
            available_file_formats=lambda: FileFormat, features=kinds, splits=counts, full_name='mine/1.0.0'
        ),
        as_data_source=lambda split, decoders=None: Items(items),
        data_path='made',
    )
    monkeypatch.setattr('si_jax.data.tfds._builder', lambda *_: builder)


def test_any_set_of_images_with_a_label(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 1), np.uint8)
    use_set(monkeypatch, features((9, 7, 1)), images)
    source = data.describe('tfds:mine', tmp_path)
    assert (source.shape, source.num_classes, source.train_images) == ((9, 7, 1), 3, 4)
    test = data.load('tfds:mine', 'test', tmp_path)  # there is no split of that name, but a validation split
    np.testing.assert_array_equal(test.images, images)
    assert list(test.labels) == [0, 1, 2, 0] and test.classes == ('cat', 'dog', 'newt') and test.scale == 255
    assert (test.crop, test.flip, test.files) == (0, False, (str(tmp_path),))
    use_set(monkeypatch, features((9, 7, 1)), images, ids=[b'x_3', b'x_0', b'x_2', b'x_1'])
    assert list(data.load('tfds:mine', 'test', tmp_path).labels) == [1, 0, 2, 0]  # in their original order
    use_set(monkeypatch, features((9, 7, 1)), images, ids=[b'a', b'b', b'c', 7])
    assert list(data.load('tfds:mine', 'test', tmp_path).labels) == [0, 1, 2, 0]  # as they are stored
    use_set(monkeypatch, features((9, 7, 1)), images, splits=('all',))
    with pytest.raises(InputError, match='mine has no train split, only all'):
        data.load('tfds:mine', 'train', tmp_path)


def test_a_set_of_several_sizes_needs_a_preprocessing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, side, 3), np.uint8) for side in (20, 30, 40)]
    use_set(monkeypatch, features((None, None, 3)), images)
    with pytest.raises(InputError, match='images of several sizes: give a preprocessing'):
        data.load('tfds:mine', 'train', tmp_path)
    train = data.load('tfds:mine', 'train', tmp_path, preprocessing='Crop20')
    np.testing.assert_array_equal(train.images[1], images[1][:, 5:25])


def test_what_is_no_set_of_images_with_a_label(tmp_path, monkeypatch):
    use_set(monkeypatch, {'text': 1, 'label': features((1, 1, 1))['label']}, [])
    with pytest.raises(InputError, match='has items of text, label, which is no set of images'):
        data.load('tfds:mine', 'train', tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match='data folder .*absent is not there') as caught:
        data.load('tfds:mnist', 'train', tmp_path / 'absent')
    message = str(caught.value)
    assert 'mnist' in message and 'download_and_prepare' in message and '_test.npz' not in message
    with pytest.raises(InputError, match="'mnits' cannot be found in TensorFlow Datasets"):
        data.load('tfds:mnits', 'train', tmp_path)
