"""The reference networks, from their PyTorch files, have their reference accuracies."""

import json

import numpy as np
import pytest

import si_jax

torch = pytest.importorskip('torch', reason="the networks are PyTorch's")

from si_jax.interop.loading import load_torch_module  # noqa: E402
from tests.interop.test_torch_graph import reference_network  # noqa: E402


@pytest.mark.parametrize(('name', 'eps'), [('cnn_a_adv4', 8 / 255), ('resnet4b', 2 / 255)])
def test_reference_accuracy(shared, name, eps):
    module, _ = reference_network(shared, name)
    with np.load(shared / 'data' / 'cifar10_test.npz') as data:
        images = next(data[k] for k in data if data[k].ndim == 4)[:1000] / np.float32(255)
        labels = next(data[k] for k in data if data[k].ndim == 1)[:1000]
    reference = json.loads((shared / 'reference' / f'{name}.json').read_text())
    result = si_jax.evaluate(
        load_torch_module(module), images, labels, attacks='pgd,sipgd', eps=eps, steps=20
    )
    assert result.accuracy['clean'] == pytest.approx(reference['clean'])
    # One seed against the mean of five: several times the spread of the reference over its own.
    for attack in ('pgd', 'sipgd'):
        assert abs(result.accuracy[attack] - reference[attack]['mean']) < 0.006
