"""What is said of cosines and logits beside every accuracy under SI attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import Outputs, Result, evaluate
from si_jax.evaluation import cosines

ONE = jax.local_devices()[:1]
# Two images of two pixels, which are the features: |z| = 1.
IMAGES = np.array([[0.6, 0.8], [0.8, 0.6]], np.float32).reshape(2, 1, 2, 1)
LABELS = np.array([0, 0])
# W_1 = (1, 0) and W_2 = (0, 3): the cosines are the pixels.
KERNEL = jnp.array([[1.0, 0.0], [0.0, 3.0]])


def by_hand(bias, scale=1.0, kernel=KERNEL):
    def network(x):
        z = x.reshape(len(x), -1)
        return Outputs(scale * (z @ kernel + jnp.asarray(bias)), z, kernel)

    return network


def run(network, attacks='sipgd', **settings):
    settings = {'eps': 0.05, 'steps': 1, 'devices': ONE, **settings}
    return evaluate(network, IMAGES, LABELS, attacks=attacks, **settings)


# Logits with b = (1, -1): (1.6, 1.4) and (1.8, 0.8). Cosines: (0.6, 0.8) and (0.8, 0.6).
@pytest.mark.parametrize('scale', [1.0, 4.0])
def test_the_numbers_by_hand(scale):
    si = run(by_hand([1.0, -1.0], scale)).to_json()['si']
    expected = {
        'agreement': 0.5,
        'scaled_gap': 15 * 0.2,
        'weight_norm_spread': 0.5,  # lengths 1 and 3
        'bias_spread': scale * 1.0,
        'logit_gap': scale * (0.2 + 1.0) / 2,
        'mean_feature_norm': 1.0,
        'mean_true_cosine': 0.7,
    }
    assert si == pytest.approx(expected, rel=1e-5)
    assert list(si) == list(expected)


def test_only_beside_attacks_that_read_features():
    result = run(by_hand([1.0, -1.0]), 'pgd')
    assert result.si is None and 'si' not in result.to_json() and 'cosine' not in result.table()


@pytest.mark.parametrize('attack', ['sipgd', 'apgd-si-t'])
def test_a_note_and_a_warning_where_decisions_differ(attack):
    result = run(by_hand([1.0, -1.0]), f'pgd,{attack}')
    (found,) = [words for words in result.warnings if 'cosine' in words]
    assert found.startswith(f'{attack} may be weak')
    assert 'on only 1 of 2 clean images' in found and 'Trust autoattack, or the worst case' in found
    assert 'gap' not in found  # 15 x 0.2 is no reason
    table = ' '.join(result.table().split())
    for words in (
        'same class as the largest logit on 1 of 2',
        '15 x the median gap of the two largest cosines is 3;',
        '|W_k| has std/mean 50 %, b a std of 1 where',
        'mean |z| 1, mean cosine of the true class 0.7',
    ):
        assert words in table


def test_a_warning_where_cosines_lie_together():
    """Features with a large common part: the cosines are nearly equal, and decide as the logits do."""

    def network(x):
        z = jnp.concatenate([x.reshape(len(x), -1), jnp.full((len(x), 1), 50.0)], axis=1)
        kernel = jnp.concatenate([KERNEL / jnp.array([1.0, 3.0]), jnp.ones((1, 2))])
        return Outputs(z @ kernel, z, kernel)

    result = run(network)
    assert result.si['agreement'] == 1.0
    (found,) = [words for words in result.warnings if 'cosine' in words]
    assert '15 times the median gap between the two largest cosines is 0.0424' in found
    assert 'on only' not in found


def test_no_warning_where_cosines_decide():
    result = run(by_hand([0.0, 0.0], kernel=jnp.eye(2)))
    assert result.si['agreement'] == 1.0 and result.si['scaled_gap'] == pytest.approx(3.0)
    assert not [words for words in result.warnings if 'cosine' in words]


def test_the_remedy_shows_what_sipgd_overlooks():
    """The bias decides, and the cosines of both classes are the same for every image."""
    network = by_hand([0.145, 0.0], kernel=jnp.ones((2, 2)) * jnp.array([1.0, 1.1]))
    result = run(network, 'sipgd,pgd,apgd-ce', eps=0.1, steps=4)
    assert result.accuracy['sipgd'] == 1.0 and any('Trust autoattack' in words for words in result.warnings)
    assert result.accuracy['worst_case'] == result.accuracy['apgd-ce'] == result.accuracy['pgd'] == 0.0


def test_features_without_a_finite_square_or_of_length_zero():
    logits = np.array([[2.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    z = np.array([[3e25, 4e25], [4.0, 3.0], [0.0, 0.0]], np.float32)
    lengths = cosines.norms(jnp.asarray(z), axis=1)
    assert lengths.tolist() == pytest.approx([5e25, 5.0, 0.0])
    si = cosines.measure(logits, z @ np.eye(2), lengths, np.ones((3, 2)), np.array([0, 0, 0]))
    assert all(map(np.isfinite, si.values()))
    assert si['mean_true_cosine'] == pytest.approx((0.6 + 0.8) / 3)


def test_an_evaluation_that_goes_on_says_the_same_and_a_file_holds_it(tmp_path):
    results = [run(by_hand([1.0, -1.0]), state_path=tmp_path / 'state') for _ in range(2)]
    assert results[0].si == results[1].si
    results[0].save(tmp_path / 'r.json')
    assert Result.load(tmp_path / 'r.json').about['si'] == results[0].si
