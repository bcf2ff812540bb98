"""Attacks that keep the decision: stronger than PGD on published networks, and blind to the logits' scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import InputError, Outputs, evaluate
from si_jax.evaluation.state import Saved
from si_jax.evaluation.surrogate import calibrate
from tests.helpers import scaled_networks
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)
ONE = jax.local_devices()[:1]


def scaled(factor):
    return lambda x: factor * NET(x).logits


def run(attacks, classifier=NET, **settings):
    steps = {} if attacks.startswith('fast') else {'steps': 3}
    return evaluate(
        classifier, IMAGES, LABELS, attacks=attacks, **{'eps': 0.04, 'devices': ONE, **steps, **settings}
    )


@pytest.mark.parametrize(('name', 'factor'), [('cnn_a_adv4', 1e3), ('kw_base', 1e-3)])
def test_they_are_two_points_stronger_on_published_networks_at_any_scale(name, factor, shared, tmp_path):
    blind = ('pgd-gap', 'apgd-cal')
    found = scaled_networks.run(
        shared, name, 1000, tmp_path / 'found.npz', dict.fromkeys((1, factor), ','.join(blind))
    )
    # By the reference code, which ours equal: test_reference.py, test_autoattack_reference.py and, for the
    # APGD-CE of kw_base, `make conformance`.
    theirs = np.load(shared / 'reference' / f'{name}.npz')
    assert found[1, 'pgd-gap'] <= theirs['pgd'].mean() - 0.02
    assert found[1, 'apgd-cal'] <= theirs['aa_apgd-ce'].mean() - 0.02
    for attack in blind:
        assert abs(found[factor, attack] - found[1, attack]) <= 0.001 + 1e-6, attack


@pytest.mark.parametrize('factor', [2.0**-9, 2.0**11])
def test_images_are_bit_equal_when_the_logits_are_multiplied_by_a_power_of_two(factor, monkeypatch):
    quicken(monkeypatch)
    attacks = 'pgd-gap,pgd-cal,apgd-cal'
    one, other = (run(attacks, scaled(f), return_images=True) for f in (1.0, factor))
    assert 0 < one.accuracy['worst_case'] < one.accuracy['clean']
    for name in attacks.split(','):
        assert np.abs(one.images[name] - IMAGES).max() > 0.03
        assert_array_equal(one.images[name], other.images[name], name)
        assert_array_equal(one.correct[name], other.correct[name], name)
    assert other.calibration['scale'] == one.calibration['scale'] / factor


def test_the_factor_is_two_over_the_median_gap_of_all_clean_images():
    result = run('pgd-cal', batch_size=16)
    logits = np.sort(np.asarray(NET(jnp.asarray(IMAGES)).logits, np.float64), axis=1)
    gap = np.median(logits[:, -1] - logits[:, -2])
    assert result.calibration == pytest.approx({'scale': 2 / gap, 'median_gap': gap}, rel=1e-5)
    assert result.to_json()['calibration'] == result.calibration
    # It is plain PGD on a classifier with such logits.
    plain = run('pgd', lambda x: result.calibration['scale'] * NET(x).logits, return_images=True)
    ours = run('pgd-cal', return_images=True)
    np.testing.assert_allclose(ours.images['pgd-cal'], plain.images['pgd'], atol=1e-6)
    assert run('pgd').calibration is None and 'calibration' not in run('pgd').to_json()


def test_logits_without_a_gap_cannot_be_calibrated():
    def ties(x):
        logits = NET(x).logits
        top = jnp.max(logits, axis=1, keepdims=True)
        return jnp.concatenate([logits, top], axis=1)

    with pytest.raises(InputError, match="median gap .* is 0, so they have no scale .*use 'pgd-gap'"):
        run('fast', ties)


def test_an_evaluation_that_goes_on_keeps_its_factor(tmp_path):
    logits = np.asarray(NET(jnp.asarray(IMAGES)).logits)
    identity = {'weights': 'a'}
    with Saved(tmp_path, identity, logits):
        first = calibrate(logits)
        again = calibrate(logits * np.float32(1 + 1e-5))
    assert again == first
    match = 'the state was calibrated with the factor .*, the clean images now'
    with Saved(tmp_path, identity, logits), pytest.raises(InputError, match=match):
        calibrate(1.01 * logits)


def test_fast_is_a_screen_with_two_targets(monkeypatch):
    quicken(monkeypatch)
    result = run('fast,pgd-hybrid-20')
    record = result.attacks['fast']
    first, second, targeted = record.stages
    assert (first['attack'], second['attack']) == ('pgd-hybrid-20', 'apgd-cal')
    assert (targeted['attack'], targeted['runs']) == ('apgd-t', 2)
    assert record.protocol['follows'] is None and record.protocol['screen'].startswith('a screen')
    assert [stage['targets'] for stage in record.protocol['stages']] == [0, 0, 2]
    left = result.correct['pgd-hybrid-20']
    assert_array_equal(record.broken_by == 0, result.correct['clean'] & ~left)
    # They make 20, 10 and 2 x 10 steps and evaluate the last point, on images that withstand them.
    stood = result.correct['fast']
    assert stood.any() and set(record.queries[stood]) == {21 + 11 + 2 * 11}
    assert record.queries.sum() == sum(stage['forward_passes'] for stage in record.stages)
    total = f'{record.queries.sum():,} forward passes'
    table = result.table()
    assert 'fast: a screen for development' in table and total in ' '.join(table.split())
    assert max(len(line) for line in table.splitlines()) <= 80
    assert not (result.correct['fast'] & ~left).any()


def test_features_do_not_stand_in_the_way_of_calibration():
    def classifier(x):
        outputs = NET(x)
        return Outputs(100 * outputs.logits, outputs.features, 100 * outputs.kernel)

    plain, large = run('pgd-cal', return_images=True), run('pgd-cal', classifier, return_images=True)
    np.testing.assert_allclose(large.images['pgd-cal'], plain.images['pgd-cal'], atol=1e-6)
