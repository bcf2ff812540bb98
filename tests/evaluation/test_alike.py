"""What is said of one kind of attack is said of the others: restarts, gradients, steps, findings."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, Randomised, Result, compare, evaluate, evaluate_union, smallest, sweep
from si_jax.attacks import malt
from si_jax.attacks.family import ATTACKS
from si_jax.evaluation import gates
from si_jax.evaluation.cascade import _targets
from si_jax.evaluation.compare import check_alike
from si_jax.evaluation.network import Network
from si_jax.threat import BALLS

ONE = {'devices': jax.local_devices()[:1]}
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4 * 4 * 1, 10)).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, (16, 4, 4, 1)).astype(np.float32)


def net(images):
    return images.reshape(len(images), -1) @ KERNEL


LABELS = np.argmax(net(IMAGES), axis=1)


def test_a_search_records_what_each_restart_left(tmp_path):
    one, three = (
        evaluate(net, IMAGES, LABELS, eps=0.3, attacks=f'square(queries=5,restarts={count})', **ONE)
        for count in (1, 3)
    )
    ((name, record),) = three.attacks.items()
    assert record.runs.shape == (3, 16) and (record.runs[1:] <= record.runs[:-1]).all()
    ((alone, single),) = one.attacks.items()
    np.testing.assert_array_equal(record.runs[0], single.runs[0])
    assert three.single_run[name] == one.accuracy[alone] > three.accuracy[name]
    assert three.to_json()['attacks'][name]['fixed']['restarts'] == 3
    three.save(tmp_path / 'r.json')
    assert Result.load(tmp_path / 'r.json').about['attacks'][name]['single_run'] == three.single_run[name]


def test_an_own_record_that_leaves_the_ball_is_refused_with_a_remedy():
    outside = ATTACKS['pgd']._replace(bounds='pixels')
    with pytest.raises(InputError, match="mine left its threat model.*give it bounds='ball'"):
        evaluate(net, IMAGES, LABELS, eps=0.01, attacks=[('mine', outside)], steps=5, step_size=0.01, **ONE)


def test_steps_that_cannot_cross_the_ball_are_told():
    def told(**settings):
        result = evaluate(net, IMAGES, LABELS, eps=0.1, attacks='pgd,fgsm', **settings, **ONE)
        return [words for words in result.warnings if 'lead less far than the radius' in words]

    assert told(steps=4) == []
    (words,) = told(steps=5, step_size=0.01)
    assert 'the radius, 0.1: pgd at most 0.05' in words and 'fgsm' not in words
    with pytest.raises(InputError, match='step_size=0.01 cannot suit several norms'):
        evaluate_union(net, IMAGES, LABELS, threats='linf:0.1,l2:1', attacks='pgd', step_size=0.01, **ONE)
    with pytest.raises(InputError, match='restarts has no meaning for smallest perturbations'):
        smallest(net, IMAGES, LABELS, attacks='fab-t(restarts=2)', **ONE)


def test_a_source_without_a_gradient_is_named():
    stairs = {'stairs': lambda images: net(jnp.round(images * 8) / 8)}
    result = evaluate(net, IMAGES, LABELS, eps=0.02, attacks='fgsm', steps=4, transfer_from=stairs, **ONE)
    (words,) = [words for words in result.warnings if 'exactly zero on' in words]
    assert words.startswith('transfer-stairs: the gradient of its source is exactly zero on ')
    assert 'give another source' in words and not any(
        "classifier's gradient" in one for one in result.warnings
    )


def test_what_was_not_found_is_no_claim():
    def unbreakable(images):
        return jnp.stack([1 + images.mean((1, 2, 3)), images.min((1, 2, 3)) - 9], axis=1)

    found = smallest(unbreakable, IMAGES, np.zeros(16, int), attacks='fmn(steps=10)', **ONE)
    assert np.isinf(found.distances['fmn(steps=10)']).all() and found.about['warnings'] == []
    # The search begins at the furthest point of [0, 1], which is in this ball, and claims nothing.
    result = evaluate(
        unbreakable, IMAGES, np.zeros(16, int), eps=1.0, attacks='rays(queries=30),fmn(steps=10)', **ONE
    )
    assert [stage['refused'] for one in result.attacks.values() for stage in one.stages] == [0, 0]
    assert not any('does not confirm' in words for words in result.warnings)


def test_the_label_is_no_target_of_a_random_classifier():
    """Its vote is for the label where the mean logits favour another class."""
    logits = np.array([[1.0, 5.0, 2.0, 0.0], [3.0, 1.0, 2.0, 0.0], [1.0, 5.0, 2.0, 0.0]])
    network = types.SimpleNamespace(
        request=types.SimpleNamespace(classes=4),
        labels=np.zeros(3, int),
        clean=np.array([True, True, False]),
        clean_logits=logits,
    )
    stage = types.SimpleNamespace(choice='logits', targets=2)
    targets, places = _targets(network, stage, None, '', network.clean)
    assert targets.T.tolist() == [[1, 2], [2, 1], [2, 0]] and places.T.tolist() == [[0, 1]] * 3


def test_a_coin_of_the_host_is_seen_in_five_calls(monkeypatch):
    called = []

    def counting(images):
        if not isinstance(images, jax.core.Tracer):
            called.append(len(images))
        return net(images)

    evaluate(counting, IMAGES, LABELS, eps=0.1, attacks='fgsm', **ONE)
    assert called.count(2 * gates.PROBE) >= gates.CALLS


def test_bytes_and_sweeps_are_compared_with_their_like_alone(tmp_path):
    plain = evaluate(net, IMAGES, LABELS, eps=0.05, attacks='fgsm', **ONE)
    plain.save(tmp_path / 'a.json')
    dataclasses.replace(plain, smaller_radii=(0.02,)).save(tmp_path / 'b.json')
    a, b = (Result.load(tmp_path / f'{name}.json') for name in 'ab')
    check_alike(a, a)
    with pytest.raises(InputError, match='what counts as broken from smaller radii differs'):
        check_alike(a, b)


def test_a_result_takes_no_images_of_another_and_replaces_no_other_file(tmp_path):
    with_images = evaluate(net, IMAGES, LABELS, eps=0.05, attacks='fgsm', return_images=True, **ONE)
    with_images.save(tmp_path / 'r.json')
    assert (tmp_path / 'r_images.npz').exists()
    evaluate(net, IMAGES, LABELS, eps=0.05, attacks='fgsm', **ONE).save(tmp_path / 'r.json')
    assert not (tmp_path / 'r_images.npz').exists()
    np.savez(tmp_path / 'r_images.npz', images=IMAGES)  # not of a result
    evaluate(net, IMAGES, LABELS, eps=0.05, attacks='fgsm', **ONE).save(tmp_path / 'r.json')
    assert (tmp_path / 'r_images.npz').exists()
    np.savez(tmp_path / 'net.npz', kernel=KERNEL)
    before = (tmp_path / 'net.npz').read_bytes()
    with pytest.raises(InputError, match='net.npz is there, and is no result'):
        with_images.save(tmp_path / 'net.json')
    (tmp_path / 'config.json').write_text('{"lr": 1}')
    with pytest.raises(InputError, match='config.json is there, and is no result'):
        with_images.save(tmp_path / 'config.json')
    assert (tmp_path / 'net.npz').read_bytes() == before


@pytest.mark.parametrize(
    'attack', ['apgd-ce(steps=10)', 'square(queries=30)', 'spsa(steps=10,evaluations=8)']
)
def test_nan_that_a_random_classifier_gives_on_the_way_is_an_error(attack):
    """Where two logits come near, as they do before any decision changes, there are none."""

    def breaks(images, keys):
        logits = 3 * net(images)
        highest = jax.lax.top_k(logits, 2)[0]
        noise = jax.vmap(lambda key: jax.random.normal(key, (10,)))(keys)
        near = (highest[:, 0] - highest[:, 1] < 1)[:, None]
        return jnp.where(near, jnp.nan, logits) + 0.01 * noise

    clear = ~np.isnan(np.asarray(breaks(IMAGES, jax.random.split(jax.random.key(0), 16)))).any(axis=1)
    assert clear.sum() > 8
    with pytest.raises(InputError, match='NaN'):
        evaluate(
            Randomised(breaks), IMAGES[clear], LABELS[clear], eps=0.2, attacks=attack, decisions=4,
            eot_samples=1, **ONE,
        )  # fmt: skip


def test_a_gradient_that_is_not_finite_hides_no_class_from_fab_and_malt():
    def with_nan(images):  # the root has no derivative at 0, and a `where` around it lets NaN through
        return net(jnp.where(images > 0, jnp.sqrt(images), 0.0))

    def sound(images):
        return net(jnp.where(images > 0, jnp.sqrt(jnp.where(images > 0, images, 1.0)), 0.0))

    images = IMAGES.copy()
    images[:, 0, 0, 0] = 0
    labels = np.argmax(sound(jnp.asarray(images)), axis=1)
    broken, whole = (
        evaluate(one, images, labels, eps=0.3, attacks='fab(steps=10)', **ONE) for one in (with_nan, sound)
    )
    assert broken.accuracy['fab(steps=10)'] <= whole.accuracy['fab(steps=10)'] + 2 / 16 < 0.5
    counts = broken.attacks['fab(steps=10)'].gradients[0]
    assert counts.zero == 0 and counts.not_finite == counts.attacked
    given = (
        jnp.asarray(images),
        jnp.asarray(labels),
        jnp.asarray([[(y + 1) % 10, (y + 2) % 10] for y in labels]),
    )
    assert np.isfinite(malt.distances(with_nan, *given, BALLS['linf'])).all()


def test_with_two_classes_an_attack_whose_loss_needs_three_takes_the_margin():
    def two(images):
        return net(images)[:, :2]

    labels = np.argmax(two(IMAGES), axis=1)
    result = evaluate(two, IMAGES, labels, eps=0.05, attacks='cw,dlr', steps=4, **ONE)
    np.testing.assert_array_equal(result.correct['dlr'], result.correct['cw'])
    assert 'with 2 classes the loss of dlr is not defined: they used the margin instead' in result.warnings


def test_an_attribute_called_original_means_nothing():
    class Defended:
        original = 'resnet18'

        def __call__(self, images):
            return net(images**2)

    labels = np.argmax(net(IMAGES**2), axis=1)
    assert evaluate(Defended(), IMAGES, labels, eps=0.02, attacks='fgsm', **ONE).accuracy['clean'] == 1


def test_the_usual_radius_of_linf_is_named_in_another_norm():
    def told(eps, norm):
        warnings = evaluate(net, IMAGES, LABELS, eps=eps, norm=norm, attacks='fgsm', **ONE).warnings
        return [words for words in warnings if 'usual radius in linf' in words]

    assert told(8 / 255, 'linf') == told(0.5, 'l2') == []
    (words,) = told(8 / 255, 'l2')
    assert 'next to nothing in l2, where 0.5 is usual' in words


@pytest.mark.parametrize('classifier', [Randomised(lambda images, keys: net(images)), net])
def test_what_has_no_nearest_image_is_refused_before_it_is_classified(classifier, monkeypatch):
    def classified(*arguments, **settings):
        raise AssertionError('the images were classified')

    monkeypatch.setattr(Network, 'check_and_classify', classified)
    random = isinstance(classifier, Randomised)
    with pytest.raises(InputError, match='Randomised classifier may draw' if random else 'leave targets out'):
        sweep(classifier, IMAGES, LABELS, eps=(0.1,), attacks='pgd', targets=None if random else 'all', **ONE)
    if random:
        with pytest.raises(InputError, match='has many decisions at a point'):
            smallest(classifier, IMAGES, LABELS, **ONE)


def test_the_least_likely_class_of_one_image_is_that_among_others():
    def masked(images):
        return jnp.where(jnp.arange(10) == 3, -1e9, net(images))

    labels = np.argmax(masked(IMAGES), axis=1)
    how = {'eps': 0.5, 'attacks': 'cw', 'steps': 8, 'targets': 'least-likely', **ONE}
    whole = evaluate(masked, IMAGES, labels, **how)
    alone = evaluate(masked, IMAGES[:1], labels[:1], **how)
    assert alone.attacks['cw'].success[0] == whole.attacks['cw'].success[0]
    assert not any('masked class' in words for words in alone.warnings)


def test_results_leave_files_of_others_alone(tmp_path):
    result = evaluate(net, IMAGES, LABELS, eps=0.05, attacks='fgsm', **ONE)
    for number, text in enumerate(('[0, 1]', '5', '"x"', '# a comment', '{"schema": 1, "entries": {}}')):
        path = tmp_path / f'{number}.json'
        path.write_text(text)
        with pytest.raises(InputError, match=f'{number}.json is there, and is no result'):
            result.save(path)
        assert path.read_text() == text
    (tmp_path / 'b.json').write_text('{\n  "schema": 1, "worst')  # a result that was cut off
    (tmp_path / 'b_images.npz').write_bytes(b'of somebody else')
    result.save(tmp_path / 'b.json')
    assert (tmp_path / 'b_images.npz').read_bytes() == b'of somebody else'
    found = smallest(net, IMAGES, LABELS, attacks='fmn(steps=5)', return_images=True, **ONE)
    found.save(tmp_path / 'a.json')
    result.save(tmp_path / 'a.json')  # one result takes the place of another
    assert 'fgsm' in Result.load(tmp_path / 'a.json').about['attacks']
    assert not (tmp_path / 'a_images.npz').exists()


def test_attacks_are_compared_by_any_way_to_write_them(tmp_path):
    evaluate(net, IMAGES, LABELS, eps=0.05, attacks='pgd(steps=3,restarts=2),fgsm', **ONE).save(
        tmp_path / 'r.json'
    )
    found = compare(tmp_path / 'r.json', tmp_path / 'r.json', attacks=('pgd(restarts=2, steps=3)', 'fgsm'))
    assert found.names == ('pgd(steps=3, restarts=2)', 'fgsm')
