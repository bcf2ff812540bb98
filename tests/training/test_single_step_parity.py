"""Steps of the single-step methods, of hypersphere embedding and of the missing TRADES arms equal an
independent PyTorch computation in float64, written from the methods' papers and repositories: modes of batch
normalisation, orders of passes and starts included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.attacks import pgd
from si_jax.training.free import make_free_step
from si_jax.training.schedules import sgd
from si_jax.training.step import make_train_step
from si_jax.training.update import Calendar, Ingredients
from tests.helpers.tiny import TinyNet
from tests.helpers.torch_steps import (
    CLASSES,
    EPS,
    ROWS,
    SHAPE,
    THREAT,
    F,
    S,
    Torch,
    attack_loss,
    begin,
    built,
    check_same,
    compiled,
    inside,
    kl,
    make_batch,
    margin_ce,
    multi_step,
    nchw,
    regulariser,
    slope,
    torch,
)

CALENDAR = Calendar(steps_per_epoch=2, epochs=1)  # GAT: a = 0, 1, 0, 1, and lambda 40 from step 2 on


def rfgsm(net, x, y, start, noise, index, si):
    gradient = slope(lambda u: attack_loss(*net.forward(u, 'update'), y, si), start)
    g, c = net.forward(inside(start + 1.25 * EPS * gradient.sign(), x), 'update')
    return F.cross_entropy(g, y) + regulariser(c, y, si)


def gat(net, x, y, start, noise, index, si):
    lam, a = (10.0 if index < 2 else 40.0), index % 2
    with torch.no_grad():
        reference = F.softmax(net.forward(x, 'update')[0], 1)

    def climb(u):
        g, c = net.forward(u, 'eval')
        guided = ((reference - F.softmax(g, 1)) ** 2).sum(1).mean()
        return attack_loss(g, c, y, si) + a * lam * guided

    x_adv = (start + EPS * slope(climb, start).sign()).clamp(0, 1)
    x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    g_adv, c_adv = net.forward(x_adv, 'update')
    g, _ = net.forward(x, 'update')
    distance = ((F.softmax(g, 1) - F.softmax(g_adv, 1)) ** 2).sum(1).mean()
    return F.cross_entropy(g, y) + lam * distance + regulariser(c_adv, y, si)


def misalignment(net, first, x_random, y, si, mode='update'):
    x_random = x_random.detach().requires_grad_(True)
    value = attack_loss(*net.forward(x_random, mode), y, si)
    (second,) = torch.autograd.grad(value, x_random, create_graph=True)
    return 1 - F.cosine_similarity(first.flatten(1), second.flatten(1), dim=1, eps=1e-30).mean()


def gradalign(net, x, y, start, noise, index, si):
    first = slope(lambda u: attack_loss(*net.forward(u, 'update'), y, si), x)
    g, c = net.forward(inside(x + 1.25 * EPS * first.sign(), x), 'update')
    loss = F.cross_entropy(g, y) + regulariser(c, y, si)
    return loss + 0.2 * misalignment(net, first, x + noise, y, si)


def he(name):
    def loss(net, x, y, start, noise, index, si):
        clean = net.forward(x, 'eval')[0].detach()
        climbs = {'trades': lambda u: kl(S * clean, S * net.forward(u, 'eval')[0])}
        climb = climbs.get(name, lambda u: F.cross_entropy(S * net.forward(u, 'eval')[0], y))
        x_adv = multi_step(climb, x, start)
        g = net.forward(x, 'update')[0] if name != 'at' else None
        g_adv = net.forward(x_adv, 'update')[0]
        if name == 'trades':
            return margin_ce(g, y) + 6 * kl(S * g, S * g_adv)
        if name == 'at':
            return margin_ce(g_adv, y)
        return 0.5 * margin_ce(g, y) + 0.5 * margin_ce(g_adv, y) + 3 * ((g - g_adv) ** 2).mean()

    return loss


def trades_arm(inner):
    def loss(net, x, y, start, noise, index, si):
        clean = net.forward(x, 'eval')[0].detach()
        top = clean.sort(1).values
        a = 2 / np.median((top[:, -1] - top[:, -2]).numpy())
        climb = {
            'ce': lambda u: F.cross_entropy(net.forward(u, 'eval')[0], y),
            'calibrated_ce': lambda u: F.cross_entropy(a * net.forward(u, 'eval')[0], y),
            'kl': lambda u: kl(clean, net.forward(u, 'eval')[0]),
        }[inner]
        x_adv = multi_step(climb, x, start)
        g = net.forward(x, 'update')[0]
        g_adv, c_adv = net.forward(x_adv, 'update')
        return F.cross_entropy(g, y) + 6 * kl(g, g_adv) + regulariser(c_adv, y, si)

    return loss


CASES = {
    **{f'{loss.__name__}{"-si" if si else ""}': (built(loss.__name__, si=si), loss, si)
       for loss in (rfgsm, gat, gradalign) for si in (False, True)},
    **{f'{name}-he': (built(name, he=True), he(name), False) for name in ('at', 'trades', 'alp')},
    **{f'trades-{inner}': (built('trades', inner=inner), trades_arm(inner), False)
       for inner in ('ce', 'calibrated_ce')},
    'trades-si-kl': (built('trades', si=True, inner='kl'), trades_arm('kl'), True),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_steps_equal_pytorch(case):
    defense, reference, si = CASES[case]
    model, optimiser, state = begin(defense)
    net = Torch({'params': state.params, 'batch_stats': state.batch_stats}, defense.hypersphere)
    single = defense.steps == 1
    step = jax.jit(
        make_train_step(
            Ingredients(
                defense=defense,
                model=model,
                optimiser=optimiser,
                threat=THREAT,
                attack_steps=1 if single else 3,
                attack_step_size=defense.step_size * EPS if single else 0.03,
                calendar=CALENDAR,
            )
        )
    )
    rng = np.random.default_rng(7)
    for index in range(4 if defense.scheduled else 3):
        batch = make_batch(rng, index)
        start = pgd.starting_points(defense.attack.start, THREAT, batch.images, batch.keys)
        noise = THREAT.uniform_noise(
            jax.vmap(lambda key: jax.random.fold_in(key, 2))(batch.keys), batch.images
        )
        state, _, metrics = step(state, (), batch)
        labels = torch.tensor(np.asarray(batch.labels)).long()
        loss = net.update(reference(net, nchw(batch.images), labels, nchw(start), nchw(noise), index, si))
        assert float(metrics['loss']) == pytest.approx(loss, rel=1e-6)  # metrics are float32
        check_same(state, net)
    assert int(state.bad_step) == -1


class TwoLayers(TinyNet):
    """With a convolution after a batch normalisation."""

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = TinyNet(self.width, self.bn_axis, name='first')(x, train, mask).logits
        return TinyNet(self.num_classes, self.bn_axis, name='second')(
            jnp.broadcast_to(x[:, None, None], (len(x), 4, 4, self.width)), train, mask
        )


@pytest.mark.parametrize('name', ['rfgsm', 'nfgsm'])
def test_the_pass_before_the_attack_is_not_made_twice(name):
    """On one device the pass that moves the running statistics is the first of the attack."""

    def convolutions(defense):
        state, _, parts = compiled(defense, attack_steps=1, axis_name='devices')
        parts = parts.with_model(TwoLayers(CLASSES, 'devices'))
        images = jnp.zeros((1, *SHAPE), jnp.float64)
        state = state._replace(**parts.model.init(jax.random.key(0), images))
        state = state._replace(opt_state=parts.optimiser.init(state.params))
        given = jax.tree.map(lambda x: x[None], (state, (), make_batch(np.random.default_rng(1), 0)))
        step = jax.pmap(make_train_step(parts), axis_name='devices', devices=jax.devices()[:1])
        return step.lower(*given).compile().as_text().count(' convolution(')

    defense = built(name)
    assert convolutions(defense) == convolutions(defense._replace(before=()))


@pytest.mark.parametrize(('si', 'inner'), [(False, ''), (True, ''), (True, 'si')], ids=['plain', 'A', 'B'])
def test_freeat_equals_pytorch(si, inner):
    """Three replays, the last two on a batch whose last rows only pad: they keep their perturbation."""
    defense = built('freeat', si=si, inner=inner)
    model, optimiser, state = begin(defense)
    net = Torch({'params': state.params, 'batch_stats': state.batch_stats})
    parts = Ingredients(
        defense=defense, model=model, optimiser=optimiser, threat=THREAT, attack_step_size=0.6 * EPS
    )
    step = jax.jit(make_free_step(parts))
    carry = jnp.zeros((ROWS, *SHAPE))
    delta = torch.zeros(ROWS, 3, 6, 6, dtype=torch.float64)
    rng = np.random.default_rng(5)
    whole, partial = make_batch(rng, 0), make_batch(rng, 1, real=9)
    for batch in (whole, partial, partial):
        n = int(batch.mask.sum())
        x, y = nchw(batch.images)[:n], torch.tensor(np.asarray(batch.labels)).long()[:n]
        x_adv = (x + delta[:n]).clamp(0, 1).requires_grad_(True)
        g, c = net.forward(x_adv, 'update')
        loss = F.cross_entropy(g, y) + regulariser(c, y, si)
        climbed = F.cross_entropy(S * c, y) if inner else loss
        (of_images,) = torch.autograd.grad(climbed, x_adv, retain_graph=True)
        value = net.update(loss)
        delta[:n] = (delta[:n] + 0.6 * EPS * of_images.sign()).clamp(-EPS, EPS)
        state, carry, metrics = step(state, carry, batch)
        assert float(metrics['loss']) == pytest.approx(value, rel=1e-6)
        check_same(state, net)
        np.testing.assert_allclose(carry, delta.permute(0, 2, 3, 1).numpy(), atol=1e-12)
    assert float(jnp.max(jnp.abs(carry))) == pytest.approx(EPS)


def test_gradaligns_penalty_against_finite_differences():
    """The derivative of the loss along a random direction of the parameters, the attack and G1 held fixed."""
    defense = built('gradalign', weights={'adversarial_ce': 0.0, 'misalignment': 1.0})
    model, _, state = begin(defense)
    plain = sgd(lambda step: 1.0, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=0.0)
    state = state._replace(opt_state=plain.init(state.params))
    parts = Ingredients(defense=defense, model=model, optimiser=plain, threat=THREAT, attack_step_size=EPS)
    step = jax.jit(make_train_step(parts))
    batch = make_batch(np.random.default_rng(1), 0)
    new, _, metrics = step(state, (), batch)
    descent = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, new.params)
    noise = THREAT.uniform_noise(jax.vmap(lambda key: jax.random.fold_in(key, 2))(batch.keys), batch.images)
    x, y = nchw(batch.images), torch.tensor(np.asarray(batch.labels)).long()

    def network(params):
        return Torch({'params': params, 'batch_stats': state.batch_stats})

    base = network(state.params)
    first = slope(lambda u: attack_loss(*base.forward(u, 'train'), y, False), x)

    def penalty(params):
        return misalignment(network(params), first, x + nchw(noise), y, False, 'train').item()

    rng, h = np.random.default_rng(2), 1e-6
    direction = jax.tree.map(lambda w: rng.normal(size=w.shape), state.params)
    moved = lambda by: jax.tree.map(lambda w, d: w + by * d, state.params, direction)  # noqa: E731
    difference = (penalty(moved(h)) - penalty(moved(-h))) / (2 * h)
    along = sum(
        float(np.sum(a * b))
        for a, b in zip(jax.tree.leaves(descent), jax.tree.leaves(direction), strict=True)
    )
    assert float(metrics['misalignment']) == pytest.approx(penalty(state.params), rel=1e-6)
    assert abs(along) > 1e-3
    assert along == pytest.approx(difference, rel=1e-6)
