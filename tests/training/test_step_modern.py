"""What came after the paper's recipe, in one step: averages, ramps, smoothed and mixed labels, decay groups.

Three steps equal an independent PyTorch computation in float64, and are the same on one and on eight devices.
Without any of it a step is what it was.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import defenses
from si_jax.data import box
from si_jax.runtime import devices
from si_jax.threat import Threat
from si_jax.training import average, ramps, schedules
from si_jax.training.feed import mixture
from si_jax.training.state import Batch, TrainState, create_state
from si_jax.training.step import make_train_step
from si_jax.training.update import Calendar, Ingredients, metric_names
from tests.helpers.tiny import TinyNet

CLASSES, ROWS, SHAPE = 5, 16, (6, 6, 3)
EPS, STEPS, SIZE, EPOCHS, EPOCH = 0.1, 4, 0.05, 3, 2
LENGTH = {'epochs': EPOCHS, 'steps_per_epoch': EPOCH}
S, M, BETA = 15.0, 0.2, 0.2
SCHEDULE = {'kind': 'one_cycle', 'peak': 0.1, 'peak_at': 0.5, 'every': 'step'}
OPTIMISER = {
    'momentum': 0.95, 'nesterov': True, 'weight_decay': 0.05, 'clip_norm': 0.0, 'cycle_momentum': True,
    'decay': 'no_bn',
}  # fmt: skip
EMA = {'kind': 'ema', 'decay': 0.995, 'tau': 0.9, 'start': 0.25, 'ramp': True, 'batch_stats': 'average'}
RAMP = {
    'eps': (0.0, 1.0), 'step_size': (), 'steps': (0.5, 1.0), 'weights': (0.5, 0.5), 'terms': 'kl',
    'every': 'epoch',
}  # fmt: skip
# Sides of int(6 sqrt .4) = 3 pixels, half of it 1: rows 0 and 1, columns 3 and 4.
BOX = {'share': 0.6, 'centre': (1, 4)}


def made(axis=None, *, hypersphere=False, plain=False, dtype=jnp.float64):
    """A state and its step with everything on, or with nothing."""
    row = defenses.DEFENSES['trades']
    base = defenses.with_he(row) if hypersphere else defenses.with_si(row)
    defense = base if plain or hypersphere else defenses.with_smoothing(base, 0.1, 'all')
    growing, defense = (None, defense) if plain else ramps.from_config(RAMP, defense, **LENGTH)
    kept = None if plain else average.from_config(EMA, hypersphere=hypersphere, **LENGTH)
    _, optimiser = schedules.schedule_and_optimiser(SCHEDULE, OPTIMISER, **LENGTH)
    model = TinyNet(CLASSES, axis, hypersphere, 0.01)
    names = metric_names(defense)
    state = create_state(model, optimiser, names, seed=3, image_shape=SHAPE, average=kept)
    if dtype == jnp.float64:
        wide = lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x  # noqa: E731
        state = TrainState(**jax.tree.map(wide, state._asdict()))
    parts = Ingredients(
        defense=defense, model=model, optimiser=optimiser, threat=Threat('linf', EPS), attack_steps=STEPS,
        attack_step_size=SIZE, calendar=Calendar(EPOCH, EPOCHS), average=kept, ramps=growing, axis_name=axis,
        bn_first_step=not plain,
    )  # fmt: skip
    return defense, state, make_train_step(parts)


def mixed_batch(index, dtype=jnp.float64, real=ROWS):
    """A batch whose images have the box of the next image."""
    rng = np.random.default_rng(index)
    images = jnp.asarray(rng.uniform(size=(ROWS, *SHAPE)), dtype)
    labels = jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)
    keys = jax.random.split(jax.random.key(index), ROWS)
    batch = Batch(images, labels, jnp.arange(ROWS) < real, keys)
    share, centre = jnp.float32(BOX['share']), jnp.asarray(BOX['centre'], jnp.int32)
    mask_and_share = box(share, centre, *SHAPE[:2])
    other = jnp.roll(jnp.arange(ROWS), -1)
    mixed = mixture(batch, images[other], labels[other], mask_and_share, CLASSES, jnp.int32(0))
    hot, share = jax.nn.one_hot(labels, CLASSES, dtype=dtype), 1 - 4 / 36  # as a run has it, in float32
    soft = share * hot + (1 - share) * hot[other]
    np.testing.assert_allclose(mixed.soft, soft, atol=1e-6)
    np.testing.assert_array_equal(mixed.labels, labels)
    return mixed._replace(soft=soft), (np.asarray(images), np.asarray(labels))


class Torch:
    """TRADES-SI with all of it, from nothing but the initial weights and the pages of the sources."""

    def __init__(self, state):
        import torch

        self.torch = torch
        p = state.params
        tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64)  # noqa: E731
        self.w = {
            'conv': tensor(p['conv']['kernel']).permute(3, 2, 0, 1).contiguous(),
            'linear': tensor(p['linear']['kernel']).T.contiguous(), 'offset': tensor(p['linear']['bias']),
            'scale': tensor(p['bn']['scale']), 'bias': tensor(p['bn']['bias']),
        }  # fmt: skip
        for weight in self.w.values():
            weight.requires_grad_(True)
        self.stats = {'mean': torch.zeros(8).double(), 'var': torch.ones(8).double()}
        decaying = [self.w[name] for name in ('conv', 'linear', 'offset')]
        rest = [self.w[name] for name in ('scale', 'bias')]
        groups = [{'params': decaying, 'weight_decay': 0.05}, {'params': rest, 'weight_decay': 0.0}]
        self.optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=0.1, total_steps=EPOCHS * EPOCH, pct_start=0.5
        )
        self.kept = {name: value.detach().clone() for name, value in {**self.w, **self.stats}.items()}
        self.updates = 0

    def forward(self, x, mode):
        F = self.torch.nn.functional
        x = F.conv2d(x, self.w['conv'], stride=2, padding=1)
        momentum = 1.0 if self.updates == 0 else 0.01
        x = F.batch_norm(
            x, self.stats['mean'], self.stats['var'], self.w['scale'], self.w['bias'],
            training=mode == 'update', momentum=momentum,
        )  # fmt: skip
        z = F.relu(x).mean((2, 3))
        g = z @ self.w['linear'].T + self.w['offset']
        return g, F.normalize(z, dim=1) @ F.normalize(self.w['linear'], dim=1).T

    def step(self, images, labels, start):
        torch, F = self.torch, self.torch.nn.functional
        x, other = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(np.roll(images, -1, 0))
        x = x.clone()
        x[:, :, 0:2, 3:5] = other.permute(0, 3, 1, 2)[:, :, 0:2, 3:5]
        lam = 1 - 4 / 36
        hot = F.one_hot(torch.tensor(labels).long(), CLASSES).double()
        q = lam * hot + (1 - lam) * hot.roll(-1, 0)

        epoch = self.updates // EPOCH  # from 0
        factor = (epoch + 1) / EPOCHS
        steps = min(STEPS, 2 + int(3 * epoch / EPOCHS))
        kl_weight = 6.0 * (0.5 + 0.5 * min(1.0, (epoch + 1) / (0.5 * EPOCHS)))
        u = torch.tensor(np.asarray(start)).permute(0, 3, 1, 2)
        for _ in range(steps):
            u = u.detach().requires_grad_(True)
            loss = F.cross_entropy(S * self.forward(u, 'eval')[1], q)
            (slope,) = torch.autograd.grad(loss, u)
            u = u.detach() + SIZE * factor * slope.sign()
            u = torch.min(torch.max(u, x - EPS * factor), x + EPS * factor).clamp(0, 1)
        g, _ = self.forward(x, 'update')
        h, c = self.forward(u.detach(), 'update')
        kl = F.kl_div(F.log_softmax(h, 1), F.softmax(g, 1), reduction='batchmean')
        ce = F.cross_entropy(g, q, label_smoothing=0.1)
        loss = ce + kl_weight * kl + BETA * F.cross_entropy(S * (c - M * q), q)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.updates += 1
        warm = 0.25 * EPOCHS * EPOCH  # 1.5 updates
        past = self.updates - warm
        decay = 0.0 if past < 0 else min(0.995, (1 + past) / (10 + past))
        for name, value in {**self.w, **self.stats}.items():
            self.kept[name] = decay * self.kept[name] + (1 - decay) * value.detach()
        return float(loss.detach())

    def check(self, state):
        def same(ours, theirs):
            np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=1e-9, atol=1e-12)

        for params, w in ((state.params, self.w), (state.average['params'], self.kept)):
            same(params['conv']['kernel'], w['conv'].permute(2, 3, 1, 0))
            same(params['linear']['kernel'], w['linear'].T)
            same(params['linear']['bias'], w['offset'])
            same(params['bn']['scale'], w['scale'])
            same(params['bn']['bias'], w['bias'])
        for stats, w in ((state.batch_stats, self.stats), (state.average['batch_stats'], self.kept)):
            same(stats['bn']['mean'], w['mean'])
            same(stats['bn']['var'], w['var'])


def test_five_steps_of_everything_equal_pytorch():
    pytest.importorskip('torch', reason='parity of the training step is measured against PyTorch')
    defense, state, step = made()
    reference, step = Torch(state), jax.jit(step)
    for index in range(5):
        batch, (images, labels) = mixed_batch(index)
        keys = jax.vmap(jax.random.split)(batch.keys)[:, 0]  # as the attack derives them
        threat = Threat('linf', EPS * (index // EPOCH + 1) / EPOCHS)
        start = defense.attack.start(threat, keys, batch.images)
        state, _, metrics = step(state, (), batch)
        loss = reference.step(images, labels, start)
        assert float(metrics['loss']) == pytest.approx(loss, rel=1e-6)
        reference.check(state)
    assert int(state.step) == 5


def test_one_and_eight_devices_agree_and_a_bad_step_leaves_the_average():
    """With hypersphere embedding too, whose averaged head has rows of length one again."""
    _, alone_state, alone = made()
    _, spread_state, spread = made(devices.AXIS)
    alone = jax.jit(alone)
    spread = jax.pmap(spread, axis_name=devices.AXIS, in_axes=(None, 0, 0), out_axes=(None, 0, None))
    for index in range(3):
        batch, _ = mixed_batch(index, real=ROWS - 3)
        alone_state, _, _ = alone(alone_state, (), batch)
        spread_state, _, _ = spread(spread_state, (), devices.shard_rows(batch))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10)
    jax.tree.map(close, alone_state.average, spread_state.average)
    jax.tree.map(close, alone_state.params, spread_state.params)
    bad = batch._replace(images=batch.images.at[0, 0, 0, 0].set(jnp.nan))
    after, _, _ = alone(alone_state, (), bad)
    assert int(after.bad_step) == 3
    jax.tree.map(np.testing.assert_array_equal, after.average, alone_state.average)


def test_the_averaged_head_of_hypersphere_embedding_has_length_one():
    _, state, step = made(hypersphere=True)
    step = jax.jit(step)
    for index in range(3):
        batch, _ = mixed_batch(index)
        state, _, _ = step(state, (), batch._replace(soft=None))
    kernel = state.average['params']['linear']['kernel']
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1, rtol=1e-12)
    assert float(jnp.max(jnp.abs(kernel - state.params['linear']['kernel']))) > 1e-4


# sum |kernel| of the last layer, sum |kernel| of the convolution and sum of the running variance after two
# steps, computed with the version before any of this was there.
GOLDEN = (7.793341395740394, 21.615576002969398, 5.362830257213712)


def test_without_any_of_it_a_step_is_what_it_was():
    row = defenses.with_si(defenses.DEFENSES['trades'])
    optimiser = schedules.sgd(
        lambda step: 0.05, momentum=0.9, nesterov=False, weight_decay=5e-4, clip_norm=0.0
    )
    model = TinyNet(CLASSES)
    state = create_state(model, optimiser, metric_names(row), seed=3, image_shape=SHAPE)
    wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
    state = TrainState(**jax.tree.map(wide, state._asdict()))
    parts = Ingredients(
        defense=row, model=model, optimiser=optimiser, threat=Threat('linf', EPS), attack_steps=2,
        attack_step_size=SIZE,
    )  # fmt: skip
    step = jax.jit(make_train_step(parts))
    for index in range(2):
        rng = np.random.default_rng(index)
        images, labels = rng.uniform(size=(ROWS, *SHAPE)), rng.integers(0, CLASSES, ROWS)
        keys = jax.random.split(jax.random.key(index), ROWS)
        batch = Batch(jnp.asarray(images), jnp.asarray(labels, jnp.int32), jnp.ones(ROWS, bool), keys)
        state, _, _ = step(state, (), batch)
    found = (
        jnp.sum(jnp.abs(state.params['linear']['kernel'])),
        jnp.sum(jnp.abs(state.params['conv']['kernel'])),
        jnp.sum(state.batch_stats['bn']['var']),
    )
    np.testing.assert_allclose(found, GOLDEN, rtol=1e-12)
    # Nor is there anything new in the state, or in what a step is made of.
    arrays = len(jax.tree.leaves(state))
    assert arrays == len(jax.tree.leaves(state._replace(average=()))) and state.average == ()
    assert parts.at(state.step, jnp.float32) is parts
