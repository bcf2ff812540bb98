"""A run with modern ingredients or a newer defense resumes bit for bit.

tests/training/test_average.py does the same with all ingredients at once that can be, and
tests/training/test_run_methods.py with ELLE-A and NuAT; here are the others.
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
    'nfgsm, and what is around a defense': (
        'nfgsm',
        {
            'average.kind': 'swa', 'average.batch_stats': 'recompute', 'schedule.kind': 'cosine',
            'schedule.warmup': 0.5, 'awp.gamma': 0.01,
        },
    ),
    'dkl': ('dkl', {}),
}  # fmt: skip


@pytest.mark.parametrize('switch', SWITCHES)
def test_each_resumes_bit_for_bit(switch, tmp_path):
    """From the middle of its second epoch of three steps."""
    defense, fields = SWITCHES[switch]
    config = digits(
        recipes.paper(defense, dataset='digits', arch='small_cnn'),
        **{'epochs': 2, 'checkpoint.every_steps': 4, 'data.validation': 0, **fields},
    )
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    state = run(config, str(whole))
    shutil.copytree(whole, again)
    Checkpoints(again / 'checkpoints').remove(6)
    assert Checkpoints(again / 'checkpoints').steps()[-1] == 4
    resumed = run(config, str(again))
    assert int(resumed.step) == int(state.step) == 6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))
