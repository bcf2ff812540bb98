"""The numbers of a result, and the files that hold them."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import InputError, Result, Threat
from si_jax.evaluation.result import AttackRecord


def result(count: int = 10, **changes) -> Result:
    clean = np.arange(count) < 8
    runs = np.stack([np.arange(count) < 6, np.arange(count) % 2 == 0])
    fields = {
        'clean': clean,
        'attacks': {
            'pgd': AttackRecord(runs, 20, 0.05, 1, 0.2),
            'fgsm': AttackRecord(runs[:1], 1, 0.2, 1, 0.2),
        },
        'labels': np.arange(count) % 3,
        'indices': np.arange(count),
        'threat': Threat('linf', 0.2),
        'seed': 4,
        'precision': {'matmul': 'highest'},
        'dataset': {'examples': count},
        'warnings': ['look out'],
        'environment': {'jax': '0'},
        'timing': {'seconds': 1.0},
    }
    return Result(**fields | changes)


def test_numbers():
    r = result()
    assert r.accuracy == {'clean': 0.8, 'pgd': 0.3, 'fgsm': 0.6, 'worst_case': 0.3}
    assert r.single_run == {'pgd': 0.6, 'fgsm': 0.6}
    assert_array_equal(r.correct['pgd'], np.isin(np.arange(10), [0, 2, 4]))
    assert_array_equal(r.correct['worst_case'], r.correct['pgd'])


@pytest.mark.parametrize(('right', 'count'), [(0, 10), (1, 10), (10, 10), (258, 1000), (5443, 10000)])
def test_the_interval_is_wilsons(right, count):
    z, p = 1.959963984540054, right / count
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    flags = np.arange(count) < right
    low, high = result(count, clean=flags, labels=flags, indices=flags, attacks={}).ci95['clean']
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= p <= high <= 1


def test_save(tmp_path):
    r = result(images={'pgd': np.zeros((10, 2, 2, 1), np.float32)})
    r.save(tmp_path / 'deep' / 'one.json')
    assert sorted(path.name for path in (tmp_path / 'deep').iterdir()) == [
        'one.json',
        'one.npz',
        'one_images.npz',
    ]
    assert json.loads((tmp_path / 'deep' / 'one.json').read_text()) == json.loads(json.dumps(r.to_json()))
    flags = np.load(tmp_path / 'deep' / 'one.npz')
    assert set(flags) == {'clean', 'pgd', 'fgsm', 'worst_case', 'labels', 'indices'}
    for name in r.correct:
        assert flags[name].dtype == bool
        assert_array_equal(flags[name], r.correct[name])
    assert_array_equal(flags['labels'], r.labels)
    assert_array_equal(np.load(tmp_path / 'deep' / 'one_images.npz')['pgd'], r.images['pgd'])
    result().save(tmp_path / 'two.json')
    assert not (tmp_path / 'two_images.npz').exists()
    with pytest.raises(InputError, match="'one.txt' does not end in .json"):
        r.save('one.txt')


def test_what_only_one_attack_breaks_and_what_pgd_makes_of_a_defense():
    def breaks(*broken: int) -> AttackRecord:
        return AttackRecord(~np.isin(np.arange(10), (8, 9, *broken))[None], 20, 0.05, 1, 0.2)

    r = result(attacks={'pgd': breaks(0, 1), 'cw': breaks(1, 2), 'autoattack': breaks(0, 1, 2, 3)})
    # Images 8 and 9 are wrong without any attack: nobody breaks them.
    assert r.only == {'pgd': 0, 'cw': 0, 'autoattack': 1}
    assert r.overestimation_gap == 20.0
    content = r.to_json()
    assert content['overestimation_gap'] == 20.0 and content['attacks']['autoattack']['only'] == 1
    assert 'overestimation gap, pgd - autoattack: 20.00 points' in r.table()
    assert result().overestimation_gap is None and 'overestimation_gap' not in result().to_json()
