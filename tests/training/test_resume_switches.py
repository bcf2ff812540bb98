"""A run with one modern ingredient or a newer single-step defense resumes bit for bit.

tests/training/test_average.py does the same with all ingredients at once that can be; here are the others.
"""

import shutil

import jax
import numpy as np
import pytest

from si_jax.training import recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from tests.training.test_run_methods import digits

SWITCHES = {
    'swa': ('at', {'average.kind': 'swa', 'average.batch_stats': 'recompute'}),
    'cosine': ('at', {'schedule.kind': 'cosine', 'schedule.warmup': 0.5}),
    'awp': ('at', {'awp.gamma': 0.01}),
    'nfgsm': ('nfgsm', {}),
    'ellea': ('ellea', {'defense.weights.nonlinearity': 10.0}),
    'nuat': ('nuat', {}),
    'dkl': ('dkl', {}),
}


@pytest.mark.parametrize('switch', SWITCHES)
def test_each_alone_resumes_bit_for_bit(switch, tmp_path):
    """From the middle of its first epoch."""
    defense, fields = SWITCHES[switch]
    config = digits(
        recipes.paper(defense, dataset='digits', arch='small_cnn'),
        **{'epochs': 2, 'checkpoint.every_steps': 1, **fields},
    )
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    state = run(config, str(whole))
    shutil.copytree(whole, again)
    Checkpoints(again / 'checkpoints').remove(2)
    resumed = run(config, str(again))
    assert int(resumed.step) == int(state.step) == 6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))
