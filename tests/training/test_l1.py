"""Training in L1: the attack of AT and TRADES equals an independent PyTorch computation in float64."""

import jax
import numpy as np
import pytest

from si_jax.attacks import pgd
from si_jax.threat import Threat
from si_jax.training.setup import step_of
from si_jax.training.update import Ingredients
from tests.helpers.torch_steps import (
    F,
    S,
    Torch,
    begin,
    built,
    check_same,
    kl,
    make_batch,
    nchw,
    regulariser,
    slope,
    torch,
)
from tests.training.test_eat import EPS_L1, projected

SIZE, STEPS = 0.5, 3


def furthest(x, gradient):
    """Pixels by the size of their gradients, each to 0 or 1, until the length of the step is spent."""
    moved = x.flatten(1).clone()
    for image, slopes in zip(moved, gradient.flatten(1), strict=True):
        left = SIZE
        for i in slopes.abs().argsort(descending=True):
            end = (slopes[i] > 0).double()
            way = min(float((end - image[i]).abs()), left)
            image[i] += way * slopes[i].sign()
            left -= way
    return moved.reshape(x.shape)


@pytest.mark.parametrize(('name', 'si'), [('at', False), ('trades', True)])
def test_steps_equal_pytorch(name, si):
    defense, threat = built(name, si=si), Threat('l1', EPS_L1)
    model, optimiser, state = begin(defense)
    parts = Ingredients(
        defense=defense,
        model=model,
        optimiser=optimiser,
        threat=threat,
        attack_steps=STEPS,
        attack_step_size=SIZE,
    )
    step = jax.jit(step_of(defense).make(parts))
    net, rng = Torch({'params': state.params, 'batch_stats': state.batch_stats}), np.random.default_rng(3)
    for index in range(2):
        batch = make_batch(rng, index)
        start = pgd.starting_points(defense.attack.start, threat, batch.images, batch.keys)
        x, y = nchw(batch.images), torch.tensor(np.asarray(batch.labels)).long()

        def climb(u, y=y):
            g, c = net.forward(u, 'eval')
            return F.cross_entropy(S * c if si else g, y, reduction='sum')

        x_adv = nchw(start)
        assert float((x_adv - x).abs().sum((1, 2, 3)).max()) <= EPS_L1 + 1e-9
        for _ in range(STEPS):
            x_adv = x + projected(furthest(x_adv, slope(climb, x_adv)) - x, x)
        state, _, metrics = step(state, (), batch)
        if name == 'at':
            g, c = net.forward(x_adv, 'update')
            loss = F.cross_entropy(g, y) + regulariser(c, y, si)
        else:
            g, _ = net.forward(x, 'update')
            g_adv, c_adv = net.forward(x_adv, 'update')
            loss = F.cross_entropy(g, y) + 6 * kl(g, g_adv) + regulariser(c_adv, y, si)
        assert float(metrics['loss']) == pytest.approx(net.update(loss), rel=1e-6)  # metrics are float32
        check_same(state, net)
