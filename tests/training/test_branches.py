"""DAJAT: steps equal PyTorch in float64, both sets of batch statistics too, with and without SI and AWP.

The loss falls, a run resumes bit for bit, and networks without batch normalisation are refused.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import losses, models
from si_jax.defenses import DEFENSES, check_soft_labels
from si_jax.errors import InputError
from si_jax.interop.torch_weights import to_torch
from si_jax.training import branches, log, recipes
from si_jax.training.awp import Perturbation
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.setup import setup
from tests.helpers import tiny
from tests.helpers.torch_steps import (
    DECAY,
    GAMMA,
    MOMENTUM,
    RATE,
    ROWS,
    F,
    Torch,
    built,
    check_same,
    compiled,
    falls,
    kl,
    kl_attack,
    make_batch,
    perturbed_update,
    regulariser,
    seen,
    torch,
)
from tests.training.test_run_methods import digits


class TwoSets(Torch):
    """With a second set of affine parameters and statistics, which `forward` uses where it is told to."""

    def __init__(self, variables):
        super().__init__(variables)
        for name in ('scale', 'bias'):
            value = torch.tensor(np.asarray(variables['params']['bn'][f'branch_{name}']), dtype=torch.float64)
            self.w[f'branch_{name}'] = value.requires_grad_(True)
        self.other = {'mean': torch.zeros_like(self.mean), 'var': torch.ones_like(self.var)}
        self.optimiser = torch.optim.SGD(self.w.values(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def forward(self, x, mode, copy=False):
        if not copy:
            return super().forward(x, mode)
        mine, self.mean, self.var = (self.mean, self.var), self.other['mean'], self.other['var']
        w, self.w = self.w, self.w | {name: self.w[f'branch_{name}'] for name in ('scale', 'bias')}
        found = super().forward(x, mode)
        (self.mean, self.var), self.w = mine, w
        return found


def dajat(net, views, y, starts, si):
    adversarial = [
        kl_attack(net, x, y, start, si, number > 0)
        for number, (x, start) in enumerate(zip(views, starts, strict=True))
    ]

    def loss(mode):
        found, natural = [], []
        for number, (x, x_adv) in enumerate(zip(views, adversarial, strict=True)):
            if mode == 'train' and number:
                break  # the weights climb the loss of the first branch
            g, _ = net.forward(x, mode, number > 0)
            g_adv, c_adv = net.forward(x_adv, mode, number > 0)
            found.append(F.cross_entropy(g, y) + 11 * kl(g, g_adv) + regulariser(c_adv, y, si))
            natural.append(F.softmax(g, 1))
        if mode == 'train':
            return found[0] + 0 * sum(weight.sum() for weight in net.w.values())
        mixture = (sum(natural) / 3).clamp(1e-7, 1).log()
        js = sum(F.kl_div(mixture, p, reduction='batchmean') for p in natural) / 3
        return sum(found) / 3 + 2 * js

    return loss


@pytest.mark.parametrize(('si', 'awp'), [(False, Perturbation(GAMMA)), (True, None)])
def test_steps_equal_pytorch_and_the_loss_falls(si, awp):
    defense = built('dajat', si=si)
    state, step, parts = compiled(defense, awp=awp)
    net = TwoSets({'params': state.params, 'batch_stats': state.batch_stats})
    rng = np.random.default_rng(0)
    for index in range(3):
        real = ROWS - 3 * (index == 2)  # the last rows only pad, and count for nothing
        batch = make_batch(rng, index, real)
        copies = tuple(jnp.asarray(rng.uniform(size=batch.images.shape)) ** power for power in (2, 3))
        batch = batch._replace(augmented=copies)
        shown = jax.tree.map(lambda x: x[:real], batch)  # noqa: B023
        views = [of_branch for _, of_branch in branches.of(parts, shown)]
        assert len({str(jax.random.key_data(view.keys)) for view in views}) == len(views) == 3
        images, labels, starts = zip(*(seen(defense, view) for view in views), strict=True)
        state, _, metrics = step(state, (), batch)
        loss = dajat(net, images, labels[0], starts, si)
        value = perturbed_update(net, loss) if awp else net.update(loss('update'))
        assert float(metrics['loss']) == pytest.approx(value, rel=1e-6)  # metrics are float32
        check_same(state, net)
        for name, theirs in {'scale': net.w['branch_scale'], 'bias': net.w['branch_bias']}.items():
            ours = state.params['bn'][f'branch_{name}']
            np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-9, atol=1e-11)
        for name, theirs in net.other.items():
            np.testing.assert_allclose(state.batch_stats['bn'][f'branch_{name}'], theirs, rtol=1e-9)
    assert float(jnp.max(jnp.abs(state.batch_stats['bn']['mean'] - net.other['mean'].numpy()))) > 1e-3
    falls(step, state, batch, metrics, 0.99)


def test_the_divergence_of_branches():
    """Zero for equal ones; by hand for two distributions without anything in common, log 2."""
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5)))
    np.testing.assert_allclose(losses.branch_divergence(jnp.tile(scores, (3, 1, 1))), 0, atol=1e-12)
    apart = jnp.asarray([[[40.0, -40.0]], [[-40.0, 40.0]]])
    np.testing.assert_allclose(losses.branch_divergence(apart), np.log(2), rtol=1e-9)
    assert bool(jnp.all(jnp.isfinite(jax.grad(lambda s: jnp.sum(losses.branch_divergence(s)))(100 * apart))))


def test_evaluation_and_export_use_the_first_set():
    plain, double = (
        models.create('wrn_10_1', num_classes=3, width=1, bn_branch=branch) for branch in (None, 0)
    )
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 3)), jnp.float32)
    both = double.init(jax.random.key(0), images)
    alike = plain.init(jax.random.key(0), images)
    np.testing.assert_array_equal(double.apply(both, images).logits, plain.apply(alike, images).logits)
    exported, expected = to_torch(both), to_torch(alike)
    assert list(exported) == list(expected)
    both['params']['bn1']['branch_bias'] += 1
    np.testing.assert_array_equal(double.apply(both, images).logits, plain.apply(alike, images).logits)
    other = double.clone(bn_branch=1).apply(both, images).logits
    assert float(jnp.max(jnp.abs(other - plain.apply(alike, images).logits))) > 1e-3


def small(arch='wrn_10_1', **changes):
    config = recipes.recipe('dajat_cifar10', arch)
    return digits(
        config, **{'epochs': 2, 'data.limit': 16, 'model.width': 1, 'checkpoint.every_steps': 1, **changes}
    )


def test_a_run_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, 'tiny', tiny.ROW)
    config = small('tiny', **{'defense.branches': 1, 'awp.gamma': 0.0})
    assert 'branches: the images, and copies of each after AutoAugment: 1' in log.header(setup(config), {})
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    state = run(config, str(whole))
    shutil.copytree(whole, again)
    Checkpoints(again / 'checkpoints').remove(2)
    resumed = run(config, str(again))
    assert int(resumed.step) == int(state.step) == 4
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))


@pytest.mark.parametrize(
    ('arch', 'changes', 'message'),
    [
        ('small_cnn', {}, 'small_cnn has no batch normalisation .* use a network that has it'),
        ('wrn_10_1', {'model.bn_branches': False}, 'give --config.model.bn_branches=True'),
        ('wrn_10_1', {'defense.branches': 0}, 'defense.branches=0 must be positive with dajat'),
        ('wrn_10_1', {'defense.passes': 'nat,adv,random'}, 'use no other pass'),
    ],
)
def test_what_has_no_branches_is_refused(arch, changes, message):
    with pytest.raises(InputError, match=message):
        setup(small(arch, **changes))


def test_mixed_labels_and_branches_without_their_term_are_refused():
    with pytest.raises(InputError, match='no form for mixed labels was published of js'):
        check_soft_labels(DEFENSES['dajat'])
    with pytest.raises(InputError, match='0 with any other defense'):
        built('trades', branches=2)
