"""Interrupted evaluations go on where they were, and only those."""

import contextlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import InputError, evaluate
from si_jax.evaluation import network
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.network import PROGRAM
from si_jax.evaluation.request import Request
from si_jax.evaluation.settings import images_at_once
from si_jax.evaluation.state import Saved, alone, remember, remove
from si_jax.storage import lock
from si_jax.storage.trees import digest
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)
SETTINGS = {'attacks': 'pgd,autoattack,rays', 'eps': 0.04, 'steps': 2, 'restarts': 2, 'batch_size': 8}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)
    monkeypatch.setattr(network, 'GROUP', {'cpu': 16})  # images in a unit


def run(state=None, classifier=NET, images=IMAGES, labels=LABELS, **settings):
    changed = {**SETTINGS, 'devices': jax.local_devices()[:1], 'return_images': True, **settings}
    return evaluate(classifier, images, labels, state_path=state, **changed)


def same(result, other):
    first, second = (
        {key: value for key, value in r.to_json().items() if key != 'timing'} for r in (result, other)
    )
    assert first == second
    for name in result.correct:
        assert_array_equal(result.correct[name], other.correct[name])
    for name in result.images:
        assert_array_equal(result.images[name], other.images[name])
    for name in {'autoattack', 'rays'} & result.attacks.keys():
        assert_array_equal(result.attacks[name].queries, other.attacks[name].queries)


def test_an_evaluation_that_is_interrupted_again_and_again_has_the_same_result(tmp_path, monkeypatch):
    state, whole = tmp_path / 'state', run()
    write, left = Saved._write, [0]

    def interrupted(self, unit, arrays):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, unit, arrays)

    monkeypatch.setattr(Saved, '_write', interrupted)
    rng, interruptions = np.random.default_rng(0), 0
    while True:
        left[0] = int(rng.integers(1, 4))
        try:
            result = run(state)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 10
    same(result, whole)

    monkeypatch.setattr(Saved, '_write', None)  # all is there: nothing is written any more
    same(run(state), whole)


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    state = tmp_path / 'state'
    whole = run(state)
    monkeypatch.setattr(network.Network, 'confirm', None)
    same(run(state), whole)


