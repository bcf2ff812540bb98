"""Random classifiers of known accuracy: every attack must find it, in one run and in many."""

import functools
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, Outputs, Randomised, evaluate
from si_jax.evaluation import eot
from si_jax.evaluation.compare import compare
from si_jax.evaluation.gates import Part, single_draws
from si_jax.evaluation.intervals import interval
from si_jax.evaluation.network import vote
from si_jax.evaluation.result import Result
from si_jax.evaluation.union import Union
from tests.helpers.searches import quicken

COUNT, SHAPE = 60, (4, 4, 1)
TAKES_NONE = SimpleNamespace(takes=frozenset())
QUARTERS = jnp.asarray(np.kron(np.eye(4).reshape(4, 2, 2), np.ones((2, 2))).reshape(4, 16).T / 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def run(classifier, images, labels, attacks, **settings):
    settings = {'eps': 0.1, 'devices': jax.local_devices()[:1], **settings}
    return evaluate(classifier, images, labels, attacks=attacks, **settings)


def bright_quarters(count=COUNT):
    """Images of which one quarter is so bright, and the label its number, that no ball of 0.1 hides it."""
    labels = np.arange(count) % 4
    images = 0.2 + 0.6 * np.asarray(4 * QUARTERS.T)[labels].reshape(-1, *SHAPE)
    return images.astype(np.float32), labels


def coin(p):
    """Right with probability p whatever the image, and else the next class."""

    def classifier(images, keys):
        features = images.reshape(len(images), -1) @ QUARTERS.astype(images.dtype)
        right = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
        features = jnp.where(right[:, None], features, jnp.roll(features, 1, axis=1))
        kernel = 4 * jnp.eye(4, dtype=images.dtype)
        return Outputs(features @ kernel, features, kernel)

    return Randomised(classifier)


# Half of the images are 0.15 from the boundary, half 0.05, in Linf; one entry of noise has this deviation.
SIGMA, DISTANCES = 0.4, (0.15, 0.05)


def noisy_line(count=COUNT):
    """A linear classifier of two classes under noise on its pixels, and images of known shares."""
    labels = np.arange(count) % 2
    away = np.resize(np.repeat(DISTANCES, 2), count) * np.where(labels, 1, -1)
    images = np.broadcast_to(0.5 + away[:, None, None, None], (count, *SHAPE)).astype(np.float32)

    def classifier(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE, images.dtype))(keys)
        mean = (images + SIGMA * noise - 0.5).mean(axis=(1, 2, 3))
        return Outputs(jnp.stack([-mean, mean], axis=1))

    return Randomised(classifier), images, labels


def exact(eps=0.0):
    """The mean share of right draws of `noisy_line`, at the worst point of a ball."""
    deviation = SIGMA / 4  # of the mean of 16 pixels
    return np.mean([0.5 * (1 + math.erf((d - eps) / deviation / math.sqrt(2))) for d in DISTANCES])


def check_interval(result, name, value):
    low, high = result.ci95[name]
    assert low <= value <= high, (name, low, value, high)


@pytest.mark.parametrize(
    ('p', 'attacks'), [(0.8, 'pgd,apgd-t,fab-t,square,rays'), (0.3, 'pgd,apgd-ce,fab-t,square,rays,spsa')]
)
def test_no_attack_and_no_restart_changes_a_coin(p, attacks):
    images, labels = bright_quarters()
    result = run(coin(p), images, labels, attacks, steps=2, restarts=10, decisions=32)
    for name, share in result.share.items():
        np.testing.assert_array_equal(share, result.share['clean'], err_msg=name)
        assert result.correct[name].dtype == bool
        np.testing.assert_array_equal(result.correct[name], share > 0.5)
        check_interval(result, name, p)
        # 60 images of 32 draws each: within four standard deviations.
        assert abs(result.accuracy[name] - p) < 4 * math.sqrt(p * (1 - p) / (32 * COUNT))
    assert result.single_run['pgd'] == result.accuracy['pgd'] and len(result.attacks['pgd'].runs) == 10
    assert result.vote_accuracy['pgd'] > 0.9 if p > 0.5 else result.vote_accuracy['pgd'] < 0.2
    assert result.worst_draw_accuracy['pgd'] < 0.2


