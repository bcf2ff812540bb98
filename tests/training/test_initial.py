"""Runs that start from given weights: of a run, of the zoo, of a file, of PyTorch."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import Threat, data, load_model, models
from si_jax.cli import evaluate as command
from si_jax.errors import InputError
from si_jax.interop import torch_weights
from si_jax.interop.torch_files import write
from si_jax.interop.torch_weights import to_torch
from si_jax.runtime.devices import map_rows, replicate
from si_jax.storage.trees import leaves
from si_jax.training import log, recipes
from si_jax.training.average import evaluated
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.setup import initial_state, initial_weights, setup
from si_jax.training.validation import compile_pgd
from si_jax.zoo import weights
from si_jax.zoo.load import network
from tests.helpers.processes import light

TEST = data.load('digits', 'test')
IMAGES, LABELS = np.asarray(TEST.images[:128] / np.float32(16)), TEST.labels[:128]
# The smallest network with batch normalisation and a normalised input.
TINY = {
    'model.arch': 'wrn_10_1', 'model.width': 2, 'model.normalise': '2x-1', 'data.limit': 20,
    'data.validation': 8, 'batch_size': 8, 'attack.steps': 1, 'evaluation.steps': 1,
    'logging.tensorboard': False, 'checkpoint.every_steps': 2, 'checkpoint.keep_last': 20, 'epochs': 2,
}  # fmt: skip


def config(defense='at', *, he=False, **changes):
    made = recipes.paper(defense, he=he, dataset='digits', arch=changes.get('model.arch', 'wrn_10_1'))
    made.threat.eps = 0.2
    made.update_from_flattened_dict(TINY | changes)
    return made


def variables_of(made, classes=10, seed=7):
    """Random weights and statistics for the network of a config."""
    model = models.from_config(made.model, num_classes=classes, hypersphere=made.defense.he)
    fresh = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1), jnp.float32))
    key = jax.random.key(seed + 1)
    stats = jax.tree.map(
        lambda leaf: jax.random.uniform(key, leaf.shape, leaf.dtype) + 0.5, fresh['batch_stats']
    )
    return {'params': fresh['params'], 'batch_stats': stats}


def save_run(folder, made, **averaged):
    """A workdir as train.py leaves it, with these weights in its last checkpoint."""
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(recipes.plain(made)))
    state = variables_of(made) | averaged
    Checkpoints(folder / 'checkpoints').save(3, state, metadata={}, metric=None)
    return str(folder)


@functools.cache
def attacked(module):
    """A network under PGD, compiled once for all networks that compute the same."""
    return compile_pgd(module, threat=Threat('linf', 0.3), steps=5, step_size=0.075)


def flags(module, variables):
    """Which images a network classifies correctly, clean and under PGD."""
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    shared = replicate((variables, np.float32(1)))
    clean = np.argmax(models.predict(module, variables, jnp.asarray(IMAGES)).logits, axis=1) == LABELS
    return clean, map_rows(attacked(module), shared, (IMAGES, LABELS, keys), 64)


def start_of(made):
    """The network of a run before its first step, as it will be evaluated, and the record of its start."""
    ready = setup(made)
    module, _ = network(made)
    begun = initial_weights(ready)
    variables = evaluated(jax.device_get(initial_state(ready, begun))._asdict())
    return module, variables, begun.record


def of_model(name):
    loaded = load_model(name, 'last' if Path(name).is_dir() else 'best')
    return loaded.module, loaded.variables


def of_run(folder):
    made = config(he=True)
    return made, save_run(folder / 'run', made), of_model


def of_average(folder):
    made = config(**{'average.kind': 'ema', 'average.batch_stats': 'average'})
    average = variables_of(made, seed=11)
    return made, save_run(folder / 'run', made, average=average), of_model


def of_file(folder):
    made = config()
    weights.write(folder / 'w.npz', recipes.plain(made), 5, variables_of(made))
    return made, str(folder / 'w.npz'), of_model


def of_zoo(folder):
    return recipes.recipe('digits', 'at'), 'zoo:digits-at', of_model


def of_torch(folder, suffix='.pt'):
    pytest.importorskip('torch', reason='the file is one of PyTorch')
    made = config()
    write(folder / f'w{suffix}', to_torch(variables_of(made)))

    def source(name):
        found = torch_weights.load(name, 'wrn_10_1', normalise='2x-1', image_shape=(8, 8, 1))
        return found.model, found.variables

    return made, str(folder / f'w{suffix}'), source


def of_safetensors(folder):
    return of_torch(folder, '.safetensors')


@pytest.mark.parametrize('source', [of_run, of_average, of_file, of_zoo, of_torch, of_safetensors])
def test_the_first_evaluation_is_that_of_the_source(tmp_path, source):
    """Flags of clean images and under PGD, before the first update; also of the average of a new run."""
    made, name, loaded = source(tmp_path)
    made.init_from, made.seed, made.average.kind = name, 3, 'ema'
    *begun, record = start_of(made)
    for ours, theirs in zip(flags(*begun), flags(*loaded(name)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert record['source'] == name and record['classes'] == 10 and record['new'] == []


def test_other_classes_get_a_new_last_layer(tmp_path):
    pytest.importorskip('torch', reason='the file is one of PyTorch')
    made = config()
    given = variables_of(made, classes=7)
    write(tmp_path / 'seven.pt', to_torch(given))
    made.init_from = str(tmp_path / 'seven.pt')
    _, begun, record = start_of(made)
    random = dict(
        leaves(network(made)[0].init(jax.random.key(made.seed), jnp.zeros((1, 8, 8, 1), jnp.float32)))
    )
    new = ['params/fc/bias', 'params/fc/kernel']
    for path, array in leaves(begun):
        expected = random[path] if path in new else dict(leaves(given))[path]
        np.testing.assert_array_equal(array, expected)
    assert record['new'] == new
    ready = setup(made)
    header = log.header(ready, begun['params'], record)
    assert f'start: weights of {made.init_from}, digest {record["digest"]}; new: {new[0]}, {new[1]}' in header
    assert 'as it has 7 classes' in header
    assert 'start:' not in log.header(ready, begun['params'])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run from a file of weights that is another one by the time it ends."""
    folder = tmp_path_factory.mktemp('start')
    made = config(**{'init_from': str(folder / 'w.npz'), 'average.kind': 'ema'})
    given = variables_of(made)
    weights.write(folder / 'w.npz', recipes.plain(config()), 5, given)
    state = jax.device_get(run(made, str(folder / 'run')))
    return made, folder, state, given


