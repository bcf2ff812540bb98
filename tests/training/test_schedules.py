"""Learning rates at the exact steps, and SGD against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from si_jax.errors import InputError
from si_jax.training.schedules import (
    cosine,
    one_cycle,
    schedule_and_optimiser,
    sgd,
    step_decay,
    triangular,
)

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
        ({'kind': 'cosines'}, {}, "unknown schedule.kind 'cosines'.*steps"),
        ({'every': 'epoch'}, {}, "schedule.every='epoch' is for one_cycle and cosines.*use 'step'"),
        ({'kind': 'one_cycle', 'every': 'batch'}, {}, "unknown schedule.every 'batch'"),
        ({'kind': 'one_cycle', 'peak_at': 0.0}, {}, r'schedule.peak_at=0 in \(0, 1\)'),
        ({'kind': 'cosine', 'warmup': 1.0}, {}, r'schedule.warmup=1 in \[0, 1\)'),
        ({'kind': 'cosine'}, {'cycle_momentum': True}, "or 'one_cycle' .it is 'cosine'"),
        ({}, {'decay': 'kernels'}, "unknown optimiser.decay 'kernels'.*no_bn"),
        ({'peak_at': 1.0}, {}, r'schedule.peak_at=1 in \(0, 1\)'),
        ({'peak': 0.0}, {}, 'schedule.peak=0 must be positive'),
        (
            {'kind': 'steps'},
            {'cycle_momentum': True},
            "needs schedule.kind='triangular' or 'one_cycle' .it is 'steps'",
        ),
        ({}, {'cycle_momentum': True, 'momentum': 0.05}, r'momentum of at least 0.1 \(it is 0.05\)'),
    ],
)
def test_wrong_kinds_and_cycles_are_refused(section, optimiser, message):
    fine = {'kind': 'triangular', 'peak': 0.2, 'peak_at': 0.5, 'factor': 0.1, 'boundaries': (), 'warmup': 0.0}
    settings = SETTINGS | {'cycle_momentum': False} | optimiser
    with pytest.raises(InputError, match=message):
        schedule_and_optimiser(fine | section, settings, epochs=2, steps_per_epoch=4)


def torch_cycle(total, share, peak, momentum=0.9):
    """The rates and momenta of torch's OneCycleLR."""
    torch = pytest.importorskip('torch', reason='the cycle is compared with PyTorch')
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak, momentum=momentum)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak, total_steps=total, pct_start=share)
    found = []
    for number in range(total):
        found.append((optimiser.param_groups[0]['lr'], optimiser.param_groups[0]['momentum']))
        optimiser.step()
        if number + 1 < total:
            schedule.step()
    return np.array(found).T


