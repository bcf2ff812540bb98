"""Several radii: equal to single evaluations but for what a smaller ball broke, and compiled once."""

import json

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from benchmarks.selfcheck import problem
from si_jax import InputError, Sweep
from si_jax.evaluation import curves
from si_jax.evaluation.sweep import check_radii
from si_jax.runtime import programs
from tests.helpers.searches import quicken

ONE = jax.local_devices()[:1]
RADII = (8 / 255, 0, 3.6 / 255)
ATTACKS = 'pgd,apgd-ce'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture(scope='module')
def found():
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        p = problem(3, 'linf')
        settings = {'steps': 5, 'restarts': 2, 'return_images': True, 'devices': ONE}
        return p, si_jax.sweep(p.logits, p.images, p.labels, eps=RADII, attacks=ATTACKS, **settings)


def test_flags_are_those_of_single_evaluations_but_for_what_was_broken_before(found):
    p, swept = found
    np.testing.assert_array_equal(swept.eps, sorted(RADII))
    clean = np.argmax(p.logits(p.images), axis=1) == p.labels
    for flags in swept.correct.values():
        np.testing.assert_array_equal(flags[0], clean)
        assert (flags[1:] <= flags[:-1]).all()
    for number, eps in ((1, 3.6 / 255), (2, 8 / 255)):
        settings = {'steps': 5, 'restarts': 2, 'devices': ONE, 'eps': eps}
        alone = si_jax.evaluate(p.logits, p.images, p.labels, attacks=ATTACKS, **settings)
        for name, flags in alone.correct.items():
            np.testing.assert_array_equal(
                swept.correct[name][number], flags & swept.correct[name][number - 1]
            )
    np.testing.assert_array_equal(swept.correct['apgd-ce'][2], p.withstands)
    # What fell at the smaller radius stays as it was, and is not attacked again.
    small, large = (swept.results[number] for number in (1, 2))
    fell = ~small.correct['apgd-ce']
    assert 0 < fell[clean].sum() < (~p.withstands)[clean].sum()
    np.testing.assert_array_equal(small.images['apgd-ce'][fell], large.images['apgd-ce'][fell])
    (stage,) = large.attacks['apgd-ce'].stages
    assert stage['attacked'] == (~fell).sum() and stage['accuracy'] == p.withstands.mean()
    sizes = [result.attacks['pgd'].step_size for result in swept.results]
    assert sizes == [None, 3.6 / 255 / 4, 8 / 255 / 4]


@pytest.mark.parametrize(('norm', 'attacks'), [('linf', 'fab,square'), ('l2', 'square'), ('l1', 'apgd-ce')])
def test_a_radius_that_is_an_argument_is_one_that_is_a_constant(norm, attacks):
    p = problem(3, norm)
    given = {'attacks': attacks, 'norm': norm, 'devices': ONE, 'return_images': True}
    swept = si_jax.sweep(p.logits, p.images, p.labels, eps=[p.eps], **given).results[0]
    alone = si_jax.evaluate(p.logits, p.images, p.labels, eps=p.eps, **given)
    for name, flags in alone.correct.items():
        np.testing.assert_array_equal(swept.correct[name], flags)
    for name, images in alone.images.items():
        np.testing.assert_allclose(swept.images[name], images, atol=1e-5)


def test_one_compilation_for_all_radii():
    p, times = problem(3, 'linf'), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: times.append(event) if event.endswith('backend_compile_duration') else None
    )

    def compilations(*radii):
        traced = []

        def logits(images):
            traced.append(images.shape)
            return 1.5 * p.logits(images)

        programs.forget()  # those of the sweep before, which are the same
        times.clear()
        given = {'attacks': 'pgd,apgd-ce', 'steps': 3, 'devices': ONE}
        si_jax.sweep(logits, p.images, p.labels, eps=radii, **given)
        return len(times), len(traced)

    compilations(0.02)  # what is compiled once in a process
    once = compilations(0.02)
    assert once[0] >= 4 and once == compilations(0, 0.01, 0.02, 0.05)