def test_a_resume_needs_no_weights_and_is_bit_for_bit(finished, tmp_path):
    made, folder, state, _ = finished
    again = tmp_path / 'run'
    shutil.copytree(folder / 'run', again)
    Checkpoints(again / 'checkpoints').remove(3)
    record = load_model(again, 2).init_from
    (folder / 'w.npz').rename(folder / 'moved.npz')
    resumed = jax.device_get(run(made, str(again)))
    (folder / 'moved.npz').rename(folder / 'w.npz')
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert load_model(again, 'last').init_from == record
    with pytest.raises(InputError, match=r"another config \(init_from: '.*' -> ''\)"):
        run(config(**{'average.kind': 'ema'}), str(again))


def test_what_it_started_from_is_recorded(finished, tmp_path):
    made, folder, _, given = finished
    record = load_model(folder / 'run', 'last').init_from
    assert record['source'] == made.init_from and record['step'] == 5
    assert record['digest'] == initial_weights(setup(made)).record['digest']
    output = tmp_path / 'result.json'
    flags = [f'--workdir={folder / "run"}', '--attacks=fgsm', '--num_examples=8', f'--output={output}']
    assert command.main([*flags, '--weights=live']) == 0
    about = json.loads(output.read_text())['model']
    assert about['init_from'] == record and about['weights'] == 'live'
    # An exported network keeps the record, and one that began at random has none.
    weights.write(tmp_path / 'w.npz', recipes.plain(made), 6, given, record)
    assert load_model(tmp_path / 'w.npz').init_from == record
    assert load_model(made.init_from).init_from == {}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'model.width': 4}, ['arrays differ: ', 'and ', ' more', 'give --config.model.width=2']),
        (
            {'model.normalise': 'none'},
            ["its model.normalise is '2x-1', here 'none': give --config.model.norm"],
        ),
        ({'model.activation': 'silu'}, ["its model.activation is 'relu', here 'silu'"]),
        (
            {'he': True},
            ['params/fc/bias ((10,) there, absent here)', 'a recipe without hypersphere embedding'],
        ),
        ({'model.bn_first_step': True}, ['give --config.model.bn_first_step=False']),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, changes, words):
    made = config()
    weights.write(tmp_path / 'w.npz', recipes.plain(made), 5, variables_of(made))
    with pytest.raises(InputError) as error:
        initial_weights(setup(config(init_from=str(tmp_path / 'w.npz'), **changes)))
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).count(' there, ') <= 10


