"""Networks of this library as safetensors, on disk and from the Hub: read back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_array_equal

from si_jax import InputError, load_model
from si_jax.cli import subject
from si_jax.interop.torch_files import write as write_torch
from si_jax.storage import hub
from si_jax.training import recipes
from si_jax.zoo import weights
from si_jax.zoo.load import network, weights_to_start_from

pytest.importorskip('safetensors', reason='reads and writes its files')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A file, with the config and variables that it holds."""
    config = recipes.recipe('quickstart')
    config.model.width = 2
    config = ConfigDict(recipes.plain(config))
    _, shapes = network(config)
    keys = iter(jax.random.split(jax.random.key(0), 99))
    variables = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), shapes)
    path = tmp_path_factory.mktemp('saved') / 'model.safetensors'
    weights.write(path, config.to_dict(), 7, variables)
    return path, config, variables


def test_a_file_is_read_back_as_it_was(saved):
    path, config, variables = saved
    loaded = load_model(path)
    assert loaded.step == 7 and loaded.config.to_dict() == config.to_dict()
    jax.tree.map(assert_array_equal, loaded.variables, variables)
    logits = loaded(jnp.full((1, 8, 8, 1), 0.5)).logits
    assert_array_equal(logits, loaded.module.apply(variables, jnp.full((1, 8, 8, 1), 0.5)).logits)


def test_a_name_of_the_hub_stands_for_its_file(saved, monkeypatch):
    path, config, variables = saved
    monkeypatch.setattr(hub, 'local', lambda name: path if hub.is_address(name) else name)
    name = 'hf:owner/net@main'
    assert load_model(name).step == 7
    given = weights_to_start_from(name, config, (8, 8, 1), 'init_from', 'best')
    jax.tree.map(assert_array_equal, given.variables, variables)
    assert given.about['step'] == 7 and given.num_classes == 10
    flags = {flag: row.default for flag, row in (subject.NETWORK | subject.IMAGES).items()}
    loaded = subject.load(subject.Subject(**flags | {'model': name, 'num_examples': 3}))
    assert loaded.about == {'model': name, 'step': 7, 'sha256': weights.sha256(path)}
    assert loaded.stem == 'owner-net' and loaded.dataset == 'digits'


def test_what_is_not_ours_is_refused_with_the_way_to_read_it(tmp_path, saved):
    path, *_ = saved
    write_torch(tmp_path / 'torch.safetensors', {'fc.weight': np.ones((2, 3), np.float32)})
    with pytest.raises(InputError, match='--torch_checkpoint'):
        load_model(tmp_path / 'torch.safetensors')
    (tmp_path / 'cut.safetensors').write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match='damaged'):
        load_model(tmp_path / 'cut.safetensors')
    with pytest.raises(InputError, match='no file of weights'):
        load_model(tmp_path / 'none.safetensors')
