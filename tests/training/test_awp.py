"""Adversarial weight perturbation equals an independent PyTorch computation in float64, written from the
authors' repository; off it is the program of before, and what cannot have it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.training import recipes
from si_jax.training.awp import Perturbation
from si_jax.training.setup import setup
from si_jax.training.update import Calendar
from tests.helpers.torch_steps import (
    EPS,
    GAMMA,
    F,
    Torch,
    attack_loss,
    built,
    check_same,
    compiled,
    inside,
    kl,
    kl_attack,
    make_batch,
    multi_step,
    perturbed_update,
    regulariser,
    seen,
    slope,
    torch,
)


def at(net, x, y, start, si):
    x_adv = multi_step(lambda u: attack_loss(*net.forward(u, 'eval'), y, si), x, start)

    def loss(mode):
        g, c = net.forward(x_adv, mode)
        return F.cross_entropy(g, y) + regulariser(c, y, si)

    return loss


def trades(net, x, y, start, si):
    x_adv = kl_attack(net, x, y, start, si)

    def loss(mode):
        g, _ = net.forward(x, mode)
        g_adv, c_adv = net.forward(x_adv, mode)
        return F.cross_entropy(g, y) + 6 * kl(g, g_adv) + regulariser(c_adv, y, si)

    return loss


def nuat(net, x, y, start, si):
    """With lambda = 4, on an even batch."""
    net.forward(x, 'update')
    climb = lambda u: attack_loss(*net.forward(u, 'eval'), y, si)  # noqa: E731
    x_adv = inside((start + EPS * slope(climb, start).sign()).clamp(0, 1), x)

    def loss(mode):
        g_adv, _ = net.forward(x_adv, mode)
        g, _ = net.forward(x, mode)
        return F.cross_entropy(g, y) + 4 * torch.linalg.matrix_norm(g - g_adv, 'nuc') / len(x)

    return loss


def make(defense, awp):
    single = {'attack_steps': 1, 'attack_step_size': EPS} if defense.steps == 1 else {}
    return compiled(defense, calendar=Calendar(1, 1), awp=awp, **single)[:2]


@pytest.mark.parametrize(('method', 'si'), [(at, False), (trades, True), (nuat, False)])
def test_steps_equal_pytorch(method, si):
    defense = built(method.__name__, si=si)
    state, step = make(defense, Perturbation(GAMMA))
    if method is nuat:
        state = state._replace(step=jnp.int32(1))  # of one: lambda is 4
    net, rng = Torch({'params': state.params, 'batch_stats': state.batch_stats}), np.random.default_rng(3)
    for index in range(3):
        batch = make_batch(rng, index)
        state = state._replace(step=jnp.int32(1)) if method is nuat else state
        state, _, metrics = step(state, (), batch)
        value = perturbed_update(net, method(net, *seen(defense, batch), si))
        assert float(metrics['loss']) == pytest.approx(value, rel=1e-6)  # metrics are float32
        check_same(state, net)
    assert int(state.bad_step) == -1


def test_before_its_first_step_it_changes_nothing_and_a_bad_step_leaves_everything():
    defense, rng = built('at'), np.random.default_rng(0)
    plain_state, plain = make(defense, None)
    late_state, late = make(defense, Perturbation(GAMMA, 2))
    same = lambda a, b: all(  # noqa: E731
        np.allclose(x, y, rtol=1e-12, atol=1e-14)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    for index in range(3):
        batch = make_batch(rng, index)
        plain_state, _, _ = plain(plain_state, (), batch)
        late_state, _, _ = late(late_state, (), batch)
        assert same(plain_state.params, late_state.params) == (index < 2)
    bad = batch._replace(images=batch.images.at[0, 0, 0, 0].set(jnp.nan))
    kept, _, _ = late(late_state, (), bad)
    assert int(kept.bad_step) == 3
    for name in ('params', 'batch_stats', 'opt_state', 'step'):
        for ours, theirs in zip(
            jax.tree.leaves(getattr(kept, name)), jax.tree.leaves(getattr(late_state, name)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def small(**changes):
    config = recipes.recipe('awp_cifar10', 'small_cnn')
    config.update_from_flattened_dict(
        {'data.name': 'digits', 'data.limit': 16, 'data.validation': 8, 'batch_size': 8} | changes
    )
    return config


def test_a_gamma_of_zero_is_the_program_without():
    ready = setup(small(**{'awp.gamma': 0.0, 'awp.start_epoch': 3}))
    assert ready.awp is None
    assert setup(small(**{'awp.start_epoch': 3})).awp == Perturbation(0.01, 3 * ready.steps_per_epoch)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'awp.gamma': -0.1}, r'awp.gamma=-0.1 is not in \[0, 1\)'),
        ({'awp.gamma': 1.0}, r'awp.gamma=1 is not in \[0, 1\)'),
        ({'awp.start_epoch': -1}, 'awp.start_epoch=-1 is negative'),
        ({'defense.he': True}, 'no form for it was published: use --config.awp.gamma=0'),
        (
            {'defense.name': 'freeat', 'defense.start': 'original', 'attack.steps': 1},
            "the step 'free' takes one gradient .* use --config.awp.gamma=0",
        ),
    ],
)
def test_what_cannot_have_it_is_refused_and_the_remedy_works(changes, message):
    with pytest.raises(InputError, match=message):
        setup(small(**changes))
    setup(small(**changes | {'awp.gamma': 0.0, 'awp.start_epoch': 0}))
