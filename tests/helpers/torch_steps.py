"""`TinyNet` and its training in PyTorch, in float64: what parity tests of training steps are written with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import defenses
from si_jax.attacks import pgd
from si_jax.threat import Threat
from si_jax.training.schedules import sgd
from si_jax.training.state import Batch, TrainState, create_state
from si_jax.training.step import step_of
from si_jax.training.update import Calendar, Ingredients, metric_names
from tests.helpers.tiny import TinyNet

torch = pytest.importorskip('torch', reason='parity of the training step is measured against PyTorch')
F = torch.nn.functional

CLASSES, ROWS, SHAPE, EPS = 5, 12, (6, 6, 3), 0.1
THREAT = Threat('linf', EPS)
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
S, M, BETA = 15.0, 0.2, 0.2
GAMMA = 0.1  # of perturbed weights; larger than the published 0.01: what it does must show


class Torch:
    """`TinyNet` and its training in PyTorch, from nothing but the initial weights."""

    def __init__(self, variables, hypersphere=False):
        tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64)  # noqa: E731
        params = variables['params']
        self.hypersphere = hypersphere
        self.w = {
            'conv': tensor(params['conv']['kernel']).permute(3, 2, 0, 1).contiguous(),
            'scale': tensor(params['bn']['scale']),
            'bias': tensor(params['bn']['bias']),
            'linear': tensor(params['linear']['kernel']).T.contiguous(),
        }
        if not hypersphere:
            self.w['offset'] = tensor(params['linear']['bias'])
        for weight in self.w.values():
            weight.requires_grad_(True)
        self.mean = tensor(variables['batch_stats']['bn']['mean'])
        self.var = tensor(variables['batch_stats']['bn']['var'])
        self.optimiser = torch.optim.SGD(self.w.values(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def forward(self, x, mode):
        """(logits, cosines); mode: 'eval', 'train' (batch statistics) or 'update' (the running ones move)."""
        x = F.conv2d(x, self.w['conv'], stride=2, padding=1)
        mean, var = (self.mean, self.var) if mode != 'train' else (self.mean.clone(), self.var.clone())
        x = F.batch_norm(x, mean, var, self.w['scale'], self.w['bias'], training=mode != 'eval', momentum=0.1)
        z = F.relu(x).mean((2, 3))
        if self.hypersphere:
            g = F.normalize(z, dim=1) @ self.w['linear'].T
            return g, g
        g = z @ self.w['linear'].T + self.w['offset']
        return g, F.normalize(z, dim=1) @ F.normalize(self.w['linear'], dim=1).T

    def update(self, loss):
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        if self.hypersphere:
            self.w['linear'].data = F.normalize(self.w['linear'].data, dim=1)
        return float(loss.detach())


def inside(x_adv, x):
    return torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)


def slope(loss, x, **options):
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(loss(x), x, **options)[0]


def margin_ce(cosine, y):
    return F.cross_entropy(S * (cosine - M * F.one_hot(y, CLASSES).double()), y)


def regulariser(c, y, si):
    return BETA * margin_ce(c, y) if si else 0.0


def attack_loss(g, c, y, si):
    return F.cross_entropy(S * c if si else g, y)


def kl(p_logits, q_logits):
    return F.kl_div(F.log_softmax(q_logits, 1), F.softmax(p_logits, 1), reduction='batchmean')


def multi_step(climb, x, start, steps=3, size=0.03):
    for _ in range(steps):
        start = inside(start + size * slope(climb, start).sign(), x)
    return start


def kl_attack(net, x, y, start, si, *where):
    """The attack of TRADES: on KL from the clean logits, with SI on scaled cosines; `where` as `forward`."""
    clean = net.forward(x, 'eval', *where)[0].detach()

    def climb(u):
        g, c = net.forward(u, 'eval', *where)
        return F.cross_entropy(S * c, y) if si else kl(clean, g)

    return multi_step(climb, x, start)


def perturbed_update(net, loss):
    """The step of csdongxian/AWP: the proxy's gradient, then the optimiser at w + gamma v, then back."""
    names = list(net.w)
    gradients = torch.autograd.grad(loss('train'), [net.w[name] for name in names])
    v = {
        name: net.w[name].detach().norm() / (g.norm() + 1e-20) * g
        for name, g in zip(names, gradients, strict=True)
        if g.ndim > 1
    }
    assert set(v) == {'conv', 'linear'}
    with torch.no_grad():
        for name, direction in v.items():
            net.w[name].add_(GAMMA * direction)
    value = net.update(loss('update'))
    with torch.no_grad():
        for name, direction in v.items():
            net.w[name].sub_(GAMMA * direction)
    return value


