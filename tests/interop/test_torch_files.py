"""Files of weights are read without running what is in them, and damaged ones are refused."""

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.interop import torch_files, torch_weights
from si_jax.storage import npz

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


def weights(**more):
    return {'conv1.weight': torch.ones(2, 3, 3, 3), **more}


# Name -> tensors that no network here can have, and what is said of them.
UNFIT = {
    'complex': (lambda: torch.ones(2, dtype=torch.complex64), "'w' is complex .* real part"),
    'sparse': (lambda: torch.eye(3).to_sparse(), r"'w' is no dense tensor .* to_dense\(\)"),
    'quantised': (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        r"'w' is quantised .* dequantize\(\)",
    ),
    'meta': (lambda: torch.ones(3, device='meta'), "'w' is on the device meta, which holds no values"),
    'expanded': (
        lambda: torch.zeros(1, dtype=torch.half).expand(750_000_000),
        "would take 1500000.* values are repeated, as in 'w', .*contiguous",
    ),
}


@pytest.mark.filterwarnings('ignore::UserWarning')  # of PyTorch, which gives quantised tensors up
@pytest.mark.parametrize('kind', UNFIT)
def test_tensors_that_are_no_weights_are_named(tmp_path, kind):
    make, words = UNFIT[kind]
    torch.save(weights(w=make()), tmp_path / 'model.pt')
    with pytest.raises(InputError, match=rf'model\.pt: .*{words}'):
        torch_weights.load(tmp_path / 'model.pt', 'resnet18')


@pytest.mark.parametrize('dtype', [np.complex64, 'm8[s]', object, 'U3'])
def test_arrays_that_are_no_weights_are_named(dtype):
    with pytest.raises(InputError, match="'w' is of .*, and weights are real numbers"):
        torch_weights.state_arrays({'w': np.zeros(3, dtype)})


def test_the_remedies_are_taken():
    sparse, half = torch.eye(3).to_sparse().to_dense(), torch.zeros(1, dtype=torch.half).expand(9)
    real = torch.ones(2, dtype=torch.complex64).real
    arrays = torch_weights.state_arrays({'a': sparse, 'b': real, 'c': half})
    assert all(array.dtype == np.float32 for array in arrays.values()) and arrays['c'].shape == (9,)


def test_many_views_of_one_tensor_are_refused_and_tied_weights_are_not(monkeypatch):
    monkeypatch.setattr(npz, 'SUSPECT', 1000)
    one = torch.ones(1000)
    assert len(torch_weights.state_arrays({'a': one, 'b': one.view(10, 100)})) == 2
    with pytest.raises(InputError, match='would take 400000 bytes, and it holds 4000'):
        torch_weights.state_arrays({f'a{i}': one for i in range(100)})


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path):
    loop = {'epoch': 1}
    loop['model'] = {'net': loop}
    torch.save(loop, tmp_path / 'model.pt')
    with pytest.raises(InputError, match=r"model\.pt: no weights found: its entry 'model' leads back"):
        torch_weights.load(tmp_path / 'model.pt', 'resnet18')


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    torch.save(weights(), tmp_path / 'model.pt')
    with zipfile.ZipFile(tmp_path / 'model.pt', 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data/1', bytes(10**6))
    monkeypatch.setattr(npz, 'SUSPECT', 10**5)
    with pytest.raises(InputError, match=r'model\.pt is refused: .* would take 100\d+ bytes'):
        torch_files.read(tmp_path / 'model.pt')
