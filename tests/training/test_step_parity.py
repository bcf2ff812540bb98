"""Three steps of every multi-step defense equal an independent PyTorch computation, written from the methods'
papers and repositories: the attack, the losses, the running statistics and the optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import defenses
from si_jax.threat import Threat
from si_jax.training.schedules import sgd
from si_jax.training.state import Batch, TrainState, create_state
from si_jax.training.step import make_train_step
from si_jax.training.update import Ingredients, metric_names
from tests.helpers.tiny import TinyNet

torch = pytest.importorskip('torch', reason='parity of the training step is measured against PyTorch')
F = torch.nn.functional

CLASSES, ROWS, SHAPE = 5, 12, (6, 6, 3)
THREAT, ATTACK_STEPS, STEP_SIZE = Threat('linf', 0.1), 4, 0.025
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
SCALE, MARGIN, BETA = 15.0, 0.2, 0.2


class Torch:
    """`TinyNet` and its training in PyTorch, from nothing but the initial weights."""

    def __init__(self, variables):
        params = variables['params']
        as_tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64)  # noqa: E731
        self.w = {
            'conv': as_tensor(params['conv']['kernel']).permute(3, 2, 0, 1).contiguous(),
            'scale': as_tensor(params['bn']['scale']),
            'bias': as_tensor(params['bn']['bias']),
            'linear': as_tensor(params['linear']['kernel']).T.contiguous(),
            'offset': as_tensor(params['linear']['bias']),
        }
        for tensor in self.w.values():
            tensor.requires_grad_(True)
        self.mean = as_tensor(variables['batch_stats']['bn']['mean'])
        self.var = as_tensor(variables['batch_stats']['bn']['var'])
        self.optimiser = torch.optim.SGD(
            self.w.values(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def forward(self, x, mode):
        """mode: 'eval', 'train' (batch statistics) or 'update' (and the running ones move)."""
        x = F.conv2d(x, self.w['conv'], stride=2, padding=1)
        mean, var = (self.mean, self.var) if mode != 'train' else (self.mean.clone(), self.var.clone())
        x = F.batch_norm(x, mean, var, self.w['scale'], self.w['bias'], training=mode != 'eval', momentum=0.1)
        z = F.relu(x).mean((2, 3))
        g = z @ self.w['linear'].T + self.w['offset']
        cos = F.normalize(z, dim=1) @ F.normalize(self.w['linear'], dim=1).T
        return g, cos

    def attack(self, x, start, loss, bn):
        x_adv = start.clone()
        for _ in range(ATTACK_STEPS):
            x_adv.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(*self.forward(x_adv, bn)), x_adv)
            x_adv = x_adv.detach() + STEP_SIZE * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - THREAT.eps), x + THREAT.eps).clamp(0, 1)
        return x_adv.detach()

    def step(self, name, si, x, y, start, *, bn='eval', third_pass=False):
        def kl(p_logits, q_logits):
            return F.kl_div(F.log_softmax(q_logits, 1), F.softmax(p_logits, 1), reduction='batchmean')

        if name == 'standard':
            x_adv = x
        elif si:
            x_adv = self.attack(x, start, lambda g, c: F.cross_entropy(SCALE * c, y), bn)
        elif name == 'trades':
            natural = self.forward(x, bn)[0].detach()
            x_adv = self.attack(x, start, lambda g, c: kl(natural, g), bn)
        else:
            x_adv = self.attack(x, start, lambda g, c: F.cross_entropy(g, y), bn)

        if name in ('standard', 'trades', 'alp', 'mart'):
            g, _ = self.forward(x, 'update')
        if name != 'standard':
            g_adv, c_adv = self.forward(x_adv, 'update')
        if third_pass:
            self.forward(x, 'update')
        if name == 'standard':
            loss = F.cross_entropy(g, y)
        elif name == 'at':
            loss = F.cross_entropy(g_adv, y)
        elif name == 'trades':
            loss = F.cross_entropy(g, y) + 6.0 * kl(g, g_adv)
        elif name == 'alp':
            pairing = ((g - g_adv) ** 2).mean()
            loss = 0.5 * F.cross_entropy(g, y) + 0.5 * F.cross_entropy(g_adv, y) + 3.0 * pairing
        elif name == 'mart':
            p, q = F.softmax(g, 1), F.softmax(g_adv, 1)
            top = q.detach().argsort(dim=1)[:, -2:]
            other = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
            rows = torch.arange(len(y))
            bce = F.cross_entropy(g_adv, y) - torch.log(1.0001 - q[rows, other] + 1e-12).mean()
            weighted = (p * (torch.log(p) - torch.log(q + 1e-12))).sum(1) * (1.0000001 - p[rows, y])
            loss = bce + 6.0 * weighted.mean()
        if si:
            loss = loss + BETA * F.cross_entropy(SCALE * (c_adv - MARGIN * F.one_hot(y, CLASSES).double()), y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def config(name, *, si, **changes):
    row = defenses.DEFENSES[name]
    settings = {
        'name': name, 'si': si, 'weights': {}, 'scale': SCALE, 'margin': MARGIN, 'start': 'uniform',
        'attack_bn': 'eval', 'passes': ','.join(row.passes),
    }  # fmt: skip
    return defenses.from_config(settings | changes)


def batch(rng, index):
    images = jnp.asarray(rng.uniform(size=(ROWS, *SHAPE)))
    labels = jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)
    keys = jax.random.split(jax.random.key(index), ROWS)
    return Batch(images, labels, jnp.ones(ROWS, bool), keys)


def start_of(defense, batch):
    keys = jax.vmap(jax.random.split)(batch.keys)[:, 0]  # as the attack derives them
    return np.asarray(defense.attack.start(THREAT, keys, batch.images))


CASES = [
    *[(name, si, {}) for name in ('at', 'trades', 'alp', 'mart') for si in (False, True)],
    ('standard', False, {}),
    ('trades', False, {'passes': 'nat,adv,nat'}),
    ('trades', False, {'start': 'gaussian'}),
    ('at', True, {'attack_bn': 'train'}),
]


@pytest.mark.parametrize(('name', 'si', 'changes'), CASES)
def test_three_steps_equal_pytorch(name, si, changes):
    defense = config(name, si=si, **changes)
    model = TinyNet(CLASSES)
    optimiser = sgd(
        lambda step: LEARNING_RATE,
        momentum=MOMENTUM,
        nesterov=False,
        weight_decay=WEIGHT_DECAY,
        clip_norm=0.0,
    )
    state = create_state(model, optimiser, metric_names(defense), seed=3, image_shape=SHAPE)
    floats = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state._asdict())
    state = TrainState(**floats)
    reference = Torch({'params': state.params, 'batch_stats': state.batch_stats})
    parts = Ingredients(
        defense=defense, model=model, optimiser=optimiser, threat=THREAT, attack_steps=ATTACK_STEPS,
        attack_step_size=STEP_SIZE,
    )  # fmt: skip
    step = jax.jit(make_train_step(parts))

    def same(ours, theirs):
        np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=1e-9, atol=1e-12)

    rng = np.random.default_rng(7)
    for index in range(3):
        rows = batch(rng, index)
        as_torch = lambda x: torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)  # noqa: E731
        start = as_torch(start_of(defense, rows)) if defense.attack else None
        state, _, metrics = step(state, (), rows)
        loss = reference.step(
            name, si, as_torch(rows.images), torch.tensor(np.asarray(rows.labels)).long(), start,
            bn=changes.get('attack_bn', 'eval'), third_pass=changes.get('passes') == 'nat,adv,nat',
        )  # fmt: skip
        assert float(metrics['loss']) == pytest.approx(loss, rel=1e-6)  # metrics are float32
        same(state.params['conv']['kernel'], reference.w['conv'].permute(2, 3, 1, 0))
        same(state.params['linear']['kernel'], reference.w['linear'].T)
        same(state.params['linear']['bias'], reference.w['offset'])
        same(state.params['bn']['scale'], reference.w['scale'])
        same(state.params['bn']['bias'], reference.w['bias'])
        same(state.batch_stats['bn']['mean'], reference.mean)
        same(state.batch_stats['bn']['var'], reference.var)
    assert int(state.step) == 3 and int(state.bad_step) == -1
