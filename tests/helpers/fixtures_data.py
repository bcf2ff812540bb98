"""Real data sets that several test modules read."""

import fcntl
import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope='session')
def tfds_cifar10(shared, tmp_path_factory, worker_id) -> pathlib.Path:
    """A data_dir of TensorFlow Datasets with the real CIFAR-10, prepared by TFDS (about 30 s)."""
    if importlib.util.find_spec('tensorflow') is None:
        pytest.skip('preparing a TFDS data set needs tensorflow')
    # Workers have folders side by side: one prepares it for all.
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == 'master' else own.parent) / 'tfds'
    tool = shared / 'tools' / 'make_tfds_cifar10.py'
    with open(f'{folder}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / 'downloads').exists() or not folder.exists():
            done = subprocess.run(
                [sys.executable, str(tool), str(folder)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-2000:]
            shutil.rmtree(folder / 'downloads')  # half of it all, and no longer needed
    return folder
