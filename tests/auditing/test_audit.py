"""The audit on networks made for it: an honest one, and three whose robust accuracy must not be trusted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, Randomised, audit, evaluate
from si_jax.auditing import binarization, curves, gradients, traces, verdicts
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.network import Network
from si_jax.evaluation.request import Request
from si_jax.threat import Threat
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(32, NET)
DEVICES = jax.local_devices()[:1]
SETTINGS = {'eps': 0.04, 'steps': 8, 'restarts': 2, 'steps_grid': (4, 16), 'eps_grid': (0.02, 0.04, 0.32)}
FEW = {'queries': 100, 'planted': 16, 'points': 40, 'devices': DEVICES}
CHECKS = 'randomness batch outputs gradients loss scale iterates eps steps restarts black-box'
CHECKS += ' transfer binarization'


def logits_alone(x):
    """The network in a form that no last linear layer can be read from."""
    return jnp.tanh(NET(x).logits / 8)


def loud(x):
    return 1000 * NET(x).logits


def quantised(x):
    return NET(jnp.round(15 * x) / 15)


def in_train_mode(x):
    return NET(0.5 + 0.3 * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))


def run(classifier, **changes):
    return audit(classifier, IMAGES, LABELS, **SETTINGS | FEW | changes)


def outcomes(report) -> dict[str, str]:
    return {check.name: check.outcome for check in report.checks}


@pytest.fixture(scope='module')
def honest():
    return run(NET, transfer_from={'another': net(seed=1)})


@pytest.fixture(scope='module')
def vanishing():
    return run(loud)


def test_nothing_is_found_on_an_honest_network_and_few_images_are_no_pass(honest, tmp_path):
    whole = ('randomness', 'batch', 'outputs', 'loss')
    assert outcomes(honest) == {name: 'pass' if name in whole else 'few' for name in CHECKS.split()}
    assert honest.verdict == 'few' and honest.words.startswith('too few images to say whether the accuracy')
    for name in set(CHECKS.split()) - set(whole):
        assert 'too few images to say' in honest.check(name).words
    # The numbers are those of an evaluation, on the same starting points.
    result = evaluate(NET, IMAGES, LABELS, attacks='pgd', eps=0.04, steps=8, restarts=2, devices=DEVICES)
    assert honest.clean == pytest.approx(result.accuracy['clean'])
    assert honest.accuracy == pytest.approx(result.accuracy['pgd'])
    evidence = {check.name: check.evidence for check in honest.checks}
    runs = np.logical_and.accumulate(result.attacks['pgd'].runs).mean(axis=1)
    assert evidence['restarts']['accuracy'] == pytest.approx(list(runs))
    assert evidence['steps']['steps'] == [4, 8, 16] and evidence['eps']['eps'] == [0.02, 0.04, 0.32]
    assert evidence['steps']['accuracy'][1] == pytest.approx(runs[0]) == evidence['eps']['accuracy'][1]
    assert evidence['eps']['accuracy'][-1] == 0
    assert len(evidence['loss']['mean']) == 9 and evidence['loss']['mean'][-1] > evidence['loss']['mean'][0]
    stages = {name: stage['zero'] + stage['tiny'] for name, stage in evidence['gradients']['stages'].items()}
    assert stages == dict.fromkeys(('attack', 'cross-entropy', 'scaled', 'logits', 'features'), 0.0)
    assert evidence['binarization']['found'] == 1 and evidence['binarization']['random_point'] < 0.1
    box, moved = evidence['black-box'], evidence['transfer']
    assert box['white_box'] == honest.accuracy == moved['white_box'] < box['black_box'] < honest.clean
    assert moved['accuracy']['another'] > honest.accuracy

    honest.save(tmp_path / 'out' / 'audit.json')
    written = json.loads((tmp_path / 'out' / 'audit.json').read_text())
    assert written['schema'] == 1 and written['kind'] == 'audit' and written['verdict'] == 'few'
    assert ' '.join(written['checks']) == CHECKS
    assert written['checks']['eps']['evidence'] == evidence['eps']
    assert written['dataset']['digest'] == result.dataset['digest'] and written['environment']['jax']
    assert (tmp_path / 'out' / 'audit.png').read_bytes().startswith(b'\x89PNG')
    table = honest.table().splitlines()
    assert max(map(len, table)) <= 80
    assert sum(line.startswith(('pass ', 'few ')) for line in table) == 13
    assert any(line.startswith('verdict: FEW: too few images to say') for line in table)


def test_an_honest_network_in_l1(tmp_path):
    report = run(NET, norm='l1', eps=0.5, eps_grid=(0.25, 0.5, 8.0))
    assert set(outcomes(report).values()) == {'pass', 'few', 'skip'}
    assert outcomes(report)['transfer'] == 'skip' and report.verdict == 'few'
    evidence = {check.name: check.evidence for check in report.checks}
    assert evidence['eps']['eps'] == [0.25, 0.5, 8.0] and evidence['eps']['accuracy'][-1] == 0
    assert evidence['eps']['accuracy'][1] == report.accuracy < report.clean
    assert evidence['binarization']['found'] == 1
    report.save(tmp_path / 'audit.json')
    assert json.loads((tmp_path / 'audit.json').read_text())['threat_model'] == {'norm': 'l1', 'eps': 0.5}


def test_logits_too_large_for_softmax(vanishing):
    found = outcomes(vanishing)
    assert vanishing.verdict == 'fail' and 'do not trust' in vanishing.words
    for name in ('gradients', 'loss', 'eps', 'binarization'):
        assert found[name] == 'fail' and name in vanishing.words
    assert found['randomness'] == found['batch'] == found['outputs'] == 'pass'
    assert found['transfer'] == 'skip'
    check = vanishing.check('gradients')
    assert 'lost after the logits' in check.words and 'pgd-gap' in check.words
    stages = check.evidence['stages']
    assert stages['cross-entropy']['zero'] > 0.5 and stages['cross-entropy'] == stages['attack']
    assert stages['logits']['zero'] == stages['scaled']['zero'] == stages['features']['zero'] == 0
    assert 'FAIL gradients' in vanishing.table()


def test_the_same_network_under_an_attack_that_is_blind_to_the_scale(vanishing, honest):
    report = run(loud, attack='pgd-gap')
    assert report.verdict == 'few'
    assert 'plain cross-entropy has lost it on 100.0 %' in report.check('gradients').words
    assert report.accuracy <= honest.accuracy + 0.05 < vanishing.accuracy


def test_a_quantised_input():
    report = run(quantised)
    found = outcomes(report)
    assert report.verdict == 'fail'
    for name in ('gradients', 'loss', 'eps', 'black-box', 'binarization'):
        assert found[name] == 'fail'
    check = report.check('gradients')
    assert 'exactly zero on 100.0 %' in check.words and 'lost before the features' in check.words
    assert 'gradient_of' in check.words and check.evidence['moves'] == 1
    assert all(stage['zero'] == 1 for stage in check.evidence['stages'].values())
    assert '100.0 % of the images never leave the start' in report.check('loss').words
    assert 'gradients may be masked' in report.check('black-box').words
    assert report.check('binarization').evidence['found'] < 0.2


def test_batch_normalisation_left_in_train_mode(tmp_path):
    report = run(in_train_mode)
    found = outcomes(report)
    assert report.verdict == 'fail' and found.pop('batch') == 'fail' and found.pop('randomness') == 'pass'
    assert set(found.values()) == {'skip'} and ' '.join(outcomes(report)) == CHECKS
    assert 'batch normalisation into evaluation mode' in report.check('batch').words
    assert report.accuracy is None and 'FAIL batch' in report.table()
    report.save(tmp_path / 'audit.json')
    assert json.loads((tmp_path / 'audit.json').read_text())['accuracy'] is None
    assert not (tmp_path / 'audit.png').exists()


def test_randomness():
    state = np.random.default_rng(0)
    report = run(lambda x: NET(x).logits + state.normal())
    found = outcomes(report)
    assert report.verdict == 'fail' and found.pop('randomness') == 'fail' and set(found.values()) == {'skip'}
    assert 'si_jax.Randomised' in report.check('randomness').words
    assert verdicts.randomness('', True, 1).outcome == 'warn'
    assert verdicts.randomness('', True, 20).outcome == 'pass'
    assert 'from its keys' in verdicts.randomness('0.5', True, 20).words


def test_a_random_defense_without_features_in_l2(tmp_path):
    """What has no features, no finished run and no Linf is audited too, and goes on where it was."""

    def noisy(x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        return logits_alone(x + 0.01 * noise)

    settings = {'norm': 'l2', 'eps': 0.3, 'eps_grid': (0.3, 3.0), 'eot_samples': 2, 'restarts': 1}
    settings |= {'state_path': tmp_path / 'state'}
    report = run(Randomised(noisy), **settings)
    found = outcomes(report)
    assert found['randomness'] == 'pass' and found['restarts'] == 'skip' and found['gradients'] == 'few'
    # Of many draws one is misclassified by noise alone.
    assert found['iterates'] == found['black-box'] == 'skip'
    report.save(tmp_path / 'out.json')
    with pytest.raises(InputError, match="eot_samples='auto' is for evaluate: give the audit the number"):
        run(Randomised(noisy), **settings | {'eot_samples': 'auto'})
    assert 'features' not in report.check('gradients').evidence['stages']
    assert report.check('binarization').evidence['images'] == 16
    assert max(map(len, report.table().splitlines())) <= 80
    again = run(Randomised(noisy), **settings)
    assert again.checks == report.checks
    with pytest.raises(InputError, match='holds the state of another evaluation'):
        run(Randomised(noisy), **settings | {'queries': 200})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'attack': 'apgd-ce'}, "attack 'apgd-ce' cannot be audited.*one of pgd, cw"),
        ({'attack': 'fgsm'}, "attack 'fgsm' cannot be audited"),
        ({'steps_grid': (0,)}, 'steps_grid=0 must be an integer of at least 1'),
        ({'eps_grid': (0.1, 8.0)}, r'eps=8 is not in \(0, 1\] for linf: did you mean 8/255'),
        ({'eps_grid': ()}, 'eps_grid is empty'),
        ({'points': 3}, 'points=3 must be an integer of at least 10'),
        ({'queries': 0}, 'queries=0 must be'),
        ({'labels': np.where(LABELS > 1, 9, LABELS)}, r'=9 is not in \[0, 4\)'),
        ({'transfer_from': {'other': net(classes=3)}}, 'other: the source has 3 classes, the classifier 4'),
    ],
)
def test_wrong_arguments(changes, message):
    labels = changes.pop('labels', LABELS)
    with pytest.raises(InputError, match=message):
        audit(NET, IMAGES, labels, **SETTINGS | FEW | changes)


def test_where_no_image_is_right_the_audit_says_so_and_attacks_nothing(tmp_path):
    labels = (np.argmax(NET(jnp.asarray(IMAGES)).logits, axis=1) + 1) % 4
    report = audit(NET, IMAGES, labels, **SETTINGS | FEW)
    assert report.verdict == 'fail' and report.clean == 0 and report.accuracy is None
    assert 'no image is classified correctly, so there is nothing to attack' in report.check('clean').words
    assert {report.check(name).outcome for name in ('gradients', 'loss', 'eps', 'restarts')} == {'skip'}
    report.save(tmp_path / 'audit.json')
    assert 'no image is classified correctly' in report.table()


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    def net(x):  # the root has no derivative at 0, and a `where` around it lets NaN through
        bright = jnp.where(x > 0, jnp.sqrt(x), 0.0)
        return (bright + x).reshape(len(x), -1) @ jnp.eye(36 * 2, 4)

    images = np.full((6, 6, 6, 2), 0.5, np.float32)
    images[:, 0, 0, 0] = np.linspace(0.5, 0.9, 6)
    images[:3, 5, 5, 1] = 0
    labels = np.argmax(net(jnp.asarray(images)), axis=1)
    report = audit(net, images, labels, **SETTINGS | FEW)
    check = report.check('gradients')
    assert check.outcome == 'warn' and check.evidence['not_finite'] >= 0.5
    assert 'It is not finite (NaN or infinite) on' in check.words and '`where` inside the root' in check.words
    assert all(np.isfinite(stage['median_largest_entry']) for stage in check.evidence['stages'].values())
    report.save(tmp_path / 'audit.json')


def test_the_verdicts_of_curves():
    """Each limit from both sides; a single image is never a finding."""
    assert curves.eps([0.1, 0.2], [0.5, 0.0], 10, 100).outcome == 'pass'
    assert curves.eps([0.1, 0.2], [0.5, 0.05], 10, 100).outcome == 'warn'
    assert curves.eps([0.1, 0.2], [0.5, 0.2], 10, 100).outcome == 'fail'
    assert curves.eps([0.1, 0.2], [0.5, 0.1], 10, 10).outcome == 'few'
    rising = curves.eps([0.1, 0.2, 0.4], [0.3, 0.4, 0.0], 10, 100)
    assert rising.outcome == 'warn' and 'rises by 10.0 points up to eps = 0.2' in rising.words
    assert curves.steps([10, 20, 100], [0.4, 0.35, 0.34], 20, 200).outcome == 'pass'
    more = curves.steps([10, 20, 100], [0.4, 0.35, 0.3], 20, 200)
    assert more.outcome == 'warn' and 'by -5.0 points: use more steps' in more.words
    assert 'use apgd-ce' in curves.steps([20, 100], [0.3, 0.4], 20, 200).words
    assert curves.restarts([0.27, 0.25], 200).outcome == 'pass'
    assert curves.restarts([0.4, 0.39, 0.3], 200).outcome == 'warn'
    missed = curves.iterates([10, 20], [0.4, 0.4], [0.4, 0.3], 20, 200)
    assert missed.outcome == 'warn' and missed.words.startswith('10.0 %')
    assert curves.iterates([10, 20], [0.4, 0.4], [0.3, 0.4], 20, 200).outcome == 'pass'


def test_a_pass_needs_images():
    """Where one image is more than the limit nothing that was not found says anything."""
    checks = {
        50: [
            lambda n: curves.steps([10, 20], [0.4, 0.4], 20, n),
            lambda n: curves.restarts([0.4, 0.4], n),
            lambda n: curves.eps([0.1, 0.2], [0.5, 0.0], 10, n),
            lambda n: verdicts.scale('pgd', 0.5, 0.5, n),
        ],
        100: [
            lambda n: curves.iterates([10, 20], [0.4, 0.4], [0.4, 0.4], 20, n),
            lambda n: verdicts.black_box(np.zeros(n, bool), np.ones(n, bool), 500, 50.0),
        ],
        20: [lambda n: verdicts.binarization(np.ones(n, bool), np.full(n, 0.01), n, 40)],
    }
    for needed, made in checks.items():
        for check in made:
            few, enough = check(needed - 1), check(needed)
            assert (few.outcome, enough.outcome) == ('few', 'pass')
            assert few.words.startswith(f'too few images to say: {needed - 1}, and a limit of ')
            assert f'needs {needed}; {check(needed - 1).words.split("; ", 1)[1]}' in few.words
    assert verdicts.overall([few, enough]) == 'few'
    assert verdicts.overall([few, verdicts.scale('pgd', 0.5, 0.4, 100)]) == 'warn'
    # What was found stays found, and a share comes with its interval.
    found = curves.iterates([20], [0.4], [0.2], 20, 20)
    assert found.outcome == 'warn' and found.evidence['ci95'] == pytest.approx([0.0807, 0.4160], abs=1e-4)
    assert '(20.0 % of 20 images, 95 % interval 8.1 to 41.6 %)' in found.words


def test_the_verdicts_of_attacks_without_gradients():
    white = np.arange(100) < 40
    assert verdicts.black_box(white, np.arange(100) < 60, 500, 50.0).outcome == 'pass'
    # Alone it breaks three images, but leaves many more.
    found = verdicts.black_box(white, (np.arange(100) >= 3) & (np.arange(100) < 60), 500, 50.0)
    assert found.outcome == 'warn' and 'alone breaks 3 images' in found.words
    assert verdicts.black_box(white, np.arange(100) < 37, 500, 50.0).outcome == 'fail'
    assert verdicts.black_box(white, np.arange(100) < 39, 500, 50.0).outcome == 'pass'
    moved = {'a': np.arange(100) < 60, 'b': np.arange(100) < 30}
    found = verdicts.transfer(white, moved)
    assert found.outcome == 'fail' and '30.0 % by images made on a, b' in found.words
    assert verdicts.transfer(white, {'a': moved['a']}).outcome == 'pass'


def test_the_verdicts_of_planted_examples():
    found = np.ones(20, bool)
    rare, common = np.full(20, 0.01), np.full(20, 0.8)
    assert verdicts.binarization(found, rare, 20, 40).outcome == 'pass'
    assert verdicts.binarization(found, common, 20, 40).outcome == 'warn'
    assert verdicts.binarization(np.arange(20) < 18, rare, 20, 40).outcome == 'fail'
    assert verdicts.binarization(np.arange(20) < 19, rare, 20, 40).outcome == 'pass'
    assert verdicts.binarization(found[:9], rare[:9], 20, 40).outcome == 'skip'
    few = verdicts.binarization(found[:2], rare[:2], 2, 40)
    assert few.outcome == 'few' and 'too few images to say: 2 ' in few.words and 'allow for' not in few.words
    assert verdicts.binarization(found, rare, 20, 40).evidence['random_search'] == pytest.approx(1 - 0.99**40)


def test_the_verdicts_of_gradients_and_of_the_loss():
    whole = {'zero': 0.0, 'tiny': 0.0}
    stages = {'attack': {'zero': 0.0, 'tiny': 0.5}, 'cross-entropy': whole, 'scaled': whole, 'logits': whole}
    nearly = verdicts.gradients(stages, 1.0, 100)
    assert nearly.outcome == 'warn' and 'vanishing on 50.0 %' in nearly.words
    assert verdicts.gradients(stages | {'attack': {'zero': 0.005, 'tiny': 0.005}}, 1.0, 100).outcome == 'pass'
    # Of a few images a single one is none.
    assert verdicts.gradients(stages | {'attack': {'zero': 0.1, 'tiny': 0.0}}, 1.0, 10).outcome == 'few'
    last = {'attack': {'zero': 1.0, 'tiny': 0.0}, 'cross-entropy': whole, 'scaled': whole}
    last |= {'logits': {'zero': 1.0, 'tiny': 0.0}, 'features': whole}
    assert 'lost in the last layer' in verdicts.gradients(last, 1.0, 100).words
    assert (
        'lost before the logits'
        in verdicts.gradients(
            {name: stage for name, stage in last.items() if name != 'features'}, 1.0, 100
        ).words
    )

    losses, before = np.tile([0.0, 1.0, 0.5], (20, 1)), np.full(20, -1.0)
    rising = verdicts.loss(losses, (before, before + 1), np.ones(20, bool))
    assert rising.outcome == 'pass' and rising.evidence['steps_up'] == 0.5
    assert rising.evidence['mean'] == [0.0, 1.0, 0.5] and rising.evidence['loss_rises'] == 1
    # The start raised the margin, the steps did nothing.
    assert verdicts.loss(losses, (before, before + 1), np.arange(20) > 1).outcome == 'fail'
    assert verdicts.loss(losses, (before, before - 1), np.ones(20, bool)).outcome == 'fail'

    assert verdicts.scale('pgd', 0.5, 0.4, 100).outcome == 'warn'
    assert verdicts.scale('pgd', 0.5, 0.49, 100).outcome == 'pass'
    assert 'higher by 10.0 points' in verdicts.scale('pgd', 0.5, 0.6, 100).words


def test_vanishing_is_measured_against_the_margin():
    measured = {
        'zero_attack': np.array([True, False, False, False]),
        'largest_attack': np.array([0.0, 1e-8, 1e-3, 1e-5]),
        'zero_logits': np.zeros(4, bool),
        'largest_logits': np.array([1.0, 1.0, 1.0, 1e-2]),
    }
    assert gradients.summary(measured) == {
        'attack': {'zero': 0.25, 'tiny': 0.25, 'median_largest_entry': pytest.approx(5.005e-6)},
        'logits': {'zero': 0.0, 'tiny': 0.0, 'median_largest_entry': 1.0},
    }


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_points_lie_where_they_should(norm):
    threat, image = Threat(norm, 0.1), np.full((4, 4, 1), 0.5)
    rng = np.random.default_rng(0)
    inside = threat.distance(
        jnp.asarray(binarization.points(rng, image, threat, 0.1, 50, corners=False)), image[None]
    )
    corners = binarization.points(rng, image, threat, 0.1, 50, corners=True)
    assert np.all(inside < 0.1) and np.max(inside) > 0.095
    np.testing.assert_allclose(threat.distance(jnp.asarray(corners), image[None]), 0.1)
    if norm == 'linf':
        np.testing.assert_allclose(np.abs(corners - 0.5), 0.1)
    assert len(np.unique(corners, axis=0)) == 50
    bright = binarization.points(rng, np.ones((4, 4, 1)), threat, 0.1, 9, corners=True)
    assert bright.min() >= 0.9 - 1e-9 and bright.max() == 1


def test_a_plane_that_has_one_point_on_the_other_side():
    rng = np.random.default_rng(0)
    inner = rng.normal(size=(30, 6)) * [1, 10, 0.1, 1, 1, 0]
    outer = np.array([4.0, 0, 0, 0, 0, 0])
    direction, offset = binarization.separate(inner, outer)
    scores = inner @ direction + offset
    assert scores.max() < 0 < outer @ direction + offset
    # Nine tenths of the way from the outermost inner point to the outer one.
    assert -scores.max() == pytest.approx(9 * (outer @ direction + offset), rel=1e-6)
    assert binarization.separate(inner, inner.mean(axis=0)) is None
    assert binarization.separate(np.ones((30, 6)), np.ones(6)) is None


def test_the_attack_on_planted_examples_in_closed_form():
    """On a linear network the planted example is found if and only if the steps lead far enough."""
    network = Network.of(
        classifier_of(lambda x: x.reshape(len(x), -1) @ jnp.asarray(NET.v) @ jnp.asarray(NET.w)),
        Request.of(IMAGES, LABELS, batch_size=32, devices=DEVICES),
    )
    rows = np.arange(4)
    direction = np.random.default_rng(1).normal(size=(4, 4))
    clean = np.asarray(IMAGES[:4].reshape(4, -1) @ NET.v @ NET.w)
    pixel = (np.asarray(NET.v @ NET.w) @ direction.T).T.reshape(4, *IMAGES.shape[1:])
    # The highest score in the ball and in [0, 1].
    highest = np.where(pixel > 0, np.minimum(IMAGES[:4] + 0.05, 1), np.maximum(IMAGES[:4] - 0.05, 0))
    best = np.sum(pixel * highest, axis=(1, 2, 3))
    offsets = -(best + np.array([-1, 1, -1, 1]) * 1e-3 * np.abs(best))
    assert np.all(np.sum(clean * direction, axis=1) + offsets < 0)
    heads = binarization.Heads(np.ones(4, bool), direction, offsets, np.zeros(4))
    attack = traces.for_two_classes('pgd')
    for steps, expected in ((10, [True, False, True, False]), (1, [False] * 4)):
        settings = traces.Settings(0.05, 0.0125, steps, steps)
        found = binarization.attack(network, attack, heads, settings, rows)
        assert found.tolist() == expected


def test_attacks_for_two_classes():
    assert traces.for_two_classes('pgd') == traces.ATTACKS['pgd']
    assert traces.for_two_classes('dlr').objective == traces.ATTACKS['cw'].objective
    assert traces.for_two_classes('sipgd').score == traces.ATTACKS['pgd-gap'].score


def test_images_with_channels_first_are_judged_as_they_are():
    kernel = np.random.default_rng(0).normal(size=(48, 10))

    def flat(x):
        return x.reshape(len(x), -1) @ kernel

    images = np.random.default_rng(1).uniform(size=(8, 3, 4, 4))
    labels = np.argmax(flat(images), axis=1)
    report = audit(flat, images, labels, attack='pgd', eps=0.01, layout='nchw', steps=2, queries=10)
    assert report.clean == 1.0
