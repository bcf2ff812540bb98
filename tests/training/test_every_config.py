"""Every config builds, reads its data set and takes a step, on the smallest network."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import models
from si_jax.runtime import devices
from si_jax.training import recipes
from si_jax.training.setup import compile_train_step, feed_of, initial_carry, initial_state, setup
from si_jax.training.update import Calendar, metric_names
from si_jax.zoo import load as load  # registers the reader of a helper
from si_jax.zoo import weights
from tests.helpers import tiny

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(path.stem for path in FOLDER.glob('[a-z]*_*.py'))
# The same runs on other data sets: they differ from those on CIFAR-10 in the name of the set alone, which a
# test holds, and one of each set takes a step.
ELSEWHERE = [name for name in CONFIGS if not name.endswith('_cifar10')]
STEPPED = [name for name in CONFIGS if name not in ELSEWHERE] + [
    'tradessi_cifar100',
    'mart_svhn',
    'dkl_cifar100',
]


@pytest.fixture(autouse=True)
def smallest(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, 'tiny', tiny.ROW)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder with a few random images under the name of each data set."""
    folder, rng = tmp_path_factory.mktemp('npz'), np.random.default_rng(0)
    for name, classes in (('cifar10', 10), ('cifar100', 100), ('svhn', 10)):
        for split, count in (('train', 24), ('test', 8)):
            pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            labels = rng.integers(0, classes, count).astype(np.uint8)
            np.savez(folder / f'{name}_{split}.npz', images=pixels, labels=labels)
    np.savez(folder / 'extra.npz', image=pixels.repeat(3, 0), label=np.arange(24) % 10)
    return folder


def ready_for(config, images, **changes):
    config.update_from_flattened_dict(
        {'data.dir': str(images), 'data.validation': 8, 'batch_size': 16, 'attack.steps': 1, 'model.width': 2}
        | changes
    )
    return setup(config)


def take_a_step(ready):
    state = devices.replicate(initial_state(ready))
    before = jax.device_get(state.params)
    carry = devices.shard_rows(initial_carry(ready))
    state, _, metrics = compile_train_step(ready)(state, carry, *feed_of(ready)(0))
    assert int(state.step) == 1 and int(state.bad_step) == -1
    assert metrics.dtype == jnp.dtype('float32')
    metrics = dict(zip(metric_names(ready.defense), metrics.tolist(), strict=True))
    assert np.isfinite(metrics['loss'])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params)
    # A triangular schedule begins with a rate of 0.
    assert any(jax.tree.leaves(moved)) == (float(ready.schedule(0)) > 0)
    return state.params, state.batch_stats, metrics


def config_of(name, options):
    return importlib.import_module(f'configs.{name}').get_config(options)


@pytest.mark.parametrize('name', ELSEWHERE)
def test_a_run_on_another_data_set_differs_in_that_alone(name):
    method, _, dataset = name.rpartition('_')
    config, other = (recipes.plain(config_of(one, 'small_cnn')) for one in (name, f'{method}_cifar10'))
    assert config['data'].pop('name') == dataset and other['data'].pop('name') == 'cifar10'
    assert config == other


@pytest.mark.parametrize('name', STEPPED)
def test_takes_a_step(name, images):
    config = config_of(name, 'wrn_10_1' if name.startswith('dajat') else 'small_cnn')
    if config.data.extra:  # of a recipe with generated images
        config.data.extra = str(images / 'extra.npz')
    if config.defense.name == 'hat':
        config.model.width, config.model.arch = 2, 'tiny'
        config.defense.helper = str(images / 'helper.npz')
        network = models.from_config(config.model, num_classes=10)
        variables = network.init(jax.random.key(5), jnp.zeros((1, 32, 32, 3)))
        weights.write(config.defense.helper, recipes.plain(config), 1, variables)
    config.init_from = ''  # of a recipe that goes on from a network
    ready = ready_for(config, images, **{'model.arch': 'tiny'})
    method, _, dataset = name.rpartition('_')
    assert ready.train.name == dataset and ready.train.num_classes == (100 if dataset == 'cifar100' else 10)
    assert ready.train.flip == (dataset != 'svhn') and ready.train.crop == 4
    params, _, metrics = take_a_step(ready)
    assert ('si_margin_ce' in metrics) == (method.endswith('si') or method == 'tradesreg')
    last = params['linear']
    assert ('bias' in last) != method.endswith('he')
    lengths = np.linalg.norm(last['kernel'], axis=0)
    assert bool(np.allclose(lengths, 1, atol=1e-6)) == method.endswith('he')
    position = Calendar(ready.steps_per_epoch, 1).at(
        jnp.asarray(0), ready.defense.first_memory(ready.train.num_classes)
    )
    terms = ready.defense.outer.items()
    weighted = sum(float(term.weight_at(position)) * metrics[term_name] for term_name, term in terms)
    assert float(metrics['loss']) == pytest.approx(weighted, rel=1e-5)


def test_bfloat16_keeps_parameters_and_losses_in_float32(images):
    config = importlib.import_module('configs.tradessi_cifar10').get_config('small_cnn')
    ready = ready_for(config, images, **{'model.dtype': 'bfloat16'})
    params, stats, _ = take_a_step(ready)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {jnp.dtype('float32')}
    program = str(jax.make_jaxpr(ready.model.apply)(
        {'params': params}, jnp.zeros((1, 32, 32, 3), jnp.float32)
    ))  # fmt: skip
    assert 'bf16' in program
