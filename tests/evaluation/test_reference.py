"""The PGD family on three published networks, against the results of PyTorch code on the same images.

Both sides draw five random starts, so each mean has a standard error of about 0.1 points; two single runs lie
up to 0.5 points apart.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest

from si_jax import evaluate

FAMILY = ('pgd', 'cw', 'dlr', 'sipgd')


@pytest.fixture(scope='module')
def cifar10(shared):
    data = np.load(shared / 'data' / 'cifar10_test.npz')
    return (data['images'][:1000] / 255).astype(np.float32), data['labels'][:1000]


@pytest.fixture(scope='module')
def nets(shared):
    spec = importlib.util.spec_from_file_location('nets', shared / 'reference' / 'nets.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', ['cnn_a_adv4', 'kw_base', 'resnet4b'])
def test_accuracies_are_those_of_the_reference(name, shared, nets, cifar10):
    reference = json.loads((shared / 'reference' / f'{name}.json').read_text())
    network, _ = nets.load(shared / 'checkpoints' / f'{name}.npz', name)
    # One device: eight simulated ones would share the same cores.
    result = evaluate(
        network,
        *cifar10,
        attacks=FAMILY,
        eps=nets.EPS[name] / 255,
        restarts=5,
        seed=1,
        devices=jax.local_devices()[:1],
    )
    assert result.accuracy['clean'] == pytest.approx(reference['clean'], abs=1e-6)
    for attack in FAMILY:
        mean = result.attacks[attack].runs.mean()
        assert mean == pytest.approx(reference[attack]['mean'], abs=0.003 + 1e-6), attack
        assert result.accuracy[attack] == pytest.approx(reference[attack]['worst5'], abs=0.005 + 1e-6), attack
