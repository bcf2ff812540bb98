"""The page of random defenses: its program runs, and says of each defense what the page says."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'random.md').read_text()


@pytest.fixture(scope='module')
def told():
    names = {}
    blocks = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    assert len(blocks) == 5
    with jax.enable_x64(False):
        exec(compile('\n'.join(blocks), 'docs/random.md', 'exec'), names)
    return names


def test_each_defense_is_judged_by_fresh_draws(told):
    result, voted, pure = told['result'], told['voted'], told['pure']
    assert (result.decisions, voted.decisions, pure.decisions) == (64, 16, 64)
    for one in (result, voted, pure):
        assert one.accuracy['pgd'] < one.accuracy['clean'] and one.accuracy['clean'] > 0.5
        assert one.worst_draw_accuracy['pgd'] <= one.accuracy['pgd']
        assert len(one.attacks['pgd'].runs) == 2
    assert result.eot['eot_samples'] >= 2 and 'auto' in result.warnings[0]
    # The vote of copies is surer than one copy.
    assert voted.worst_draw_accuracy['clean'] > result.worst_draw_accuracy['clean']


def test_the_gradient_through_the_purifier_is_exact(told):
    with jax.enable_x64(False):
        x, keys = jnp.asarray(told['images'][:1]), jax.random.split(jax.random.key(1), 1)
        along = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), x.dtype)

        def loss(x):
            return jnp.sum(told['purified'](x, keys) * jnp.arange(10))

        slope = jnp.sum(jax.grad(loss)(x) * along)
        # The purifier is linear in the image, so that a difference of any length is the slope.
        np.testing.assert_allclose(slope, loss(x + along) - loss(x), rtol=1e-3)


def test_linked_files_exist():
    for link in re.findall(r'\]\((?!http)(.+?)\)', PAGE):
        assert (ROOT / 'docs' / link).exists(), link
