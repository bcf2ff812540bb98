"""Learning rates at the exact steps, and SGD against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from si_jax.errors import InputError
from si_jax.training.schedules import schedule_and_optimiser, sgd, step_decay, triangular

RESNET = (74 / 120, 89 / 120, 99 / 120)
WRN = (74 / 90,)


def rates(schedule, *steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize('steps_per_epoch', [383, 391])
def test_resnet_schedule_drops_at_the_start_of_epochs_75_90_and_100(steps_per_epoch):
    """Epoch e, counted from 1, is steps (e - 1) n up to e n - 1."""
    n = steps_per_epoch
    schedule = step_decay(0.01, 0.1, RESNET, epochs=120, steps_per_epoch=n)
    # The last step of an epoch and the first of the next.
    at = rates(schedule, 0, 74 * n - 1, 74 * n, 89 * n - 1, 89 * n, 99 * n - 1, 99 * n, 120 * n - 1)
    np.testing.assert_allclose(at, [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-6)


@pytest.mark.parametrize('steps_per_epoch', [383, 391])
def test_wrn_schedule_drops_at_the_start_of_epoch_75_only(steps_per_epoch):
    n = steps_per_epoch
    schedule = step_decay(0.1, 0.1, WRN, epochs=90, steps_per_epoch=n)
    np.testing.assert_allclose(
        rates(schedule, 0, 74 * n - 1, 74 * n, 90 * n - 1), [0.1, 0.1, 0.01, 0.01], rtol=1e-6
    )


def test_a_short_run_has_the_same_shape():
    # 74, 89 and 99 of 120 epochs are steps 74, 89 and 99 of a run of 12 epochs of 10 steps.
    schedule = step_decay(0.01, 0.1, RESNET, epochs=12, steps_per_epoch=10)
    at = rates(schedule, 73, 74, 88, 89, 98, 99)
    np.testing.assert_allclose(at, [1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-6)


def test_a_run_of_one_epoch_has_all_drops():
    # round(40 74/120) = 25, round(40 89/120) = 30, round(40 99/120) = 33.
    schedule = step_decay(0.1, 0.1, RESNET, epochs=1, steps_per_epoch=40)
    at = rates(schedule, 24, 25, 29, 30, 32, 33)
    np.testing.assert_allclose(at, [1e-1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4], rtol=1e-6)


def test_boundaries_that_meet_multiply():
    # Of two steps, all three come at the second: 1.23, 1.48 and 1.65 rounded, the last to the end.
    schedule = step_decay(0.01, 0.1, RESNET, epochs=2, steps_per_epoch=1)
    np.testing.assert_allclose(rates(schedule, 0, 1), [1e-2, 1e-4], rtol=1e-6)


def test_no_boundary_is_a_constant_rate():
    schedule = step_decay(0.05, 0.1, (), epochs=5, steps_per_epoch=10)
    np.testing.assert_allclose(rates(schedule, 0, 49, 1000), 0.05, rtol=1e-6)


def test_schedule_can_be_traced():
    schedule = step_decay(0.01, 0.1, RESNET, epochs=12, steps_per_epoch=10)
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(120))
    np.testing.assert_allclose(traced, [float(schedule(i)) for i in range(120)], rtol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'peak': 0.0}, 'schedule.peak=0 must be positive'),
        ({'peak': float('nan')}, 'schedule.peak=nan'),
        ({'factor': 0.0}, r'schedule.factor=0 in \(0, 1\]'),
        ({'factor': 10.0}, 'schedule.factor=10'),
        ({'boundaries': (74, 89, 99)}, 'they are fractions of the 120 epochs, for example 74/120'),
        ({'boundaries': (0.9, 0.5)}, 'must increase'),
        ({'boundaries': (0.0,)}, 'must increase'),
        ({'boundaries': (float('nan'),)}, 'must increase'),
    ],
)
def test_wrong_schedules_are_refused(changes, message):
    settings = {'peak': 0.01, 'factor': 0.1, 'boundaries': RESNET} | changes
    with pytest.raises(InputError, match=message):
        step_decay(**settings, epochs=120, steps_per_epoch=391)


SETTINGS = {'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0, 'clip_norm': 0.0}


def gradients_of(params, step):
    """Made up: different at every step, and dependent on the weights."""
    return {name: np.sin(value + step) + 0.1 * step for name, value in params.items()}


def updates(optimiser, params, steps=5):
    state = optimiser.init(params)
    for step in range(steps):
        update, state = optimiser.update(gradients_of(params, step), state, params)
        params = optax.apply_updates(params, update)
    return params


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'weight_decay': 0.05},
        {'nesterov': True, 'weight_decay': 0.05},
        {'momentum': 0.0, 'weight_decay': 0.05},
    ],
    ids=['plain', 'decay', 'nesterov', 'no momentum'],
)
def test_five_steps_equal_pytorch(changes):
    """With the learning rate falling at the third step: torch applies it after the momentum."""
    torch = pytest.importorskip('torch', reason='SGD is compared with PyTorch')
    settings = SETTINGS | changes
    rng = np.random.default_rng(0)
    # Kernel, bias and BN scale alike: the decay is on all parameters.
    start = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2), 'scale': np.ones(2)}
    schedule = step_decay(0.1, 0.1, (0.4,), epochs=5, steps_per_epoch=1)
    ours = updates(sgd(schedule, **settings), jax.tree.map(jnp.asarray, start))

    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    theirs = torch.optim.SGD(
        tensors.values(),
        lr=0.1,
        momentum=settings['momentum'],
        nesterov=settings['nesterov'],
        weight_decay=settings['weight_decay'],
    )
    for step in range(5):
        theirs.param_groups[0]['lr'] = 0.1 if step < 2 else 0.01
        now = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
        for name, slope in gradients_of(now, step).items():
            tensors[name].grad = torch.tensor(slope)
        theirs.step()
    for name, tensor in tensors.items():
        # The schedule computes in float32.
        np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-6)


def test_two_steps_by_hand():
    # One weight of 1, gradients 2 and 2, decay 0.5, momentum 0.9, rate 0.1:
    # d = 2 + 0.5 = 2.5, v = 2.5, w = 0.75; d = 2 + 0.375, v = 2.25 + 2.375 = 4.625, w = 0.2875.
    optimiser = sgd(lambda step: 0.1, **(SETTINGS | {'weight_decay': 0.5}))
    params, gradient = jnp.array(1.0), jnp.array(2.0)
    state = optimiser.init(params)
    for expected in (0.75, 0.2875):
        update, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        assert float(params) == pytest.approx(expected, rel=1e-6)


def test_clipping_bounds_the_global_norm_before_the_decay():
    # Gradients (3, 0) and 4: global norm 5, clipped to 1: (0.6, 0) and 0.8. Decay 0.5 of (1, 1) and 1 is
    # added after it; rate 0.1.
    optimiser = sgd(lambda step: 0.1, **(SETTINGS | {'weight_decay': 0.5, 'clip_norm': 1.0}))
    params = {'a': jnp.ones(2), 'b': jnp.ones(())}
    gradient = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array(4.0)}
    update, _ = optimiser.update(gradient, optimiser.init(params), params)
    np.testing.assert_allclose(update['a'], [-0.11, -0.05], rtol=1e-6)
    np.testing.assert_allclose(update['b'], -0.13, rtol=1e-6)
    # A shorter gradient is left alone.
    small = jax.tree.map(lambda g: g / 10, gradient)
    update, _ = optimiser.update(small, optimiser.init(params), params)
    np.testing.assert_allclose(update['b'], -0.09, rtol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'momentum': 1.0}, r'optimiser.momentum=1 is not in \[0, 1\); the paper uses 0.9'),
        ({'momentum': -0.1}, 'momentum=-0.1'),
        ({'momentum': float('nan')}, 'momentum=nan'),
        ({'weight_decay': -5e-4}, 'weight_decay=-0.0005'),
        ({'weight_decay': float('nan')}, 'weight_decay=nan'),
        ({'clip_norm': -1.0}, 'clip_norm=-1 must not be negative'),
    ],
)
def test_wrong_optimisers_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        sgd(lambda step: 0.1, **(SETTINGS | changes))


def test_triangular_by_hand():
    # 5 epochs of 4 steps, highest at 2/5: up to step 8, down to step 20.
    schedule = triangular(0.3, 0.4, epochs=5, steps_per_epoch=4)
    np.testing.assert_allclose(rates(schedule, 0, 4, 8, 14, 20), [0, 0.15, 0.3, 0.15, 0], atol=1e-7)


def test_a_cycle_of_rate_and_momentum_equals_pytorchs():
    torch = pytest.importorskip('torch', reason='the cycle is compared with PyTorch')
    section = {'kind': 'triangular', 'peak': 0.2, 'peak_at': 0.5}
    settings = SETTINGS | {'weight_decay': 0.05, 'cycle_momentum': True}
    _, ours = schedule_and_optimiser(section, settings, epochs=2, steps_per_epoch=4)
    start = {'kernel': np.random.default_rng(0).normal(size=(3, 2))}
    params = updates(ours, jax.tree.map(jnp.asarray, start), steps=8)
    weight = torch.tensor(start['kernel'], requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.2, momentum=0.9, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.CyclicLR(
        optimiser, base_lr=0, max_lr=0.2, step_size_up=4, step_size_down=4
    )
    for step in range(8):
        weight.grad = torch.tensor(gradients_of({'w': weight.detach().numpy()}, step)['w'])
        optimiser.step()
        cycle.step()
    np.testing.assert_allclose(params['kernel'], weight.detach().numpy(), rtol=1e-5)
    plain = schedule_and_optimiser(section, settings | {'cycle_momentum': False}, epochs=2, steps_per_epoch=4)
    held = updates(plain[1], jax.tree.map(jnp.asarray, start), steps=8)
    assert np.max(np.abs(held['kernel'] - params['kernel'])) > 1e-3


@pytest.mark.parametrize(
    ('section', 'optimiser', 'message'),
    [
        ({'kind': 'cosine'}, {}, "unknown schedule.kind 'cosine'.*steps"),
        ({'peak_at': 1.0}, {}, r'schedule.peak_at=1 in \(0, 1\)'),
        ({'peak': 0.0}, {}, 'schedule.peak=0 must be positive'),
        ({'kind': 'steps'}, {'cycle_momentum': True}, "needs schedule.kind='triangular' .it is 'steps'"),
        ({}, {'cycle_momentum': True, 'momentum': 0.05}, r'momentum of at least 0.1 \(it is 0.05\)'),
    ],
)
def test_wrong_kinds_and_cycles_are_refused(section, optimiser, message):
    fine = {'kind': 'triangular', 'peak': 0.2, 'peak_at': 0.5, 'factor': 0.1, 'boundaries': ()}
    settings = SETTINGS | {'cycle_momentum': False} | optimiser
    with pytest.raises(InputError, match=message):
        schedule_and_optimiser(fine | section, settings, epochs=2, steps_per_epoch=4)
