"""Averages of the weights: by hand, over interrupted runs, and as all that evaluates reads them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import load_model, models
from si_jax.cli import evaluate
from si_jax.data import epoch_batches, epoch_order
from si_jax.errors import InputError
from si_jax.reports import collect, runs
from si_jax.runtime import devices
from si_jax.storage.trees import leaves
from si_jax.training import average, log, recipes
from si_jax.training.average import Average
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.recompute import Recompute
from si_jax.training.setup import feed_of, ingredients, initial_state, setup
from si_jax.training.validation import HeldOut
from si_jax.zoo import weights
from tests.helpers import tiny

R1 = Average('ema', 0.995, start=2.5, ramp=True, batch_stats='live', steps_per_epoch=4)


def decays(kept, last=10):
    return [float(kept.decay_at(jnp.int32(update))) for update in range(1, last + 1)]


def test_decays_by_hand():
    # Copies up to update 2; then d = 0.5, 1.5, ...: (1 + d) / (10 + d).
    np.testing.assert_allclose(decays(R1, 4), [0, 0, 1.5 / 10.5, 2.5 / 11.5])
    assert decays(R1._replace(decay=0.2), 6)[3:] == pytest.approx([0.2, 0.2, 0.2])
    # DAJAT: the whole of the epoch in which it starts is a copy.
    assert decays(R1._replace(start=4.0, ramp=False, decay=0.5), 6) == [0, 0, 0, 0, 0.5, 0.5]
    # At the ends of epochs, from the second on, or from the one after the start.
    swa = R1._replace(kind='swa', decay=0.9, start=0.0)
    assert decays(swa, 12) == [0] * 4 + [1, 1, 1, pytest.approx(0.9)] * 2
    assert decays(swa._replace(start=8.0), 12) == [0] * 8 + [1, 1, 1, pytest.approx(0.9)]


def test_an_average_by_hand():
    swa = R1._replace(kind='swa', decay=0.75, start=0.0, steps_per_epoch=1, batch_stats='recompute')
    kept = swa.begin({'w': jnp.array(8.0)}, {'mean': jnp.array(1.0)})
    for update, (weight, expected) in enumerate([(4.0, 4.0), (8.0, 5.0), (1.0, 4.0)], 1):
        stats = {'mean': jnp.array(update)}
        kept = swa.moved(kept, jnp.int32(update), {'w': jnp.array(weight)}, stats)
        assert float(kept['params']['w']) == expected and int(kept['batch_stats']['mean']) == update


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'kind': 'mean'}, "unknown average.kind 'mean'.*ema"),
        ({'batch_stats': 'none'}, "unknown average.batch_stats 'none'"),
        ({'decay': 1.0}, r'average.decay=1 is not in \[0, 1\); 0.995 is usual'),
        ({'tau': -0.1}, 'average.tau=-0.1'),
        ({'start': 1.0}, 'average.start=1 '),
    ],
)
def test_wrong_averages_are_refused(changes, message):
    section = recipes.recipe('quickstart').average.to_dict() | changes
    with pytest.raises(InputError, match=message):
        average.from_config(section, epochs=2, steps_per_epoch=3, hypersphere=False)


@pytest.fixture(autouse=True, scope='module')
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.ARCHITECTURES, 'tiny', tiny.ROW)
        yield


def config(defense='trades', **changes):
    made = recipes.paper(defense, si=defense == 'trades', dataset='digits', arch='tiny')
    small = {
        'data.limit': 20, 'data.validation': 8, 'batch_size': 8, 'model.width': 2, 'attack.steps': 2,
        'evaluation.steps': 1, 'logging.tensorboard': False, 'epochs': 2, 'checkpoint.every_steps': 2,
        'checkpoint.keep_last': 20, 'optimiser.weight_decay': 5e-4,
    }  # fmt: skip
    made.update_from_flattened_dict(small | changes)
    return made


EVERYTHING = {
    'average.kind': 'ema', 'average.batch_stats': 'recompute', 'schedule.kind': 'one_cycle',
    'optimiser.cycle_momentum': True, 'optimiser.decay': 'no_bn', 'defense.smoothing': 0.1,
    'defense.smoothing_over': 'others', 'model.activation': 'silu', 'model.bn_momentum': 0.01,
    'model.bn_first_step': True, 'ramp.eps': (0.0, 1.0), 'ramp.steps': (0.5, 1.0), 'ramp.terms': 'kl',
    'ramp.weights': (0.5, 1.0), 'ramp.every': 'step', 'data.cutmix': 2,
}  # fmt: skip


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Two epochs of three steps with everything on, its final state, and what validation was given."""
    folder, given = tmp_path_factory.mktemp('run'), []
    measure = HeldOut.__call__
    with pytest.MonkeyPatch.context() as patch:

        def noted(self, params, batch_stats):
            given.append(jax.device_get({'params': params, 'batch_stats': batch_stats}))
            return measure(self, params, batch_stats)

        patch.setattr(HeldOut, '__call__', noted)
        state = run(config(**EVERYTHING), str(folder))
    return folder, jax.device_get(state), given


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def arrays(folder, step):
    return Checkpoints(folder / 'checkpoints').restore(step).state


def test_a_run_with_everything_on_resumes_bit_for_bit(finished, tmp_path):
    """From the middle of its first epoch."""
    folder, state, _ = finished
    again = tmp_path / 'again'
    shutil.copytree(folder, again)
    Checkpoints(again / 'checkpoints').remove(3)
    resumed = run(config(**EVERYTHING), str(again))
    same(jax.device_get(resumed), state)
    for saved in (3, 4, 6):
        same(arrays(again, saved), arrays(folder, saved))