@pytest.mark.parametrize(('attacks', 'restarts'), [('pgd', 10), ('cw,apgd-ce,fab-t,square', 1)])
def test_every_attack_finds_the_accuracy_of_a_noisy_linear_classifier(attacks, restarts):
    result = run(*noisy_line(), attacks, steps=6, restarts=restarts, eot_samples=4)
    check_interval(result, 'clean', exact())
    assert abs(result.accuracy['clean'] - exact()) < 0.03
    for name in result.attacks:
        check_interval(result, name, exact(0.1))
        assert abs(result.accuracy[name] - exact(0.1)) < 0.04, name
    np.testing.assert_allclose(
        result.share['worst_case'], np.min([result.share[name] for name in result.share], axis=0)
    )


# RayS keeps what one lucky vote showed it: with few draws in a query it is far too weak.
@pytest.mark.parametrize(('attack', 'samples'), [('spsa(steps=20)', 4), ('rays(queries=100)', 256)])
def test_searches_without_gradients_find_it_with_their_own_budget(attack, samples, monkeypatch):
    monkeypatch.undo()
    result = run(*noisy_line(24), attack, eot_samples=samples)
    check_interval(result, attack, exact(0.1))
    assert abs(result.accuracy[attack] - exact(0.1)) < 0.06


def test_a_tie_of_the_vote_is_wrong():
    assert vote(np.asarray([0, 0.5, 33 / 64, 1])).tolist() == [False, False, True, True]
    assert vote(np.asarray([False, True])).tolist() == [False, True]


def test_the_draws_that_decide_are_no_draws_of_the_search():
    """A classifier that remembers its keys: those of the decisions are the same for all attacks, and new."""
    seen = []

    def classifier(images, keys):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return images.reshape(len(images), -1) @ QUARTERS.astype(images.dtype)

    def keys_of(attacks, **settings):
        seen.clear()
        images, labels = bright_quarters(4)
        run(Randomised(classifier), images, labels, attacks, **settings)
        jax.effects_barrier()
        found, counts = np.unique(np.concatenate(seen), axis=0, return_counts=True)
        return {tuple(key): count for key, count in zip(found.tolist(), counts, strict=True)}

    few = keys_of('fgsm', decisions=8)
    many = keys_of('pgd,apgd-ce', decisions=8, steps=2, restarts=3)
    # Five times: on the clean images, after each restart of PGD, and after APGD. Nothing else comes as often.
    often = {key for key, count in many.items() if count == 5}
    assert len(often) == 4 * 8 and all(few[key] == 2 for key in often)


def test_settings_of_random_classifiers_are_refused_for_others():
    images, labels = bright_quarters(4)
    plain = lambda images: images.reshape(len(images), -1) @ QUARTERS.astype(images.dtype)  # noqa: E731
    for name, value in {'decisions': 8, 'eot_samples': 'auto'}.items():
        with pytest.raises(InputError, match=rf'{name}=.* not random.*leave {name} out.*si_jax.Randomised'):
            run(plain, images, labels, 'pgd', **{name: value})
        random = Randomised(lambda images, keys: plain(images))
        assert run(random, images, labels, 'fgsm', **{name: value}).accuracy['fgsm'] == 1
    result = run(plain, images, labels, 'fgsm')
    text = json.dumps(result.to_json())
    assert 'decisions' not in text and 'draw' not in text and '"eot"' not in text
    assert result.share['fgsm'].dtype == float and result.accuracy['fgsm'] == result.share['fgsm'].mean()
    with pytest.raises(InputError, match='decisions=0 must be an integer of at least 1'):
        run(coin(0.8), images, labels, 'pgd', decisions=0)


def test_searches_without_gradients_take_draws():
    images, labels = bright_quarters(8)
    one, four = (
        run(coin(0.8), images, labels, 'square', eot_samples=samples, decisions=8) for samples in (1, 4)
    )
    for name in one.attacks:
        assert four.attacks[name].eot_samples == 4 and 'eot_samples' in four.attacks[name].takes
        passes = [result.attacks[name].stages[0]['forward_passes'] for result in (one, four)]
        assert passes[0] < passes[1] <= 4 * passes[0]
    assert any('square follows single draws' in warning for warning in one.warnings)
    assert not any('single draws' in warning for warning in four.warnings)


