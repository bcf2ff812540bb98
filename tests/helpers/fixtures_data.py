"""Real data sets that several test modules read."""

import fcntl
import functools
import importlib.util
import io
import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from si_jax import data

CIFAR10_EACH = 400  # of the images of each training file of CIFAR-10; its test file is whole


@functools.cache
def cifar10_files(shared) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels by the authors' names of files: the whole test set, and the first of the others."""
    names = {f'data_batch_{part}': f'cifar10_train_{part}.npz' for part in range(1, 6)}
    found = {}
    for name, file in (names | {'test_batch': 'cifar10_test.npz'}).items():
        first = slice(None if name == 'test_batch' else CIFAR10_EACH)
        with np.load(shared / 'data' / file) as arrays:
            found[name] = arrays['images'][first], arrays['labels'][first]
    return found


@pytest.fixture(scope='session')
def tfds_cifar10(shared, tmp_path_factory, worker_id) -> pathlib.Path:
    """A data_dir of TensorFlow Datasets with these images of CIFAR-10, prepared by TFDS itself."""
    pytest.importorskip('tensorflow_datasets')
    if importlib.util.find_spec('tensorflow') is None:
        pytest.skip('preparing a TFDS data set needs tensorflow')
    # Workers have folders side by side: one prepares it for all.
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == 'master' else own.parent) / 'tfds'
    with open(f'{folder}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / 'downloads').exists() or not folder.exists():
            _download(cifar10_files(shared), folder)
            data.load('cifar10', 'train', folder)  # which prepares both splits
            shutil.rmtree(folder / 'downloads')
    return folder


def _download(files: dict[str, tuple[np.ndarray, np.ndarray]], folder: pathlib.Path) -> None:
    """The archive of these files, binary as their authors publish it, where TFDS keeps finished downloads."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, resource

    builder = tfds.builder('cifar10', data_dir=str(folder))
    ((url, info),) = builder.url_infos.items()
    manager = download_manager.DownloadManager(
        dataset_name='cifar10', download_dir=str(folder / 'downloads'), url_infos=builder.url_infos
    )
    archive = pathlib.Path(manager._get_dl_path(resource.Resource(url=url), info.checksum))
    archive.parent.mkdir(parents=True, exist_ok=True)
    contents = {'batches.meta.txt': ''.join(f'{name}\n' for name in data.SOURCES['cifar10'].classes).encode()}
    for name, (images, labels) in files.items():  # a byte for the label, then the channels one by one
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        contents[f'{name}.bin'] = np.concatenate([labels[:, None], rows], axis=1).astype(np.uint8).tobytes()
    with tarfile.open(archive, 'w:gz', compresslevel=1) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    about = {'original_fname': 'cifar-10-binary.tar.gz', 'urls': [url], 'dataset_names': ['cifar10']}
    pathlib.Path(resource.get_info_path(archive)).write_text(json.dumps(about))