def test_a_damaged_unit_is_computed_again(tmp_path):
    state = tmp_path / 'state'
    whole = run(state)
    units = sorted(state.glob('autoattack-*.npz'))
    content = bytearray(units[0].read_bytes())
    content[len(content) // 3] ^= 1
    units[0].write_bytes(content)
    units[1].write_bytes(units[1].read_bytes()[:50])
    same(run(state), whole)


UNITS = {'a': {'correct': np.array([True, True]), 'largest': np.float64(0.5)}, 'b': {'correct': np.zeros(2)}}


@pytest.mark.parametrize('kind', ['other arrays', 'inverted', 'swapped', 'older', 'of another evaluation'])
def test_a_whole_unit_that_this_evaluation_did_not_write_is_refused_and_named(kind, tmp_path):
    state, logits = tmp_path / 'state', np.zeros((2, 2))

    def asked(folder=state, seed=0):
        with Saved(folder, {'seed': seed}, logits):
            return {name: remember(name, lambda name=name: UNITS[name]) for name in UNITS}

    asked()
    held = dict(np.load(state / 'a.npz'))
    if kind == 'other arrays':
        np.savez(state / 'a.npz', others=np.zeros(3))
    elif kind == 'inverted':
        np.savez(state / 'a.npz', **held | {'correct': ~held['correct']})
    elif kind == 'swapped':
        (state / 'b.npz').rename(state / 'a.npz')
    elif kind == 'older':
        np.savez(state / 'a.npz', **UNITS['a'])
    else:
        asked(tmp_path / 'other', seed=1)
        (tmp_path / 'other' / 'a.npz').rename(state / 'a.npz')
    with pytest.raises(InputError, match=r'a\.npz is not what this evaluation wrote.* Remove that file'):
        asked()
    (state / 'a.npz').unlink()  # the remedy
    assert asked()['a']['correct'].tolist() == [True, True]


def test_the_clean_logits_of_a_state_have_a_digest_too(tmp_path):
    Saved(tmp_path / 'state', {'seed': 0}, np.zeros((2, 2)))
    np.savez(tmp_path / 'state' / 'clean.npz', logits=np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"clean\.npz is not what .* Remove '.*state' to begin anew"):
        Saved(tmp_path / 'state', {'seed': 0}, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ('what', 'place', 'name', 'changes'),
    [('begins', os, 'replace', 3), ('ends', pathlib.Path, 'unlink', 4)],
)
def test_a_command_that_is_killed_as_it_begins_or_ends_can_be_repeated(
    what, place, name, changes, tmp_path, monkeypatch
):
    """Killed before each change that it makes to the disk there; the next command goes on, or begins anew."""

    def whole(state):
        with Saved(state, {'seed': 0}, np.zeros((2, 2))):
            assert_array_equal(remember('a', lambda: UNITS['a'])['correct'], UNITS['a']['correct'])

    change = getattr(place, name)
    for step in range(changes + 1):
        state, made = tmp_path / str(step), []
        if what == 'ends':
            whole(state)
            (state / lock.NAME).touch()

        def killed(*given, made=made, step=step, **named):
            if len(made) == step:
                raise KeyboardInterrupt
            made.append(given)
            return change(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(KeyboardInterrupt) if step < changes else contextlib.nullcontext():
                whole(state) if what == 'begins' else remove(state)
        if step < changes:
            (state / f'.clean.npz.{16 * "0"}.tmp').touch()
            whole(state)
    assert state.exists() == (what == 'begins')


def test_a_full_disk_leaves_what_is_finished_and_says_so(tmp_path, monkeypatch, no_room):
    state, whole = tmp_path / 'state', run(attacks='pgd')
    write, finished = Saved._write, []

    def full(self, unit, arrays):
        with no_room(100 if len(finished) == 4 else 2**30):
            write(self, unit, arrays)
        finished.append(unit)

    monkeypatch.setattr(Saved, '_write', full)
    with pytest.raises(
        OSError, match='could not keep .* in .*state: File too large. What was finished .* space'
    ):
        run(state, attacks='pgd')
    monkeypatch.setattr(Saved, '_write', write)
    assert sorted(path.stem for path in state.iterdir()) == sorted([*finished, 'identity'])
    same(run(state, attacks='pgd'), whole)


OTHER = net(seed=1)
REFUSED = {
    'seed': ({'seed': 1}, 'seed was 0 and is 1'),
    'eps': ({'eps': 0.05}, "threat model was .*'eps': 0.04.* and is .*'eps': 0.05"),
    'norm': ({'norm': 'l2'}, "threat model was .*'linf'.* and is .*'l2'"),
    'attacks': ({'attacks': 'pgd'}, "protocol was .*'autoattack'.* and is .*'attacks': \\['pgd'\\]"),
    'steps': ({'steps': 3}, "protocol was .*'steps': 2.* and is .*'steps': 3"),
    'individual': ({'individual': True}, 'protocol was'),
    'precision': ({'search_precision': 'bfloat16'}, "search precision was 'float32' and is 'bfloat16'"),
    'data': ({'images': IMAGES[::-1], 'labels': LABELS[::-1]}, 'data was '),
    'labels': ({'labels': (LABELS + 1) % 4}, 'data was '),
    'weights': ({'classifier': OTHER}, 'weights was '),
    'model': ({'classifier': lambda x: NET(x)._replace(logits=-NET(x).logits)}, 'the model differs, by '),
}


@pytest.fixture(scope='module')
def state(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        folder = tmp_path_factory.mktemp('state') / 'state'
        run(folder)
    return folder


@pytest.mark.parametrize('what', REFUSED)
def test_the_state_of_another_evaluation_is_refused(what, state):
    settings, match = REFUSED[what]
    with pytest.raises(InputError, match=f'holds the state of another evaluation: .*{match}'):
        run(state, **settings)


def stepped(derivative):
    """NET behind a step that is exact, and whose derivative is another; weights and logits are the same."""

    @jax.custom_vjp
    def step(x):
        return x

    step.defvjp(lambda x: (x, None), lambda _, cotangent: (derivative * cotangent,))
    return lambda x: NET(step(x))


@pytest.mark.parametrize('where', ['classifier', 'gradient_of', 'transfer_from'])
def test_another_derivative_of_the_same_classifier_is_refused(where, tmp_path):
    settings = {'attacks': 'pgd', 'restarts': 1, 'images': IMAGES[:8], 'labels': LABELS[:8]}

    def again(derivative):
        network = stepped(derivative)
        return run(tmp_path, **settings, **{where: {'a': network} if where == 'transfer_from' else network})

    whole = again(0.0)
    same(again(0.0), whole)
    with pytest.raises(InputError, match="the program of the classifier's gradient.* was .* and is "):
        again(1.0)
    # A state of before there were such digests, or of another version of JAX, goes on.
    path = tmp_path / 'identity.json'
    before = json.loads(path.read_text())
    for changed in ({**before[PROGRAM], 'digest': 'x', 'jax': '0.0.1'}, None):
        kept = {name: changed or value for name, value in before.items() if changed or PROGRAM not in name}
        kept |= {name: value for name, value in before.items() if PROGRAM not in name}
        path.write_text(json.dumps(kept))
        assert_array_equal(again(1.0).correct['pgd'], whole.correct['pgd'])


def test_the_digest_of_a_program_knows_no_places_and_no_addresses():
    source = (
        'def network(x):\n'
        '    shape = jax.ShapeDtypeStruct((len(x), 4), x.dtype)\n'
        '    logits = NET(x).logits\n'
        '    return logits + jax.pure_callback(lambda x: np.zeros((len(x), 4), x.dtype), shape, logits)\n'
    )

    def digest(moved, **other):
        names = {'jax': jax, 'np': np, 'NET': NET}
        exec(compile('\n' * moved + source, f'file{moved}.py', 'exec'), names)
        request = Request.of(IMAGES, LABELS, devices=jax.local_devices()[:1])
        made = network.Network.of(classifier_of(names['network']), request, **other)
        return made.gradient_program()['digest']

    assert digest(0) == digest(7)
    assert digest(0, gradient_of=classifier_of(NET)) == digest(7, gradient_of=classifier_of(NET)) != digest(0)


def test_a_folder_that_is_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(InputError, match='is no state of an evaluation'):
        run(tmp_path)
    assert (tmp_path / 'thesis.tex').read_text() == 'precious'


def test_digests_tell_values_shapes_and_types_apart():
    arrays = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), np.eye(2), jnp.ones(4)]
    assert len({digest(array) for array in arrays}) == len(arrays)
    assert digest(jax.random.key(0)) != digest(jax.random.key(1))
    assert digest(np.zeros(2), np.ones(2)) != digest(np.ones(2), np.zeros(2))


@pytest.mark.parametrize(
    ('asked', 'before', 'chosen'),
    [
        (None, None, 32),
        (None, 30, 30),
        (None, 31, 32),
        (8, 30, 8),
        (None, 'all', 32),
        (None, 30.0, 32),
        (None, 10**9, 32),
    ],
)
def test_an_evaluation_goes_on_with_as_many_images_at_once_as_it_began_with(asked, before, chosen):
    devices = jax.devices()[:2]
    assert images_at_once(asked, 64, devices, before) == chosen


def test_a_state_has_one_evaluation_at_a_time(tmp_path):
    def untouched(images):
        raise AssertionError('the network was run')

    state = tmp_path / 'state'
    with (
        lock.locked(state, ''),
        pytest.raises(InputError, match=f'state is in use by process {os.getpid()} on .* since .*--output='),
    ):
        run(state, untouched)
    with alone(state):  # as a command does, until it has written its result
        assert run(state, attacks='pgd').attacks
        assert (state / lock.NAME).exists()
    assert not (state / lock.NAME).exists() and (state / 'identity.json').exists()