def test_it_goes_on_where_it_was(tmp_path, monkeypatch):
    p = problem(3, 'linf')

    def run(radii):
        given = {'attacks': 'apgd-ce', 'devices': ONE, 'state_path': tmp_path / 'state'}
        return si_jax.sweep(p.logits, p.images, p.labels, eps=radii, **given)

    first = run((0.01, 0.02))
    from si_jax.evaluation import cascade

    def none(*_, **__):
        raise AssertionError('this part is finished')

    monkeypatch.setattr(cascade, 'run_search', none)
    again = run((0.01, 0.02))
    np.testing.assert_array_equal(again.correct['apgd-ce'], first.correct['apgd-ce'])
    with pytest.raises(AssertionError, match='finished'):
        run((0.01, 0.02, 0.03))  # the third is new
    with pytest.raises(InputError, match='smaller radii'):
        run((0.02,))


def test_files(found, tmp_path):
    _, swept = found
    swept.save(tmp_path / 'all.json')
    about = json.loads((tmp_path / 'all.json').read_text())['sweep']
    assert about == swept.to_json() and about['norm'] == 'linf'
    assert about['accuracy']['pgd'] == swept.accuracy['pgd'].tolist()
    assert (tmp_path / 'all.png').read_bytes().startswith(b'\x89PNG')
    flags = np.load(tmp_path / 'all.npz')
    np.testing.assert_array_equal(flags['worst_case'], swept.correct['worst_case'])
    read = Sweep.load(tmp_path / 'all.json')
    assert read.to_json() == swept.to_json() and read.table() == swept.table()
    assert f'{100 * swept.accuracy["pgd"][2]:.2f}' in read.table().splitlines()[4]
    with pytest.raises(InputError, match='was read from'):
        read.save(tmp_path / 'other.json')
    (tmp_path / 'all-linf-0.json').rename(tmp_path / 'all-linf-0.0141176.json')
    with pytest.raises(InputError, match='all-linf-0.json'):
        Sweep.load(tmp_path / 'all.json')
    (tmp_path / 'no.json').write_text(
        '{"schema": 1, "sweep": {"norm": "linf", "eps": ["x"], "accuracy": {}}}'
    )
    with pytest.raises(InputError, match='is no sweep'):
        Sweep.load(tmp_path / 'no.json')


def test_without_matplotlib_the_picture_alone_is_missing(found, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, 'can_be_drawn', lambda: False)
    found[1].save(tmp_path / 'all.json')
    assert Sweep.load(tmp_path / 'all.json').to_json() == found[1].to_json()
    assert not (tmp_path / 'all.png').exists()


def test_when_nothing_is_left_or_nothing_was_right():
    p = problem(3, 'linf')
    given = {'attacks': 'apgd-ce', 'devices': ONE}
    swept = si_jax.sweep(p.logits, p.images[-3:], (p.labels[-3:] + 1) % 3, eps=(0, 0.01), **given)
    assert swept.accuracy['worst_case'][1] == 0 or swept.correct['clean'].any()
    swept = si_jax.sweep(p.logits, p.images, p.labels, eps=(0.5, 0.6), **given)
    assert swept.accuracy['apgd-ce'].tolist() == [0, 0]
    assert swept.results[1].attacks['apgd-ce'].stages[0]['attacked'] == 0


@pytest.mark.parametrize(
    ('radii', 'message'),
    [
        (0.1, 'eps=0.1 must be several radii'),
        ('0.1', "eps='0.1' must be several radii"),
        ((), 'no radius above 0'),
        ((0,), 'no radius above 0'),
        ((-1, 0.1), 'eps=-1 is no radius'),
        ((float('nan'), 0.1), 'eps=nan is no radius'),
        ((0.1, 2), r'eps=2 is not in \(0, 1\] for linf'),
        ((0.1, 0.1), 'eps=0.1 is given twice'),
    ],
)
def test_wrong_radii(radii, message):
    with pytest.raises(InputError, match=message):
        check_radii(radii, 'linf', (6, 6, 1))


def test_a_random_classifier_is_refused():
    p = problem(3, 'linf')

    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        return si_jax.Outputs(p.logits(images + 0.01 * noise.astype(jnp.float32)))

    with pytest.raises(InputError, match='call evaluate for each radius'):
        si_jax.sweep(si_jax.Randomised(noisy), p.images, p.labels, eps=(0, 0.1), attacks='pgd', devices=ONE)
