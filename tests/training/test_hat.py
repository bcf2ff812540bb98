"""HAT: steps equal PyTorch in float64, the labels of the helper too, with and without SI, and the loss falls.

A run trains the helper that is not given, and resumes bit for bit with the one that it began with; helpers
that cannot be are refused.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import models
from si_jax.defenses import DEFENSES, check_soft_labels, with_he, with_smoothing
from si_jax.errors import InputError
from si_jax.training import helper, initial, log, recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.setup import setup
from si_jax.zoo import weights
from tests.helpers.tiny import TinyNet
from tests.helpers.torch_steps import (
    CLASSES,
    ROWS,
    SHAPE,
    F,
    Torch,
    built,
    check_same,
    compiled,
    falls,
    kl,
    kl_attack,
    make_batch,
    regulariser,
    seen,
)
from tests.training.test_run_methods import digits


def hat(net, other, x, y, start, si):
    """The loss, and the helper's labels."""
    x_adv = kl_attack(net, x, y, start, si)
    labels = other.forward(x_adv, 'eval')[0].argmax(1)
    g, _ = net.forward(x, 'update')
    g_adv, c_adv = net.forward(x_adv, 'update')
    beyond, _ = net.forward(x + 2 * (x_adv - x), 'update')
    loss = F.cross_entropy(g, y) + 2.5 * kl(g, g_adv) + 0.5 * F.cross_entropy(beyond, labels)
    return loss + regulariser(c_adv, y, si), labels