@pytest.mark.parametrize(('epochs', 'share'), [(50, 0.025), (400, 0.025), (50, 0.25), (400, 0.25)])
def test_one_cycle_is_torchs(epochs, share):
    expected, momenta = torch_cycle(epochs, share, 0.2)
    every_epoch = one_cycle(0.2, share, every='epoch', epochs=epochs, steps_per_epoch=7)
    np.testing.assert_allclose(every_epoch(np.arange(epochs) * 7 + 6), expected, rtol=1e-10)
    every_step = one_cycle(0.2, share, every='step', epochs=epochs // 2, steps_per_epoch=2)
    np.testing.assert_allclose(every_step(np.arange(epochs)), expected, rtol=1e-10)
    assert momenta.max() == 0.95 and momenta.min() == pytest.approx(0.85, abs=1e-3)  # not the 0.9 given


def test_one_cycle_of_few_epochs_starts_at_the_peak():
    """torch's peak would lie before the first epoch; at 40 epochs it divides by zero."""
    rate = one_cycle(0.2, 0.025, every='epoch', epochs=3, steps_per_epoch=4)
    last = 0.2 / 25 / 1e4
    np.testing.assert_allclose(rate(np.array([0, 3, 4, 8])), [0.2, 0.2, (0.2 + last) / 2, last], rtol=1e-12)
    assert torch_cycle(3, 0.025, 0.2)[0][0] == pytest.approx(0.15458, rel=1e-4)
    with pytest.raises(ZeroDivisionError):
        torch_cycle(40, 0.025, 0.2)
    for epochs in (1, 40):
        rates = one_cycle(0.2, 0.025, every='epoch', epochs=epochs, steps_per_epoch=1)(np.arange(epochs))
        assert rates[0] == 0.2 and np.isfinite(rates).all()
    # As wzekai99/DM-Improves-AT has it in 400 epochs: the 1st, 2nd, 10th, 201st and last.
    rates = one_cycle(0.2, 0.025, every='epoch', epochs=400, steps_per_epoch=1)
    at = rates(np.array([0, 1, 9, 200, 399]))
    np.testing.assert_allclose(at, [0.008, 0.01379, 0.2, 0.103222, 8e-7], rtol=1e-4)


def test_one_cycle_moves_the_momentum_as_torch_does():
    torch = pytest.importorskip('torch', reason='the cycle is compared with PyTorch')
    section = {'kind': 'one_cycle', 'peak': 0.2, 'peak_at': 0.4, 'every': 'step'}
    settings = SETTINGS | {'momentum': 0.95, 'nesterov': True, 'cycle_momentum': True}
    _, ours = schedule_and_optimiser(section, settings, epochs=2, steps_per_epoch=5)
    start = {'kernel': np.random.default_rng(0).normal(size=(3, 2))}
    params = updates(ours, jax.tree.map(jnp.asarray, start), steps=10)
    weight = torch.tensor(start['kernel'], requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.2, momentum=0.9, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.2, total_steps=10, pct_start=0.4)
    for step in range(10):
        weight.grad = torch.tensor(gradients_of({'w': weight.detach().numpy()}, step)['w'])
        optimiser.step()
        if step < 9:
            cycle.step()
    np.testing.assert_allclose(params['kernel'], weight.detach().numpy(), rtol=1e-10)


def test_cosines_by_their_formulas():
    epochs = np.arange(1, 201)  # as the sources count
    steps = (epochs - 1) * 3 + 2
    length = {'epochs': 200, 'steps_per_epoch': 3}
    dajat = cosine(0.2, 0.0, every='epoch', **length)(steps)
    np.testing.assert_allclose(dajat, 0.2 * 0.5 * (1 + np.cos(np.pi * (epochs - 1) / 200)), rtol=1e-12)
    dkl = cosine(0.2, 0.0, every='epoch', inner=True, **length)(steps)
    np.testing.assert_allclose(dkl, 0.2 * 0.5 * (1 + np.cos(np.pi * epochs / 201)), rtol=1e-12)
    n = np.arange(600)
    risen = cosine(0.4, 10 / 200, every='step', **length)(n)
    np.testing.assert_allclose(risen[:30], 0.4 * n[:30] / 30, rtol=1e-12)
    falling = 0.4 * 0.5 * (1 + np.cos(np.pi * (n[30:] - 30) / 570))
    np.testing.assert_allclose(risen[30:], falling, rtol=1e-12)


@pytest.mark.parametrize(
    ('decay', 'decaying'),
    [
        ('all', {'kernel', 'bias', 'bn.scale', 'bn.bias'}),
        ('no_bn', {'kernel', 'bias'}),
        ('no_bn_bias', {'kernel'}),
    ],
)
def test_decay_groups(decay, decaying):
    """With a gradient of zero, rate 0.1 and decay 0.5, a weight of 1 becomes 0.95 where it decays."""
    params = {'conv': {'kernel': 1.0, 'bias': 1.0}, 'block': {'bn': {'scale': 1.0, 'bias': 1.0}}}
    params = jax.tree.map(jnp.asarray, params)
    optimiser = sgd(lambda step: 0.1, **(SETTINGS | {'weight_decay': 0.5, 'decay': decay}))
    update, state = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    new = optax.apply_updates(params, update)
    found = {'bn.scale': new['block']['bn']['scale'], 'bn.bias': new['block']['bn']['bias']} | new['conv']
    expected = {name: 0.95 if name in decaying else 1.0 for name in found}
    assert {name: pytest.approx(float(value)) for name, value in found.items()} == expected
    plain = sgd(lambda step: 0.1, **SETTINGS).init(params)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(plain))
