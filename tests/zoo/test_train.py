"""A training run from Python."""

import jax.numpy as jnp
import pytest

import si_jax
from si_jax.training.recipes import recipe


def test_train_returns_the_network(tmp_path, capsys):
    config = recipe('quickstart')
    config.update_from_flattened_dict(
        {
            'epochs': 1,
            'batch_size': 16,
            'data.limit': 64,
            'data.validation': 16,
            'attack.steps': 1,
            'model.width': 2,
        }
    )
    model = si_jax.train(config, tmp_path / 'run')
    assert isinstance(model, si_jax.LoadedModel) and model.step == 4
    again = si_jax.load_model(tmp_path / 'run', 'last')
    config.data.validation = 10_000
    with pytest.raises(si_jax.InputError, match='validation') as refused:
        si_jax.train(config, tmp_path / 'run')
    assert '--' not in str(refused.value)
    # What is advised on the way is for a caller, too.
    printed = capsys.readouterr().out
    assert 'warning: ' in printed and 'config.schedule.peak' in printed and '--config' not in printed
    images = jnp.ones((2, 8, 8, 1)) / 2
    assert (model(images).logits == again(images).logits).all()
