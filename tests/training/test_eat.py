"""E-AT: a step equals an independent PyTorch computation in float64, written from the authors' repository;
how a norm is drawn, what is remembered, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.threat import Threat
from si_jax.training import eat, recipes
from si_jax.training.setup import setup, step_of
from si_jax.training.update import Ingredients
from tests.helpers.torch_steps import (
    EPS,
    ROWS,
    THREAT,
    F,
    S,
    Torch,
    attack_loss,
    begin,
    built,
    check_same,
    inside,
    make_batch,
    nchw,
    regulariser,
    torch,
)

EPS_L1, STEPS = 2.0, 4
OTHERS = f'l1:{EPS_L1}'


def losses_and_slope(net, x, y, si):
    """Cross-entropy of each image, which the attack climbs, its gradient, and the answers that are right."""
    x = x.detach().requires_grad_(True)
    g, c = net.forward(x, 'eval')
    loss = F.cross_entropy(S * c if si else g, y, reduction='none')
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    return loss.detach(), gradient, g.argmax(1) == y


def projected(delta, x):
    """Onto the L1 ball and [0, 1], by halving."""
    room = torch.minimum(delta.abs(), torch.where(delta > 0, 1 - x, x))
    low, high = torch.zeros(len(x), 1, 1, 1), delta.abs().amax((1, 2, 3), keepdim=True)
    kept = lambda a: torch.minimum((delta.abs() - a).clamp(min=0), room)  # noqa: E731
    for _ in range(100):
        middle = (low + high) / 2
        fits = kept(middle).sum((1, 2, 3), keepdim=True) <= EPS_L1
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    whole = room.sum((1, 2, 3), keepdim=True) <= EPS_L1
    return torch.where(whole, delta.sign() * room, delta.sign() * kept(high))


def apgd_l1(net, x, y, si):
    """-> x_best, and which images no point fooled. With four steps there is a check after each."""
    size = x[0].numel()
    share, sparsity = np.full(len(x), 0.05), np.full(len(x), float(size))
    step = np.full(len(x), EPS_L1)
    point, (loss, gradient, right) = x.clone(), losses_and_slope(net, x, y, si)
    best, best_gradient, best_loss = point.clone(), gradient.clone(), loss.clone()
    for _ in range(STEPS):
        direction = torch.zeros_like(x)
        for i in range(len(x)):
            sizes = gradient[i].abs().flatten()
            least = sizes.sort().values[int(np.clip((1 - share[i]) * size, 0, size - 1))]
            signs = (gradient[i] * (gradient[i].abs() >= least)).sign()
            direction[i] = step[i] * signs / (signs.abs().sum() + 1e-10)
        point = x + projected(point + direction - x, x)
        loss, gradient, correct = losses_and_slope(net, point, y, si)
        right &= correct
        for i in range(len(x)):
            if loss[i] > best_loss[i]:
                best[i], best_gradient[i], best_loss[i] = point[i], gradient[i], loss[i]
            moved = float((best[i] != x[i]).sum())
            sparser = moved / sparsity[i] < 0.95
            step[i] = np.clip(EPS_L1 if sparser else step[i] / 1.5, EPS_L1 / 10, EPS_L1)
            share[i], sparsity[i] = moved / size / 1.5, moved
            if sparser:
                point[i], gradient[i] = best[i], best_gradient[i]
    return best, right


def apgd_linf(net, x, y, si):
    """-> x_best, and which images no point fooled. With four steps there is a checkpoint after each."""
    step, halved, losses = np.full(len(x), 2 * EPS), np.ones(len(x), bool), [torch.zeros(len(x))]
    point, (loss, gradient, right) = x.clone(), losses_and_slope(net, x, y, si)
    best, best_gradient, best_loss = point.clone(), gradient.clone(), loss.clone()
    before, at_check = x.clone(), best_loss.clone()
    for i in range(STEPS):
        a, previous = (0.75 if i else 1.0), before
        target = inside(point + torch.tensor(step).view(-1, 1, 1, 1) * gradient.sign(), x)
        before = point.clone()
        point = inside(point + a * (target - point) + (1 - a) * (point - previous), x)
        loss, gradient, correct = losses_and_slope(net, point, y, si)
        right &= correct
        for j in range(len(x)):
            if loss[j] > best_loss[j]:
                best[j], best_gradient[j], best_loss[j] = point[j], gradient[j], loss[j]
            # One comparison in each window: it halves unless the loss rose, the first time from 0.
            stalled = not halved[j] and at_check[j] >= best_loss[j]
            halved[j] = bool((loss[j] > losses[-1][j]) <= 0.75 * 1) or bool(stalled)
            at_check[j] = best_loss[j]
            if halved[j]:
                step[j] /= 2
                point[j], gradient[j] = best[j], best_gradient[j]
        losses.append(loss)
    return best, right


def make(si, others=OTHERS):
    defense = built('eat', si=si, others=others)
    model, optimiser, state = begin(defense)
    parts = Ingredients(
        defense=defense,
        model=model,
        optimiser=optimiser,
        threat=THREAT,
        attack_steps=STEPS,
        attack_step_size=EPS,
    )
    return state, jax.jit(step_of(defense).make(parts))


@pytest.mark.parametrize('si', [False, True])
def test_steps_equal_pytorch(si):
    state, step = make(si)
    net, rng = Torch({'params': state.params, 'batch_stats': state.batch_stats}), np.random.default_rng(3)
    counts = np.zeros((2, 2), np.int64)
    for index in range(5):
        batch = make_batch(rng, index, ROWS - index)
        real = ROWS - index
        x, y = nchw(batch.images)[:real], torch.tensor(np.asarray(batch.labels)).long()[:real]
        state, _, metrics = step(state, (), batch)
        # The norm: by the cumulated shares of images that fell in it, or each as likely.
        fallen = 1 - counts[:, 0] / counts[:, 1] if counts[:, 1].all() else np.array([0.5, 0.5])
        number = jax.random.uniform(jax.random.fold_in(batch.keys[0], 6), (), jnp.float32)
        chosen = int(float(number) * fallen.sum() >= fallen[0])
        x_adv, right = (apgd_l1 if chosen else apgd_linf)(net, x, y, si)
        g, c = net.forward(x_adv, 'update')
        value = net.update(attack_loss(g, c, y, False) + regulariser(c, y, si))
        counts[chosen] += int(right.sum()), real
        np.testing.assert_array_equal(state.memory['withstood'], counts)
        assert float(metrics['loss']) == pytest.approx(value, rel=1e-6)  # metrics are float32
        check_same(state, net)
    assert counts[:, 1].all() and int(state.bad_step) == -1


def test_each_norm_comes_in_proportion_to_what_falls_in_it():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(eat.drawn, (0, None)))
    shares = lambda counts: np.bincount(drawn(keys, jnp.array(counts)), minlength=len(counts)) / 4000  # noqa: E731
    np.testing.assert_allclose(shares([[60, 80], [20, 80]]), [0.25, 0.75], atol=0.02)
    np.testing.assert_allclose(shares([[0, 0], [20, 80], [80, 80]]), [1 / 3] * 3, atol=0.03)
    np.testing.assert_allclose(shares([[80, 80], [40, 40]]), [0.5, 0.5], atol=0.03)
    assert shares([[80, 80], [10, 80]])[1] == 1


def test_one_threat_model_is_apgd_alone_and_a_bad_step_counts_nothing():
    state, step = make(False, others='')
    assert state.memory == () and int(step(state, (), make_batch(np.random.default_rng(0), 0))[0].step) == 1
    state, step = make(False)
    batch = make_batch(np.random.default_rng(0), 0)
    kept, _, _ = step(state, (), batch._replace(images=batch.images.at[0, 0, 0, 0].set(jnp.nan)))
    assert int(kept.bad_step) == 0 and not np.asarray(kept.memory['withstood']).any()


def small(**changes):
    config = recipes.recipe('eat_cifar10', 'small_cnn')
    config.update_from_flattened_dict(
        {'data.name': 'digits', 'data.limit': 16, 'batch_size': 8, 'init_from': '', 'threat.eps': 0.2}
        | {'defense.others': 'l1:3'}
        | changes
    )
    return config


def test_what_cannot_be_is_refused_and_the_remedy_works():
    wrong = [
        ({'init_from': 'required'}, 'goes on from a trained network, and none is given'),
        ({'defense.others': 'l1'}, "'l1' is no threat model: write NORM:EPS"),
        ({'defense.others': 'l1:12000'}, r'eps=12000 is not in \(0, 64\]'),
        ({'defense.bounds': 'none'}, "use bounds='ball'"),
        ({'ramp.eps': (0.0, 1.0)}, 'nothing of the attack can grow'),
    ]
    for changes, message in wrong:
        with pytest.raises(InputError, match=message):
            setup(small(**changes))
    assert setup(small()).defense.others == (Threat('l1', 3.0),)
    at = recipes.recipe('at_cifar10', 'small_cnn')
    at.defense.others = 'l1:12'
    with pytest.raises(InputError, match="at trains in one threat model, .* use others=''"):
        setup(at)
