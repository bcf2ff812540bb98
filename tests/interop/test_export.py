"""The command that exports a run, and what it refuses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import models
from si_jax.cli import export as command
from si_jax.errors import InputError
from si_jax.interop import export
from si_jax.interop.loading import is_torch_module

torch = pytest.importorskip('torch', reason='exports to PyTorch')


@pytest.fixture
def run(monkeypatch):
    """A run of the small network, as load_model returns it."""
    model = models.create('small_cnn', num_classes=10, width=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.float32))
    settings = types.SimpleNamespace(arch='small_cnn', variant='', normalise='none', activation='relu')
    config = types.SimpleNamespace(model=settings)
    asked = []

    def load_model(workdir, checkpoint):
        asked.append((str(workdir), checkpoint))
        return types.SimpleNamespace(module=model, variables=variables, config=config, step=7)

    monkeypatch.setattr(command, 'load_model', load_model)
    return model, variables, asked


def test_command_writes_weights_and_module(run, tmp_path, capsys):
    model, variables, asked = run
    command.main([f'--workdir={tmp_path}', '--checkpoint=300'])
    assert asked == [(str(tmp_path), 300)]
    path = tmp_path / 'export' / 'model.py'
    assert str(path) in capsys.readouterr().out
    text = path.read_text()
    assert 'si_jax.interop' not in text and 'import si_jax' not in text
    namespace = {'__file__': str(path), '__name__': 'model'}
    exec(text, namespace)
    module = namespace['build']()
    assert is_torch_module(module) and not is_torch_module(model)
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    with torch.no_grad():
        logits = module(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, model.apply(variables, images).logits, rtol=0, atol=1e-6)


def test_an_activation_is_exported(tmp_path):
    model = models.create('wrn_10_1', num_classes=10, width=2, activation='silu')
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    outputs, variables = jax.jit(lambda key: model.init_with_output(key, images))(jax.random.key(0))
    path = export.export(variables, tmp_path, arch='wrn_10_1', activation='silu')
    namespace = {'__file__': str(path), '__name__': 'model'}
    exec(path.read_text(), namespace)
    with torch.no_grad():
        exported = namespace['build']()(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(outputs.logits, exported, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('arch', ['resnet18', 'preact_resnet18', 'wrn_10_1', 'small_cnn'])
def test_grey_images_and_hypersphere_embedding_are_exported(arch, tmp_path):
    model = models.create(arch, num_classes=4, width=2, hypersphere=True)
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    outputs, variables = jax.jit(lambda key: model.init_with_output(key, images))(jax.random.key(0))
    path = export.export(variables, tmp_path, arch=arch)
    namespace = {'__file__': str(path), '__name__': 'model'}
    exec(path.read_text(), namespace)
    with torch.no_grad():
        logits = namespace['build']()(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, outputs.logits, rtol=0, atol=1e-5)


def test_command_reports_a_wrong_workdir(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([f'--workdir={tmp_path}'])
    assert stopped.value.code == 2
    assert 'config.json is missing' in capsys.readouterr().err


def test_unknown_names_and_nan_are_refused(run, tmp_path):
    _, variables, _ = run
    with pytest.raises(InputError, match=r"unknown format 'safetensor': did you mean safetensors"):
        export.export(variables, tmp_path, arch='small_cnn', format='safetensor')
    with pytest.raises(InputError, match=r"unknown normalisation 'cifar'"):
        export.export(variables, tmp_path, arch='small_cnn', normalise='cifar')
    with pytest.raises(InputError, match=r"unknown variant of small_cnn 'gat'"):
        export.export(variables, tmp_path, arch='small_cnn', variant='gat')
    broken = jax.tree.map(lambda x: x * jnp.nan, variables)
    with pytest.raises(InputError, match='the network holds values that are NaN'):
        export.export(broken, tmp_path, arch='small_cnn')
    assert not list(tmp_path.iterdir())