def test_evaluation_and_the_choice_of_the_best_read_the_average(finished):
    folder, state, given = finished
    last = load_model(folder, 'last')
    same(last.variables, state.average)
    assert np.any(np.asarray(state.average['params']['linear']['kernel']) != state.params['linear']['kernel'])
    same(given[-1], state.average)
    # Both are saved.
    saved = arrays(folder, 6)
    same(saved['params'], state.params)
    same(saved['average'], state.average)
    assert last.config.average.kind == 'ema' and load_model(folder, 'best').step in (3, 6)


def test_a_result_says_so(finished, tmp_path):
    folder, output = finished[0], tmp_path / 'result.json'
    flags = [f'--workdir={folder}', '--attacks=fgsm', '--num_examples=8', f'--output={output}']
    assert evaluate.main(flags) == 0
    assert json.loads(output.read_text())['model']['weights'] == 'average: ema'


def test_the_live_weights_can_be_asked_for(finished, tmp_path):
    folder, state, _ = finished
    live, average = (load_model(folder, 'last', weights=which) for which in ('live', 'average'))
    same(live.variables, {'params': state.params, 'batch_stats': state.batch_stats})
    same(average.variables, state.average)
    assert (live.weights, average.weights) == ('live', 'average: ema')
    assert load_model(folder, 'last').weights == 'average: ema'
    flags = [f'--workdir={folder}', '--attacks=fgsm', '--num_examples=8', '--weights=live']
    assert evaluate.main(flags) == 0
    (path,) = (folder / 'evaluation').glob('best-live-fgsm-*.json')
    assert json.loads(path.read_text())['model']['weights'] == 'live'


def test_weights_that_are_not_there_are_refused(finished, tmp_path, capsys):
    folder, state, _ = finished
    with pytest.raises(InputError, match="unknown weights 'ema'.*known: average, live"):
        load_model(folder, weights='ema')
    with pytest.raises(InputError, match='kept no average of its weights: leave it out'):
        load_model('zoo:digits-at', weights='average')
    assert load_model('zoo:digits-at', weights='live').weights == ''
    weights.write(tmp_path / 'w.npz', recipes.plain(config(**EVERYTHING)), 6, state.average)
    with pytest.raises(InputError, match='holds the average alone'):
        load_model(tmp_path / 'w.npz', weights='live')
    flags = ['--model=anything.py:build', '--dataset=digits', '--weights=live']
    assert evaluate.main(flags) == 2
    assert '--weights=live belongs to --workdir' in capsys.readouterr().err


def test_the_page_and_the_log_say_so(finished):
    folder, _, _ = finished
    words = 'their average (EMA, decay 0.995, from 2.5 % of the run on, batch statistics recomputed)'
    networks = collect.collect([str(folder)]).networks
    assert ('evaluated weights', [words]) in runs.facts(networks).rows
    ready = setup(config(**EVERYTHING))
    header = log.header(ready, {'w': np.zeros(3)})
    for part in (
        f'evaluated weights: {words}',
        'one cycle, moved every step: the rate rises from 0.0004 to 0.01 at epoch 0.6667 and falls '
        'to 4e-08, the momentum goes from 0.9 to 0.8 and back',
        'CutMix: 2 mixtures of each image, labels mixed; soft labels in this loss are ours',
        'label smoothing: 0.1 over the other classes',
        'ramps: eps from 0 times to all over 100 % of the run',
    ):
        assert part in header
    assert 'evaluated weights: those of training' in log.header(setup(config()), {'w': np.zeros(3)})


def test_recomputed_statistics_are_those_of_the_batches_of_the_epoch():
    """Of the layer behind the convolution, by PyTorch; the digits are neither cropped nor flipped."""
    torch = pytest.importorskip('torch', reason='the convolution is one of PyTorch')
    ready = setup(config('standard', **{'average.kind': 'swa', 'average.batch_stats': 'recompute'}))
    train = ready.train
    recompute = Recompute(ingredients(ready), train, 1)
    kept = recompute(devices.replicate(initial_state(ready).average), feed_of(ready), range(3, 6))
    kernel = torch.tensor(np.asarray(kept['params']['conv']['kernel'])).permute(3, 2, 0, 1)
    rows, mask = epoch_batches(epoch_order(0, 1, 20), 8)
    means, variances = [], []
    for indices, real in zip(rows, mask, strict=True):
        images = torch.tensor(train.images[indices[real]] / np.float32(16)).permute(0, 3, 1, 2)
        seen = torch.nn.functional.conv2d(images.float(), kernel, stride=2, padding=1)
        means.append(seen.mean((0, 2, 3)).numpy())
        variances.append(seen.var((0, 2, 3)).numpy())
    stats = kept['batch_stats']['bn']
    np.testing.assert_allclose(stats['mean'], np.mean(means, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats['var'], np.mean(variances, 0), rtol=1e-4, atol=1e-6)
    assert len(means) == 3


def test_a_run_without_an_average_has_the_arrays_that_it_had():
    ready = setup(config())
    assert ready.average is None and ready.ramps is None
    tops = {path.split('/')[0] for path, _ in leaves(initial_state(ready)._asdict())}
    assert tops == {'step', 'params', 'batch_stats', 'opt_state', 'bad_step', 'bad_terms'}