def test_what_holds_no_weights_is_refused(tmp_path):
    (tmp_path / 'text.npz').write_text('no weights')
    (tmp_path / 'text.bin').write_text('no weights')
    for name, words in {
        'text.npz': 'cannot be read as an npz file',
        'text.bin': 'a file of none of the kinds .npz, .pt, .pth, .safetensors',
        'gone.npz': 'there is no file of weights',
        'gone.safetensors': 'is not a file',
        'gone': 'no workdir of train.py',
    }.items():
        with pytest.raises(InputError, match=words) as error:
            run(config(init_from=str(tmp_path / name)), str(tmp_path / 'run'))
        assert f'init_from={tmp_path / name}' in str(error.value)
    assert not (tmp_path / 'run' / 'config.json').exists()
    with pytest.raises(InputError, match='did you mean digits-at'):
        initial_weights(setup(config(init_from='zoo:digits-att')))


def test_a_torch_file_of_another_architecture_is_refused(tmp_path):
    pytest.importorskip('torch', reason='the file is one of PyTorch')
    write(tmp_path / 'w.pt', to_torch(variables_of(config())))
    made = config(init_from=str(tmp_path / 'w.pt'), **{'model.arch': 'resnet18'})
    with pytest.raises(InputError, match=r'look like those of wrn_10_1 \(it is read by --config.model.arch'):
        initial_weights(setup(made))


FINE_TUNING = """
import sys
import numpy as np
import si_jax
from si_jax import data
from si_jax.training import recipes
from si_jax.training.loop import run

made = recipes.recipe('digits', 'at')
made.update_from_flattened_dict(
    {'init_from': 'zoo:digits-at', 'threat.eps': 0.3, 'epochs': 3, 'schedule.peak': 0.02,
     'data.validation': 0, 'data.limit': 640, 'batch_size': 64, 'attack.steps': 5,
     'logging.tensorboard': False}
)
before = si_jax.load_model('zoo:digits-at')
run(made, sys.argv[1])
test = data.load('digits', 'test')
images, labels = np.float32(test.images[:128]) / test.scale, test.labels[:128]
for model in (before, si_jax.load_model(sys.argv[1], 'last')):
    result = si_jax.evaluate(model, images, labels, attacks='pgd', eps=0.3, steps=5, step_size=0.075)
    print(result.correct['pgd'].sum())
"""


def test_fine_tuning_at_another_radius_beats_its_start(tmp_path):
    """A network of eps 0.2, trained on at 0.3, on images that it has not seen."""
    before, after = map(int, light('-c', FINE_TUNING, tmp_path / 'run').splitlines()[-2:])
    assert 0 < before and before + 4 <= after


def test_a_run_without_it_begins_as_before():
    ready = setup(config())
    assert ready.config.init_from == '' and initial_weights(ready) is None
    random = ready.model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.float32))
    state = initial_state(ready)
    jax.tree.map(np.testing.assert_array_equal, state.params, random['params'])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, random['batch_stats'])