def test_presets_of_autoattack_run_on_random_classifiers():
    images, labels = bright_quarters(16)
    result = run(coin(0.8), images, labels, 'autoattack-rand', decisions=8, return_images=True)
    np.testing.assert_array_equal(result.share['autoattack-rand'], result.share['clean'])
    assert not any('single draws' in warning for warning in result.warnings)
    assert len(result.attacks['autoattack-rand'].stages) == 2
    assert result.images['autoattack-rand'].shape == images.shape
    parts = [Part('apgd-ce', None, 1)]
    (warning,) = single_draws([SimpleNamespace(name='autoattack', parts=parts)], {'autoattack': TAKES_NONE})
    assert 'use autoattack-rand' in warning


class TestEot:
    @staticmethod
    def found(sigma):
        """Gradients of logits that are a line plus noise of this size on its direction."""

        def classifier(images, keys):
            flat = images.reshape(len(images), -1)
            noise = jax.vmap(lambda key: jax.random.normal(key, (16,), images.dtype))(keys)
            mean = ((flat - 0.5) * (1 + sigma * noise)).mean(axis=1)
            return jnp.stack([-mean, mean], axis=1)

        _, images, labels = noisy_line()
        return run(Randomised(classifier), images, labels, 'fgsm', eot_samples='auto', decisions=8)

    def test_the_number_of_draws_follows_the_noise(self):
        # Means of m draws have cosine 1 / (1 + sigma^2 / m): above 0.9 from m = 9 sigma^2 on.
        large = self.found(1.0)
        assert large.eot['eot_samples'] in (16, 32, 64)
        assert large.attacks['fgsm'].eot_samples == large.eot['eot_samples']
        assert large.to_json()['eot'] == large.eot and large.eot['images'] == 16
        assert f"eot_samples='auto' took {large.eot['eot_samples']}" in large.warnings[0]

    def test_the_most_that_is_tried_is_said_to_be_too_little(self):
        result = self.found(20.0)
        assert result.eot['eot_samples'] == eot.MOST and result.eot['cosine'] < eot.ENOUGH
        assert 'may be weak' in result.warnings[0] and 'eot_samples=256' in result.warnings[0]

    def test_the_median_cosine(self):
        x, y = np.zeros((3, *SHAPE)), np.zeros((3, *SHAPE))
        x[0, 0, 0], y[0, 0, 0] = 2, 3  # cosine 1
        x[1, 0, 0], y[1, 0, :2] = 1, 1  # cosine 1 / sqrt(2)
        assert eot._median(x, y) == pytest.approx((1 + 2**-0.5) / 2)  # the third image has no gradient
        assert eot._median(0 * x, y) == 0


