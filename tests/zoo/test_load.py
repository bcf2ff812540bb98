"""Networks read back from a workdir, through the library and through evaluate.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from configs import quickstart
from si_jax import InputError, data, load_model, models
from si_jax.cli import evaluate
from si_jax.training.checkpoints import Checkpoints

DIGITS = data.SOURCES['digits']


def make_workdir(path, arch, width=None, dtype='float32', seeds=(0, 1), metrics=(0.5, 0.25)):
    config = quickstart.get_config(arch)
    config.model.width, config.model.dtype = width or 0, dtype
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(config.copy_and_resolve_references().to_dict()))
    module = models.create(arch, num_classes=10, width=width)
    checkpoints = Checkpoints(path / 'checkpoints', keep_last=2)
    saved = []
    for step, (seed, metric) in enumerate(zip(seeds, metrics, strict=True), 1):
        variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *DIGITS.shape), jnp.float32))
        state = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {}), 'step': step}
        checkpoints.save(step, state, metadata={}, metric=metric)
        saved.append(variables)
    return module, saved


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'cnn'
    return path, *make_workdir(path, 'small_cnn', dtype='bfloat16')


@pytest.mark.parametrize(('which', 'step'), [('best', 1), ('last', 2), (1, 1), ('2', 2)])
def test_the_chosen_checkpoint_is_the_network_in_float32(run, which, step):
    path, module, saved = run
    model = load_model(path, which)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(3, *DIGITS.shape)), jnp.float32)
    outputs, expected = model(images), module.apply(saved[step - 1], images)
    assert model.step == step and model.config.defense.name == 'trades'
    assert outputs.logits.dtype == jnp.float32
    for got, wanted in zip(outputs, expected, strict=True):
        assert_array_equal(got, wanted)


def test_running_statistics_come_along(tmp_path):
    module, saved = make_workdir(tmp_path / 'resnet', 'preact_resnet18', width=2, seeds=(0,), metrics=(0.1,))
    model = load_model(tmp_path / 'resnet')
    images = jnp.full((2, *DIGITS.shape), 0.3, jnp.float32)
    assert_array_equal(model(images).logits, module.apply(saved[0], images).logits)
    assert jax.tree.structure(model.variables) == jax.tree.structure(dict(saved[0]))


def test_evaluate_takes_data_set_and_threat_from_the_config(run, capsys):
    path, module, saved = run
    assert evaluate.main([f'--workdir={path}', '--num_examples=40', '--attacks=sipgd', '--steps=2']) == 0
    assert (
        evaluate.main(
            [f'--workdir={path}', '--num_examples=40', '--attacks=fgsm', '--eps=0.1', '--checkpoint=last']
        )
        == 0
    )
    first, second = (
        next((path / 'evaluation').glob(f'{name}-*.json')) for name in ('best-sipgd', 'last-fgsm')
    )
    best, last = json.loads(first.read_text()), json.loads(second.read_text())
    assert best['threat_model'] == {'norm': 'linf', 'eps': 0.2} and last['threat_model']['eps'] == 0.1
    assert best['dataset']['name'] == 'digits' and best['model'] == {
        'workdir': str(path),
        'checkpoint': 'best',
        'step': 1,
    }
    assert last['model']['step'] == 2
    test = data.load('digits', 'test')
    images = jnp.asarray(test.images[:40] / 16, jnp.float32)
    predicted = np.argmax(module.apply(saved[0], images).logits, axis=1)
    assert best['clean']['accuracy'] == np.mean(predicted == test.labels[:40])


def test_what_is_no_run_or_of_another_network(run, tmp_path):
    path, _, _ = run
    with pytest.raises(InputError, match='no workdir of train.py, config.json is missing'):
        load_model(tmp_path)
    with pytest.raises(InputError, match='no checkpoint of step 9'):
        load_model(path, 9)
    with pytest.raises(InputError, match='unknown checkpoint'):
        load_model(path, 'latest')
    other = tmp_path / 'other'
    make_workdir(other, 'small_cnn', width=4, seeds=(0,), metrics=(0.1,))
    config = json.loads((other / 'config.json').read_text())
    config['model']['width'] = 0
    (other / 'config.json').write_text(json.dumps(config))
    with pytest.raises(InputError, match='of another architecture'):
        load_model(other)
    config['data']['name'] = 'digit'
    (other / 'config.json').write_text(json.dumps(config))
    with pytest.raises(InputError, match="unknown data set 'digit': did you mean digits"):
        load_model(other)
    (other / 'config.json').write_text('{')
    with pytest.raises(InputError, match='config.json is missing or damaged'):
        load_model(other)
