"""Whole runs of what is more than a step: FreeAT's replays and perturbation, the guard, cosines."""

import shutil

import jax
import numpy as np
import pytest

from configs import quickstart
from si_jax import load_model
from si_jax.data import epoch_order
from si_jax.runtime import devices
from si_jax.training import hooks, recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.metrics import read_metrics
from si_jax.training.overfitting import OverfittingGuard, Watched
from si_jax.training.setup import batch_of_step, initial_state, setup


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


class Fake:
    """A guard that sees the given accuracies."""

    seen = (0.5, 0.6, 0.35, 0.9)

    def __init__(self, *arguments, drop, **options):
        self.drop = drop

    def __call__(self, params, stats, rows, before, *, epoch):
        accuracy = self.seen[epoch - 1]
        fell = before.accuracy is not None and before.accuracy - accuracy > self.drop
        return Watched(accuracy, epoch if fell else None)


def test_catastrophic_overfitting_ends_the_run_with_the_weights_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hooks, 'OverfittingGuard', Fake)

    def config():
        rfgsm = recipes.single_step('rfgsm', si=False, arch='small_cnn')
        return digits(rfgsm, **{'epochs': 4, 'overfitting.drop': 0.2, 'data.validation': 0})

    state = run(config(), str(tmp_path))
    assert 'catastrophic overfitting in epoch 3' in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    assert checkpoints.latest_step == int(state.step) == 9
    last, before = checkpoints.restore('last').state, checkpoints.restore(6).state
    for ours, kept in zip(jax.tree.leaves(last['params']), jax.tree.leaves(before['params']), strict=True):
        np.testing.assert_array_equal(ours, kept)
    accuracies = [line['pgd5_accuracy'] for line in read_metrics(tmp_path / 'metrics.jsonl')]
    assert accuracies == [0.5, 0.6, 0.35]
    run(config(), str(tmp_path))  # the same command finds it ended
    assert checkpoints.latest_step == 9


def test_the_guard_measures_the_first_batch():
    config = digits(quickstart.get_config())
    ready = setup(config)
    state = initial_state(ready)
    guard = OverfittingGuard(ready.model, ready.train, threat=ready.threat, drop=0.2, seed=0)
    rows = epoch_order(0, 0, 20)[:5]
    replicated = devices.replicate((state.params, state.batch_stats))
    watched = guard(*replicated, rows, Watched(), epoch=1)
    assert watched.stopped_at is None and 0 <= watched.accuracy <= 1
    assert watched.accuracy * 5 == pytest.approx(round(watched.accuracy * 5))
    assert guard(*replicated, rows, watched, epoch=1) == watched
    high = Watched(watched.accuracy + 0.21)
    assert guard(*replicated, rows, high, epoch=1) == Watched(watched.accuracy, 1)
    near = Watched(watched.accuracy + 0.19)
    assert guard(*replicated, rows, near, epoch=1).stopped_at is None


def test_a_network_of_cosines_is_trained_and_read_back(tmp_path):
    config = digits(recipes.paper('trades', he=True, dataset='digits', arch='small_cnn'), epochs=1)
    run(config, str(tmp_path))
    model = load_model(tmp_path)
    outputs = model(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32))
    for lengths in (np.linalg.norm(outputs.kernel, axis=0), np.linalg.norm(outputs.features, axis=1)):
        np.testing.assert_allclose(lengths, 1, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, outputs.features @ outputs.kernel, atol=1e-6)