class TestFiles:
    @pytest.fixture(scope='class')
    @classmethod
    def made(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp('random')
        classifier, images, labels = noisy_line()
        evaluated = functools.partial(
            run, classifier, images, labels, steps=2, step_size=0.025, eot_samples=2, decisions=16
        )
        results = {}
        with pytest.MonkeyPatch.context() as patch:
            quicken(patch)
            for name, eps in (('a', 0.1), ('b', 0.02)):
                state = folder / 'state' if name == 'a' else None
                results[name] = evaluated('pgd,apgd-ce', eps=eps, restarts=2, state_path=state)
                results[name].save(folder / f'{name}.json')
            # The unit that was finished last is missing: the rest is read.
            (folder / 'state' / 'apgd-ce-0-0-0.npz').unlink()
            again = evaluated('pgd,apgd-ce', eps=0.1, restarts=2, state_path=folder / 'state')
        return folder, results, again

    def test_a_union_counts_shares(self, made):
        _, results, _ = made
        union = Union(results)
        least = np.min([one.share['worst_case'] for one in results.values()], axis=0)
        assert union.accuracy == least.mean() and union.correct.dtype == bool
        assert union.ci95 == interval(least)

    def test_it_goes_on_where_it_was(self, made):
        _, results, again = made
        for name, share in results['a'].share.items():
            np.testing.assert_array_equal(share, again.share[name])
        first, second = (one.to_json() | {'timing': None} for one in (results['a'], again))
        assert first == second

    def test_json_and_flags(self, made):
        folder, results, _ = made
        about, result = json.loads((folder / 'a.json').read_text()), results['a']
        assert about['decisions'] == 16
        for entry, name in (
            (about['clean'], 'clean'),
            (about['attacks']['pgd'], 'pgd'),
            (about['worst_case'], 'worst_case'),
        ):
            assert entry['accuracy'] == result.share[name].mean() == result.accuracy[name]
            assert entry['vote_accuracy'] == result.correct[name].mean()
            assert entry['worst_draw_accuracy'] == (result.share[name] == 1).mean()
            assert entry['ci95'] == list(interval(result.share[name]))
        loaded = Result.load(folder / 'a.json')
        for name in result.share:
            np.testing.assert_array_equal(loaded.share[name], result.share[name])
            np.testing.assert_array_equal(loaded.correct[name], result.correct[name])
        assert max(map(len, result.table().splitlines())) <= 80
        assert 'among 16 fresh draws' in ' '.join(result.table().split())

    def test_shares_of_another_evaluation_are_refused(self, made, tmp_path):
        folder, _, _ = made
        (tmp_path / 'a.json').write_text((folder / 'a.json').read_text())
        arrays = dict(np.load(folder / 'a.npz'))
        arrays['share_pgd'] = arrays['share_pgd'][::-1]
        np.savez(tmp_path / 'a.npz', **arrays)
        with pytest.raises(InputError, match="'pgd' in .* does not belong"):
            Result.load(tmp_path / 'a.json')

    def test_compared_by_shares_and_votes(self, made):
        folder, results, _ = made
        about = json.loads((folder / 'b.json').read_text())
        about['threat_model']['eps'] = 0.1
        (folder / 'c.json').write_text(json.dumps(about))
        (folder / 'c.npz').write_bytes((folder / 'b.npz').read_bytes())
        found = compare(folder / 'a.json', folder / 'c.json', resamples=200)
        one, a, b = found.differences['pgd'], results['a'], results['b']
        difference = b.share['pgd'].mean() - a.share['pgd'].mean()
        assert one.b[0] - one.a[0] == pytest.approx(difference) and one.ci95[0] < difference < one.ci95[1]
        assert one.only_b[0] == np.sum(b.correct['pgd'] & ~a.correct['pgd'])
        assert any('Only a, only b and McNemar count votes' in note for note in found.notes)


def test_several_devices_and_batches_give_the_same_shares():
    classifier, images, labels = noisy_line()
    settings = {'attacks': 'fgsm', 'eot_samples': 2, 'decisions': 8}
    one = run(classifier, images, labels, **settings)
    two = run(classifier, images, labels, **settings, batch_size=14, devices=jax.local_devices()[:2])
    for name, share in one.share.items():
        assert np.mean(share != two.share[name]) <= 0.02, name


def test_the_interval_of_a_mean_share_is_wilsons():
    flags = np.arange(50) < 37
    assert interval(flags.astype(float)) == pytest.approx(interval(flags), rel=1e-9)
    # By hand, for p = 0.5 and n = 4: (0.5 + 0.480 -+ 1.96 sqrt(1 / 16 + 0.0600)) / (1 + 0.960).
    assert interval(np.full(4, 0.5)) == pytest.approx((0.150, 0.850), abs=1e-3)


@pytest.mark.parametrize('norm', ['linf', 'l1'])
def test_fmn_is_judged_inside_the_ball_however_far_the_boundary_is(norm):
    """Its own point may lie outside; of a random classifier the point on the edge of the ball counts."""
    kernel = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)
    images = np.random.default_rng(4).uniform(0.3, 0.7, (6, 4, 4, 1)).astype(np.float32)

    def noisy(x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (16,)))(keys)
        return (x.reshape(len(x), -1) + 0.02 * noise - 0.5) @ kernel

    labels = np.argmax((images.reshape(6, -1) - 0.5) @ kernel, axis=1)
    settings = {'attacks': 'fmn(steps=40)', 'eps': 1e-3, 'norm': norm, 'decisions': 8}
    result = evaluate(Randomised(noisy), images, labels, **settings)
    (record,) = result.attacks.values()
    assert 0 < record.max_perturbation <= 1e-3 * (1 + 1e-4)
    assert result.accuracy['worst_case'] <= result.accuracy['clean']
