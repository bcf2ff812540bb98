"""Files of weights are read without running what is in them, and damaged ones are refused."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.interop import torch_files

torch = pytest.importorskip('torch', reason='the files are of torch.save')
ARRAYS = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'count': np.zeros((), np.int64)}


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
def test_what_is_written_is_read(tmp_path, suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors', reason='writes the file')
    path = tmp_path / f'weights{suffix}'
    # Transposed, so that its memory is not in order.
    arrays = {**ARRAYS, 'b': np.arange(6.0).reshape(2, 3).T}
    torch_files.write(path, arrays)
    read = torch_files.read(path)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        value = np.asarray(read[name])
        assert value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / 'model.pt', tmp_path / 'trace'
    checkpoint = {'state_dict': {'w': torch.zeros(2)}, 'extra': Malicious(trace)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r'refused: it asks for (posix|nt)\.mkdir'):
        torch_files.read(path)
    assert not trace.exists()
    # The file does what the test says it would do, were it run.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / 'model.pth', tmp_path / 'trace'
    path.write_bytes(pickle.dumps({'w': Malicious(trace)}))
    with pytest.raises(InputError, match=r'model\.pth is (refused|truncated or damaged)'):
        torch_files.read(path)
    assert not trace.exists()


class Settings:
    """What a training script might store beside its weights."""


def test_a_class_of_the_authors_is_refused_by_name(tmp_path):
    path = tmp_path / 'model.pt'
    torch.save({'args': Settings(), 'state_dict': {}}, path)
    with pytest.raises(
        InputError, match=r'asks for tests\.interop\.test_torch_files\.Settings.*its state_dict'
    ):
        torch_files.read(path)


def test_an_archive_of_code_is_refused(tmp_path):
    path = tmp_path / 'model.pt'
    with pytest.warns(DeprecationWarning):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(InputError, match='TorchScript archive, which holds code'):
        torch_files.read(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('keep', [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, zipped, keep):
    path = tmp_path / 'model.pt'
    torch.save({'w': torch.arange(1000.0)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=r'model\.pt is truncated or damaged'):
        torch_files.read(path)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    pytest.importorskip('safetensors', reason='reads the file')
    path = tmp_path / 'model.safetensors'
    torch_files.write(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r'model\.safetensors is damaged'):
        torch_files.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r'nothing\.pt is not a file'):
        torch_files.read(tmp_path / 'nothing.pt')


def test_torch_is_imported_only_when_it_is_needed(tmp_path):
    """Without torch the modules import, and asking for it says how to install it."""
    (tmp_path / 'torch.py').write_text('raise ImportError("blocked")')
    program = (
        'import si_jax.interop.loading, si_jax.interop.export, si_jax.interop.torch_weights, sys\n'
        'assert "torch" not in sys.modules\n'
        'from si_jax.errors import InputError\n'
        'try: si_jax.interop.loading.load_torch_module(None)\n'
        'except InputError as error: print(error)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), os.getcwd()])}
    result = subprocess.run(
        [sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == 'PyTorch is not installed: pip install "si_jax[torch]"'
