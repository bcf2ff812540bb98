"""Whole runs of what is more than a step: FreeAT's replays and perturbation, the guard, cosines."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import quickstart
from si_jax import load_model
from si_jax.errors import InputError
from si_jax.runtime import devices
from si_jax.training import hooks, recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.metrics import read_metrics
from si_jax.training.overfitting import COLLAPSE, OverfittingGuard, Watched, least_fall
from si_jax.training.setup import batch_of_step, initial_state, setup
from tests.helpers.processes import optimised


def digits(config, **changes):
    """A few steps an epoch on the digits."""
    small = {
        'data.name': 'digits', 'data.limit': 20, 'data.validation': 8, 'batch_size': 8, 'model.width': 2,
        'model.normalise': 'none', 'attack.steps': 1, 'evaluation.steps': 1, 'logging.tensorboard': False,
        'checkpoint.keep_last': 20,
    }  # fmt: skip
    config.update_from_flattened_dict(small | changes)
    return config


def freeat(**changes):
    config = recipes.single_step('freeat', si=True, arch='small_cnn')
    return digits(
        config,
        **{'defense.replays': 2, 'epochs': 4, 'checkpoint.every_steps': 5, 'data.validation': 0} | changes,
    )


def test_replays_count_as_epochs():
    ready = setup(freeat())
    assert ready.steps_per_epoch == 3
    # Two passes over three batches, each batch twice: twelve steps, four epochs.
    seen = [batch_of_step(ready, step) for step in range(12)]
    assert seen == [(p, b) for p in range(2) for b in range(3) for _ in range(2)]
    plain = setup(digits(quickstart.get_config()))
    assert [batch_of_step(plain, step) for step in range(4)] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def leaves(workdir):
    restored = Checkpoints(workdir / 'checkpoints').restore('last')
    return restored.step, {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state)
    }


def test_a_resumed_freeat_run_is_bit_identical_perturbation_included(tmp_path):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run(freeat(), str(whole))
    shutil.copytree(whole, resumed)
    for step in (6, 9, 10, 12):  # step 5 lies between the two replays of the third batch
        shutil.rmtree(resumed / 'checkpoints' / str(step))
    run(freeat(), str(resumed))
    (step, expected), (again, got) = leaves(whole), leaves(resumed)
    assert step == again == 12 and expected.keys() == got.keys()
    for name, array in expected.items():
        assert array.tobytes() == got[name].tobytes(), name
    carry = got["['carry']"]
    assert carry.shape == (8, 8, 8, 1) and np.abs(carry).max() == pytest.approx(8 / 255)
    at_five = Checkpoints(whole / 'checkpoints').restore(5).state['carry']
    assert np.any(at_five != carry)


def perturbed_ellea(**changes):
    """ELLE-A with perturbed weights from the third epoch on, with SI."""
    config = recipes.recipe('ellea_cifar10', 'small_cnn,si')
    few = {'epochs': 4, 'checkpoint.every_steps': 4, 'data.validation': 0, 'overfitting.drop': 0.0}
    return digits(config, **few | {'awp.gamma': 0.01, 'awp.start_epoch': 2} | changes)


def perturbed_nuat():
    config = recipes.recipe('nuat_cifar10', 'small_cnn')
    return digits(config, epochs=2, **{'checkpoint.every_steps': 4, 'awp.gamma': 0.01})


@pytest.mark.parametrize('config', [perturbed_ellea, perturbed_nuat])
def test_resumed_runs_of_what_remembers_and_perturbs_are_bit_identical(tmp_path, config):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run(config(), str(whole))
    shutil.copytree(whole, resumed)
    for folder in (resumed / 'checkpoints').iterdir():
        if int(folder.name) > 4:  # in the middle of the second epoch
            shutil.rmtree(folder)
    run(config(), str(resumed))
    (step, expected), (again, got) = leaves(whole), leaves(resumed)
    assert step == again == 3 * config().epochs and expected.keys() == got.keys()
    for name, array in expected.items():
        assert array.tobytes() == got[name].tobytes(), name
    if config is perturbed_ellea:
        memory = Checkpoints(resumed / 'checkpoints').restore('last').state['memory']['nonlinearity']
        assert memory['total'] == 12 and memory['squares'] > 0


def test_a_checkpoint_from_before_the_memory_is_resumed(tmp_path):
    """A state without it has the arrays of before, whatever the defense."""
    run(freeat(epochs=2), str(tmp_path))
    state = Checkpoints(tmp_path / 'checkpoints').restore('last').state
    assert set(state) == {
        'step', 'params', 'opt_state', 'bad_step', 'bad_terms', 'carry'
    }  # fmt: skip


class Fake:
    """A guard that sees the given accuracies."""

    seen = (0.5, 0.6, 0.35, 0.9)

    def __init__(self, *arguments, drop, **options):
        self.drop = drop

    def __call__(self, params, stats, before, *, epoch, trained):
        accuracy = self.seen[epoch - 1]
        fell = before.accuracy is not None and before.accuracy - accuracy > self.drop
        return Watched(accuracy, epoch if fell else None, 8, COLLAPSE if fell else None, trained=trained)


def test_catastrophic_overfitting_ends_the_run_with_the_weights_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hooks, 'OverfittingGuard', Fake)

    def config():
        rfgsm = recipes.single_step('rfgsm', si=False, arch='small_cnn')
        return digits(rfgsm, **{'epochs': 4, 'overfitting.drop': 0.2})

    state = run(config(), str(tmp_path))
    assert 'catastrophic overfitting in epoch 3' in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    assert checkpoints.latest_step == int(state.step) == 9
    last, before = checkpoints.restore('last').state, checkpoints.restore(6).state
    for ours, kept in zip(jax.tree.leaves(last['params']), jax.tree.leaves(before['params']), strict=True):
        np.testing.assert_array_equal(ours, kept)
    accuracies = [line['pgd5_accuracy'] for line in read_metrics(tmp_path / 'metrics.jsonl')]
    assert accuracies == [0.5, 0.6, 0.35]
    lines = list(read_metrics(tmp_path / 'metrics.jsonl'))
    assert [line.get('ended') for line in lines] == [None, None, 'catastrophic overfitting']
    # Held-out figures of the weights that collapsed, and of those that were kept.
    assert 'collapsed/pgd_accuracy' in lines[2] and 'collapsed/pgd_accuracy' not in lines[1]
    for name in ('natural_accuracy', 'median_gap'):
        assert lines[2][f'validation/{name}'] == lines[1][f'validation/{name}']
    assert lines[2]['collapsed/median_gap'] != lines[2]['validation/median_gap']
    run(config(), str(tmp_path))  # the same command finds it ended
    assert checkpoints.latest_step == 9


def test_a_run_that_collapses_in_its_first_epoch_keeps_what_it_trained(tmp_path, monkeypatch, capsys):
    class Blind(Fake):
        def __call__(self, params, stats, before, *, epoch, trained):
            return Watched(0.0, epoch, 8, COLLAPSE, trained=trained)

    monkeypatch.setattr(hooks, 'OverfittingGuard', Blind)
    rfgsm = recipes.single_step('rfgsm', si=False, arch='small_cnn')
    run(digits(rfgsm, **{'epochs': 2, 'overfitting.drop': 0.2}), str(tmp_path))
    (line,) = read_metrics(tmp_path / 'metrics.jsonl')
    assert line['collapsed/median_gap'] == line['validation/median_gap']  # not of random weights
    assert (
        'the weights that it began with if these were trained, else with those of' in capsys.readouterr().out
    )


def test_the_guard_measures_the_same_held_out_images_each_epoch():
    ready = setup(digits(quickstart.get_config()))
    state = initial_state(ready)
    guard = OverfittingGuard(ready.model, ready.validation, threat=ready.threat, drop=0.2, seed=0)
    replicated = devices.replicate((state.params, state.batch_stats))
    first = guard(*replicated, Watched(), epoch=1, trained=0.5)
    assert first.stopped_at is None and first.images == 8 and first.trained == 0.5
    assert first.accuracy * 8 == pytest.approx(round(first.accuracy * 8))
    assert guard(*replicated, first, epoch=2, trained=0.5) == first


def test_a_fall_counts_beyond_its_interval_and_only_while_training_goes_well():
    # Newcombe's lower bound, from Wilson's intervals: 40 of 100 [0.3094, 0.4980], 20 of 100 [0.1334, 0.2888].
    assert least_fall(0.4, 0.2, 100) == pytest.approx(0.2 - np.hypot(0.4 - 0.3094, 0.2888 - 0.2), abs=2e-4)
    guard = object.__new__(OverfittingGuard)
    guard._drop = 0.2

    def ends(before, after, images, trained=(0.5, 0.9)):
        seen = [Watched(a, images=images, trained=t) for a, t in zip((before, after), trained, strict=True)]
        return guard._collapsed(*seen)

    assert not ends(0.75, 0.375, 8)  # three of eight images: what ended healthy runs
    assert ends(0.6, 0.02, 200)
    assert not ends(0.6, 0.37, 200) and ends(0.6, 0.37, 10_000)
    assert not ends(0.6, 0.3, 1000, trained=(0.8, 0.7))  # training stumbled too
    assert not ends(0.6, 0.3, 1000, trained=(0.30, 0.35))  # training is not ahead
    assert ends(0.6, 0.3, 1000, trained=(None, None))
    assert not guard._collapsed(Watched(0.6), Watched(0.1, images=1000))  # a batch, of an older version
    # From the start, without a fall: 0 of 200 [0, 0.0188] is below a fifth of the training accuracy.
    assert ends(0.0, 0.0, 200, trained=(0.4, 0.6)) and not ends(0.0, 0.0, 200, trained=(0.4, 0.45))
    assert not ends(0.0, 0.0, 8, trained=(0.4, 0.6)) and not ends(0.45, 0.45, 1000, trained=(0.9, 0.95))


def test_a_real_collapse_is_caught(tmp_path):
    """One large step on natural and adversarial images: the network learns to see the step."""
    flags = {
        'defense.weights.logit_pairing': 0.0, 'defense.start': 'original', 'threat.eps': 0.4,
        'attack.steps': 1, 'attack.step_size': 0.4, 'schedule.peak': 0.1, 'optimiser.weight_decay': 0.0,
        'epochs': 25, 'overfitting.drop': 0.2, 'evaluation.every_epochs': 100, 'logging.tensorboard': False,
    }  # fmt: skip
    given = [f'--config.{name}={value}' for name, value in flags.items()]
    out = optimised('train.py', '--config=configs/digits.py:alp', f'--workdir={tmp_path / "run"}', *given)
    last = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    assert 3 < last['epoch'] < 25 and last['ended'] == COLLAPSE
    assert f'{COLLAPSE} in epoch {last["epoch"]}: the run ends with the weights of the epoch before' in out
    assert last['train/adv_accuracy'] > 0.5 and last['train/nat_accuracy'] > 0.9
    assert last['pgd5_accuracy'] < 0.05 and last['pgd5_images'] == 200
    assert 'of 200 held-out images right' in out
    assert last['collapsed/natural_accuracy'] > 0.9 and last['collapsed/pgd_accuracy'] < 0.05


@pytest.mark.parametrize('name', ['patience', 'overfitting.drop'])
def test_what_looks_at_held_out_images_needs_some(name):
    value = 1 if name == 'patience' else 0.2
    wrong = digits(quickstart.get_config(), **{name: value, 'data.validation': 0})
    with pytest.raises(InputError, match=rf'{name}=.*data.validation=0: give --config.data.validation=1000'):
        setup(wrong)
    setup(digits(wrong, **{'data.validation': 1000}))


def test_a_network_of_cosines_is_trained_and_read_back(tmp_path):
    config = digits(recipes.paper('trades', he=True, dataset='digits', arch='small_cnn'), epochs=1)
    run(config, str(tmp_path))
    model = load_model(tmp_path)
    outputs = model(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32))
    for lengths in (np.linalg.norm(outputs.kernel, axis=0), np.linalg.norm(outputs.features, axis=1)):
        np.testing.assert_allclose(lengths, 1, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, outputs.features @ outputs.kernel, atol=1e-6)
