"""ACAT as a run: the loss falls while the ball grows, with and without SI, and a run resumes bit for bit.

It is TRADES with ramps, perturbed weights and an average, each of which has its own tests.
"""

import shutil

import jax
import numpy as np
import pytest

from si_jax import models
from si_jax.training import log, recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.metrics import read_metrics
from si_jax.training.setup import setup
from tests.helpers import tiny
from tests.training.test_run_methods import digits


def small(options):
    """Perturbed weights from the third epoch on."""
    config = recipes.recipe('acat_cifar10', options)
    return digits(config, **{
        'epochs': 5, 'awp.start_epoch': 2, 'attack.steps': 2, 'data.validation': 0, 'data.limit': 64,
        'model.width': 32, 'checkpoint.every_steps': 13,
    })  # fmt: skip


@pytest.mark.parametrize('si', [False, True])
def test_the_loss_falls_and_a_run_resumes_bit_for_bit(si, tmp_path, monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, 'tiny', tiny.ROW)
    config = small(f'tiny{",si" * si}')
    ready = setup(config)
    assert 'ramps: ' in log.header(ready, {}) and ready.awp.first_step == 2 * ready.steps_per_epoch
    radii = [float(ready.ramps.factor(ready.ramps.eps, epoch * ready.steps_per_epoch)) for epoch in range(5)]
    np.testing.assert_allclose(radii, np.arange(1, 6) / 5, rtol=1e-6)
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    state = run(config, str(whole))
    losses = [line['train/loss'] for line in read_metrics(whole / 'metrics.jsonl')]
    assert losses[-1] < 0.9 * losses[0]
    if not si:
        return
    shutil.copytree(whole, again)
    # In the middle of an epoch, before weights are perturbed and the average begins.
    Checkpoints(again / 'checkpoints').remove(14)
    resumed = run(config, str(again))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))
