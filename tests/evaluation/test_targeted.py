"""Targets of the caller's, on a classifier for which it is known which classes can be reached."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, Randomised, evaluate
from si_jax.evaluation.result import Result

CLASSES, EPS, COUNT = 4, 0.1, 16
DEVICES = jax.local_devices()[:1]


def blocks(images):
    """Each class has a row of pixels, whose mean is its logit: all can be moved by eps at once."""
    return 10 * images.mean(axis=(2, 3))


def problem():
    """Images whose gaps between classes are well off 2 eps, and their labels, two of them wrong."""
    rng = np.random.default_rng(1)
    near, far = [0.3, 0.5, 0.55, 0.63], [0.2, 0.3, 0.4, 0.75]
    levels = rng.permuted(np.tile([near, far], (COUNT // 2, 1)), axis=1)
    levels += rng.uniform(-0.01, 0.01, levels.shape)
    images = np.broadcast_to(levels[:, :, None, None], (COUNT, CLASSES, 4, 1)).astype(np.float32)
    labels = levels.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % CLASSES
    return images, labels, levels


IMAGES, LABELS, LEVELS = problem()
CLEAN = LEVELS.argmax(axis=1) == LABELS
# [N, K]: a class can win if it is at most 2 eps below the highest one.
REACHABLE = LEVELS > LEVELS.max(axis=1, keepdims=True) - 2 * EPS
WRONG = np.arange(CLASSES) != LABELS[:, None]
ATTACKS = 'pgd,cw,apgd-ce(steps=30),apgd-t(steps=30),fab-t(steps=40),square(queries=400)'


def run(attacks=ATTACKS, classifier=blocks, labels=LABELS, **settings):
    settings = {'eps': EPS, 'devices': DEVICES, 'search_precision': 'float32', **settings}
    return evaluate(classifier, IMAGES, labels, attacks=attacks, **settings)


def untouched(images):
    raise AssertionError('the network was run')


@pytest.fixture(scope='module')
def everywhere():
    return run(targets='all', return_images=True)


def test_all_targets_reach_what_can_be_reached(everywhere):
    """And the success rate on all targets is what an attack without targets leaves of the accuracy."""
    broken = (REACHABLE & WRONG).any(axis=1)
    assert 0 < broken[CLEAN].mean() < 1
    for name, record in everywhere.attacks.items():
        assert np.array_equal(everywhere.correct[name], ~record.success), name
        if name.startswith('square'):  # what can be reached, but for a corner of the ball or two
            assert not (record.success & ~broken).any() and (broken & ~record.success).sum() <= 2
            continue
        assert np.array_equal(record.success, broken), name
        assert everywhere.accuracy[name] == 1 - everywhere.success[name] == 1 - broken.mean(), name
        # Searches leave alone what is wrong without them; of the other images each target is counted.
        wanted = (REACHABLE & WRONG).sum(axis=1)
        assert np.array_equal(record.reached[CLEAN], wanted[CLEAN]), name
        found = np.asarray(blocks(jnp.asarray(everywhere.images[name]))).argmax(axis=1)
        assert (found[record.success] != LABELS[record.success]).all(), name
    untargeted = run('pgd,apgd-ce(steps=30)')
    for name in untargeted.attacks:
        assert 'success' not in untargeted.to_json()['attacks'][name]
        assert np.array_equal(untargeted.correct[name], everywhere.correct[name])


def test_one_target_for_each_image():
    aims = (LABELS + 1 + np.arange(COUNT) % 3) % CLASSES
    result = run(targets=aims, return_images=True)
    reachable = REACHABLE[np.arange(COUNT), aims]
    for name, record in result.attacks.items():
        missed = (record.success != reachable)[CLEAN]
        assert missed.sum() <= 2 * name.startswith('square') and not (record.success & ~reachable).any(), name
        found = np.asarray(blocks(jnp.asarray(result.images[name]))).argmax(axis=1)
        assert np.array_equal(found == aims, record.success), name
        assert record.reached is None and not (result.correct[name] & record.success).any()
    # The PGD family attacks images that are wrong already.
    assert np.array_equal(result.attacks['pgd'].success, reachable)


def test_least_likely_and_random_targets(tmp_path):
    least = np.where(WRONG, LEVELS, np.inf).argmin(axis=1)
    named = run('pgd', targets='least-likely')
    assert np.array_equal(named.attacks['pgd'].success, REACHABLE[np.arange(COUNT), least])
    drawn = run('pgd', targets='random', seed=3)
    part = evaluate(blocks, IMAGES[5:], LABELS[5:], attacks='pgd', eps=EPS, devices=DEVICES, targets='random',
                    seed=3, indices=np.arange(5, COUNT))  # fmt: skip
    assert np.array_equal(part.attacks['pgd'].success, drawn.attacks['pgd'].success[5:])
    path = tmp_path / 'a.json'
    drawn.save(path)
    entry = json.loads(path.read_text())['attacks']['pgd']
    assert entry['success'] == drawn.success['pgd'] and entry['protocol'] == {'targets': 'random'}
    with np.load(path.with_suffix('.npz')) as flags:
        assert np.array_equal(flags['success_pgd'], drawn.attacks['pgd'].success)
    assert Result.load(path).about['attacks']['pgd']['success'] == entry['success']
    assert f'a target was reached on {100 * drawn.success["pgd"]:.2f} % of the images' in drawn.table()


def test_masked_classes_are_no_least_likely_targets_and_are_named_among_others():
    def masked(images):
        return jnp.concatenate([blocks(images), jnp.full((len(images), 2), -1e9)], axis=1)

    least, whole = (run('pgd', classifier, targets='least-likely') for classifier in (masked, blocks))
    assert np.array_equal(least.attacks['pgd'].success, whole.attacks['pgd'].success)
    assert not any('targets' in words for words in least.warnings)
    every = run('pgd', masked, targets='all')
    (said,) = (words for words in every.warnings if 'targets' in words)
    assert said.startswith(f'{2 * COUNT} of {5 * COUNT} targets are classes') and '(4, 5)' in said
    # Where no other wrong class is left, it is the target.
    two = run('pgd', lambda x: jnp.stack([blocks(x)[:, 0], jnp.zeros(len(x))], 1), targets='least-likely',
              labels=np.zeros(COUNT, int))  # fmt: skip
    assert any(f'{COUNT} of {COUNT} targets' in words for words in two.warnings)


def test_a_resume_has_the_same_targets(tmp_path):
    state, attacks = tmp_path / 'state', 'pgd,square(queries=400)'
    first = run(attacks, targets='all', state_path=state)
    kept = {path.name for path in state.glob('*.npz')}
    assert {'pgd-target2-0-0.npz', 'square_queries=400-target0-0-0-0.npz'} <= kept
    again = run(attacks, targets='all', state_path=state)
    assert first.to_json()['attacks'] == again.to_json()['attacks']
    with pytest.raises(InputError, match='targets'):
        run(attacks, targets='random', state_path=state)


@pytest.mark.parametrize(
    ('attacks', 'targets', 'words'),
    [
        ('pgd', LABELS, rf'targets\[0\]={LABELS[0]} is the label of that image'),
        ('pgd', (LABELS + 1)[:3], r'targets are int64 \(3,\): they must be integers \[16\]'),
        ('pgd', 'likely', "unknown targets 'likely': did you mean least-likely"),
        ('apgd-ce', (LABELS + 1) / 2, 'targets are float64'),
    ],
)
def test_wrong_targets_are_refused_before_any_compute(attacks, targets, words):
    with pytest.raises(InputError, match=words):
        run(attacks, untouched, targets=targets)


@pytest.mark.parametrize(
    ('attacks', 'words'),
    [
        ('gama', 'gama cannot aim at a class, and targets are given: leave targets out, or use'),
        ('pgd,fab', 'fab cannot aim'),
        ('spsa', 'spsa cannot aim'),
        ('rays', 'rays cannot aim'),
        ('autoattack', 'autoattack chooses its own targets'),
        ('apgd-t(n_targets=2)', 'says which targets it chooses'),
        ('apgd-t(choice=malt)', 'says which targets it chooses'),
        ([('mine', lambda *given: given[1])], 'mine cannot aim'),
    ],
)
def test_attacks_that_cannot_aim_refuse(attacks, words):
    with pytest.raises(InputError, match=words):
        run(attacks, targets='random')


def test_what_else_is_refused():
    with pytest.raises(InputError, match=r'targets\[0\]=9 is not in \[0, 4\)'):
        run('pgd', targets=np.full(COUNT, 9))
    with pytest.raises(InputError, match='the classifier is Randomised'):
        run('pgd', Randomised(lambda images, keys: blocks(images)), targets='all')
    with pytest.raises(InputError, match='beside transfer_from'):
        run('pgd', untouched, targets='all', transfer_from=blocks)