@pytest.mark.parametrize('si', [False, True])
def test_steps_equal_pytorch_and_the_loss_falls(si):
    network = TinyNet(CLASSES)
    made = network.init(jax.random.key(11), jnp.zeros((1, *SHAPE)))
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), dict(made))
    # Statistics that are not the first ones, and a bias with which its classes of random images differ.
    given['batch_stats']['bn']['mean'] = given['batch_stats']['bn']['mean'] + 0.1
    some = jnp.asarray(np.random.default_rng(9).uniform(size=(64, *SHAPE)))
    given['params']['linear']['bias'] -= jnp.mean(network.apply(given, some).logits, axis=0)
    defense = helper.attached(built('hat', si=si), given)
    state, step, _ = compiled(defense, helper=network)
    net, other = Torch({'params': state.params, 'batch_stats': state.batch_stats}), Torch(given)
    rng, asked = np.random.default_rng(0), set()
    for index in range(3):
        real = ROWS - 3 * (index == 2)  # the last rows only pad, and count for nothing
        batch = make_batch(rng, index, real)
        x, y, start = seen(defense, batch, real)
        state, _, metrics = step(state, (), batch)
        loss, labels = hat(net, other, x, y, start, si)
        assert float(metrics['loss']) == pytest.approx(net.update(loss), rel=1e-6)  # metrics are float32
        check_same(state, net)
        asked |= set(labels.tolist())
        assert labels.tolist() != y.tolist()
    assert len(asked) > 1  # the helper told classes apart
    for kept, first in zip(jax.tree.leaves(state.memory), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(kept, first)
    falls(step, state, batch, metrics)


STEPS = {'epochs': 2, 'checkpoint.every_steps': 1, 'data.validation': 0}


def small(**changes):
    config = recipes.recipe('hat_cifar10', 'small_cnn')
    return digits(config, **(STEPS | changes))


def written(path, config, classes=10, shape=(8, 8, 1), seed=5):
    """A file with random weights of the config's network."""
    network = models.from_config(config.model, num_classes=classes)
    variables = network.init(jax.random.key(seed), jnp.zeros((1, *shape)))
    weights.write(path, recipes.plain(config), 1, variables)
    return str(path)


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def cut(folder, step):
    """Removes the checkpoints of a run after a step."""
    checkpoints = Checkpoints(folder / 'checkpoints')
    assert checkpoints.steps()[-1] > step
    checkpoints.remove(step + 1)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that trained its helper, and its final state."""
    folder = tmp_path_factory.mktemp('hat') / 'whole'
    return folder, run(small(), str(folder))


def test_a_helper_that_is_not_given_is_trained_first_and_is_as_good_as_a_given_one(whole, tmp_path):
    folder, state = whole
    config = small()
    config.defense.helper = str(folder / helper.FOLDER)
    ready = setup(config)
    assert f'helper: {config.defense.helper}, digest {ready.helper.digest}' in log.header(ready, {})
    assert setup(small()).helper is None and 'helper: none is given' in log.header(setup(small()), {})
    same(run(config, str(tmp_path / 'given')), state)
    trained, advised = helper.config_of(small()), recipes.recipe('standard_cifar10', 'small_cnn')
    assert trained.to_dict() == digits(advised, **STEPS).to_dict()
    assert helper.config_of(config) is None and helper.config_of(advised) is None


def test_what_ends_a_run_for_its_robustness_does_not_end_that_of_the_helper():
    given = {'patience': 1, 'overfitting.drop': 0.1, 'init_from': 'zoo:digits-at', 'awp.gamma': 0.1}
    ramps = {'ramp.eps': (0.0, 1.0), 'ramp.weights': (0.0, 1.0), 'ramp.terms': 'kl'}
    changed = helper.config_of(small(**given, **ramps, **{'defense.smoothing': 0.1}))
    assert changed.to_dict() == helper.config_of(small()).to_dict()
    assert setup(changed).defense.inner is None


def test_a_run_that_is_killed_while_its_helper_trains_goes_on_with_that(whole, tmp_path, capsys):
    folder, state = whole
    shutil.copytree(folder / helper.FOLDER, tmp_path / helper.FOLDER)
    cut(tmp_path / helper.FOLDER, 2)
    same(run(small(), str(tmp_path)), state)
    told = capsys.readouterr().out
    assert f'a network is trained first, without an attack, in {tmp_path / helper.FOLDER}' in told
    assert (
        'python train.py --config=configs/standard_cifar10.py:small_cnn --config.data.name=digits '
        '--config.data.validation=0 --workdir=runs/helper; then add --config.defense.helper=runs/helper'
    ) in told
    assert f'resuming {tmp_path / helper.FOLDER} at step 2' in told and told.count('next: ') == 1


def test_a_run_resumes_bit_for_bit_with_the_helper_that_it_began_with(whole, tmp_path, capsys):
    """Even where its folder holds another one by then, which is not trained on."""
    folder, state = whole
    again = tmp_path / 'again'
    shutil.copytree(folder, again)
    cut(again, 2)
    cut(again / helper.FOLDER, 2)
    same(run(small(), str(again)), state)
    assert 'trained first' not in capsys.readouterr().out
    assert Checkpoints(again / helper.FOLDER / 'checkpoints').steps() == [1, 2]


def test_helpers_that_cannot_be_are_refused(tmp_path, monkeypatch):
    other = recipes.paper('trades', dataset='digits', arch='small_cnn')
    other.defense.helper = 'runs/helper'
    with pytest.raises(InputError, match="the defense 'trades' asks no helper: leave it out"):
        setup(digits(other))
    with pytest.raises(InputError, match=r'defense.helper=.*gone.npz: there is no file of weights'):
        setup(small(**{'defense.helper': str(tmp_path / 'gone.npz')}))
    seven = written(tmp_path / 'seven.npz', small(), classes=7)
    with pytest.raises(InputError, match='seven.npz'):
        setup(small(**{'defense.helper': seven}))
    coloured = written(tmp_path / 'coloured.npz', small(**{'data.name': 'cifar10'}), shape=(32, 32, 3))
    with pytest.raises(InputError, match='is a network of 10 classes for other images than these'):
        setup(small(**{'defense.helper': coloured}))
    monkeypatch.setattr(initial, '_readers', [])
    with pytest.raises(InputError, match='defense.helper names a network, .* add `import si_jax.zoo.load`'):
        setup(small())  # before a helper is trained


def test_what_was_not_published_with_it_is_refused_and_smoothing_leaves_the_helpers_labels():
    row = DEFENSES['hat']
    with pytest.raises(InputError, match='use he=False'):
        with_he(row)
    with pytest.raises(InputError, match='no form for mixed labels was published of helped_ce'):
        check_soft_labels(row)
    smoothed = with_smoothing(row, 0.1, 'all').outer
    assert (
        smoothed['helped_ce'] == row.outer['helped_ce'] and smoothed['natural_ce'] != row.outer['natural_ce']
    )