def built(name, **changes):
    row = defenses.DEFENSES[name]
    settings = {
        'name': name, 'si': False, 'he': False, 'inner': '', 'weights': {}, 'scale': S, 'margin': M,
        'start': row.start, 'attack_bn': row.attack_bn, 'passes': ','.join(row.passes),
        'replays': row.replays, 'branches': row.branches,
    }  # fmt: skip
    return defenses.from_config(settings | changes)


def begin(defense):
    model = TinyNet(CLASSES, hypersphere=defense.hypersphere, bn_branch=0 if defense.branches else None)
    optimiser = sgd(lambda step: RATE, momentum=MOMENTUM, nesterov=False, weight_decay=DECAY, clip_norm=0.0)
    memory = defense.first_memory(CLASSES)
    state = create_state(model, optimiser, metric_names(defense), seed=3, image_shape=SHAPE, memory=memory)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state._asdict())
    if defense.hypersphere:  # the initial weights were of length one in float32
        kernel = wide['params']['linear']['kernel']
        wide['params']['linear']['kernel'] = kernel / jnp.linalg.norm(kernel, axis=0)
    return model, optimiser, TrainState(**wide)


def compiled(defense, **more):
    """(first state, compiled step, what it is made of) of a defense; `more` goes to the ingredients."""
    model, optimiser, state = begin(defense)
    settings = {'threat': THREAT, 'attack_steps': 3, 'attack_step_size': 0.03, 'calendar': Calendar(2, 20)}
    parts = Ingredients(defense=defense, model=model, optimiser=optimiser, **settings | more)
    return state, jax.jit(step_of(defense).make(parts)), parts


def falls(step, state, batch, metrics, share=0.97):
    """Asserts that the loss of one batch falls below this share of what it was."""
    first = float(metrics['loss'])
    for _ in range(15):
        state, _, metrics = step(state, (), batch)
    assert float(metrics['loss']) < share * first and int(state.bad_step) == -1


def make_batch(rng, index, real=ROWS):
    images = jnp.asarray(rng.uniform(size=(ROWS, *SHAPE)))
    labels = jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)
    return Batch(images, labels, jnp.arange(ROWS) < real, jax.random.split(jax.random.key(index), ROWS))


def seen(defense, batch, real=ROWS):
    """What PyTorch sees of the first rows of a batch: images, labels, and where the attack starts."""
    shown = jax.tree.map(lambda x: x[:real], batch)
    start = pgd.starting_points(defense.attack.start, THREAT, shown.images, shown.keys)
    return nchw(shown.images), torch.tensor(np.asarray(shown.labels)).long(), nchw(start)


def nchw(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def check_same(state, net):
    def same(ours, theirs):
        np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=1e-9, atol=1e-11)

    same(state.params['conv']['kernel'], net.w['conv'].permute(2, 3, 1, 0))
    same(state.params['linear']['kernel'], net.w['linear'].T)
    same(state.params['bn']['scale'], net.w['scale'])
    same(state.params['bn']['bias'], net.w['bias'])
    same(state.batch_stats['bn']['mean'], net.mean)
    same(state.batch_stats['bn']['var'], net.var)
    if net.hypersphere:
        assert 'bias' not in state.params['linear']
        np.testing.assert_allclose(np.linalg.norm(state.params['linear']['kernel'], axis=0), 1, rtol=1e-12)
    else:
        same(state.params['linear']['bias'], net.w['offset'])
