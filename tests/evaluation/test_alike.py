"""What is said of one kind of attack is said of the others: restarts, gradients, steps, findings."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, Result, evaluate, evaluate_union, smallest
from si_jax.attacks.family import ATTACKS
from si_jax.evaluation import gates
from si_jax.evaluation.cascade import _targets
from si_jax.evaluation.compare import check_alike

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
    (words,) = [words for words in result.warnings if 'the gradient is exactly zero' in words]
    assert 'transfer-stairs' in words and 'fgsm on' not in words


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
