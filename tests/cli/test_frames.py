"""How long the way is from evaluate.py to the sign of the gradient: it can be read in one sitting."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import pytest

import si_jax
from si_jax.attacks import steps
from si_jax.cli import evaluate

LIBRARY = str(Path(si_jax.__file__).parent)
MOST = 20
MODEL = """
from si_jax import data

def build():
    train = data.load('digits', 'train')
    pixels = train.images.reshape(-1, 64) / train.scale
    return lambda images: images.reshape(len(images), -1) @ pixels[:10].T.astype('float32')
"""


def frames() -> list[str]:
    stack = inspect.stack(context=0)
    return [f'{one.filename}:{one.function}' for one in stack if one.filename.startswith(LIBRARY)]


@pytest.mark.parametrize('cores', [1, 16])
def test_the_way_to_the_sign_of_the_gradient(cores, tmp_path, monkeypatch):
    before, ways = [], []
    submit, sign = ThreadPoolExecutor.submit, jnp.sign

    def submitted(self, *task):
        before[:] = frames()
        return submit(self, *task)

    def seen(gradient):
        here = frames()
        alone = any(name.endswith(':main') for name in here)  # not handed to a thread
        ways.append(here if alone else here + before)
        return sign(gradient)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(si_jax.runtime.devices, 'cores', lambda: cores)
    monkeypatch.setattr(ThreadPoolExecutor, 'submit', submitted)
    monkeypatch.setattr(steps.jnp, 'sign', seen)
    Path('net.py').write_text(MODEL)
    flags = ['--model=net.py:build', '--dataset=digits', '--num_examples=40', '--attacks=pgd', '--steps=2']
    assert evaluate.main([*flags, '--batch_size=8']) == 0
    assert ways and all(any(name.endswith(':main') for name in way) for way in ways)
    longest = max(ways, key=len)
    assert len(longest) <= MOST, '\n'.join(longest)
