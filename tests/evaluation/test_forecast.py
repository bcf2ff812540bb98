"""What an evaluation will take, said before it begins."""

import numpy as np

from si_jax import evaluate
from si_jax.evaluation import forecast
from tests.helpers.problems import images_and_labels, net


def test_the_cost_and_a_remedy():
    said = forecast.words(10_000, 5000, 2e-4)
    assert said.startswith('attacks: 10,000 images x at most 5,000 forward passes, about 2:46:40 ')
    assert said.endswith(
        '1,000 images take about 16:40 and give accuracies to within 3 points: images[:1000], or '
        '--num_examples=1000'
    )
    assert '--num_examples' not in forecast.words(1000, 5000, 2e-4)
    assert forecast.words(100, 60, 2e-4) == ''


def test_it_is_said_where_progress_is_shown(monkeypatch, capfd):
    monkeypatch.setattr(forecast, 'LONG', 0.0)
    network = net()
    images, labels = images_and_labels(6, network)
    results = []
    for progress in (True, None):
        results.append(evaluate(network, images, labels, attacks='pgd', steps=2, progress=progress))
        said = capfd.readouterr().err
        assert ('attacks: 6 images x at most 6 forward passes, about 00:00' in said) == bool(progress)
    np.testing.assert_array_equal(*(result.correct['pgd'] for result in results))
