"""Steps of N-FGSM, ELLE, ELLE-A and NuAT equal an independent PyTorch computation in float64, written from
their repositories; the nuclear norm equals NumPy's, and its gradient is always finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import losses
from si_jax.attacks import pgd
from si_jax.defenses import DEFENSES, SI_TERM, with_si
from si_jax.errors import InputError
from si_jax.outputs import cosine
from si_jax.training import recipes
from si_jax.training.update import Calendar
from tests.helpers.torch_steps import (
    EPS,
    ROWS,
    SHAPE,
    THREAT,
    F,
    S,
    Torch,
    attack_loss,
    built,
    check_same,
    compiled,
    inside,
    make_batch,
    nchw,
    regulariser,
    slope,
    torch,
)

STEPS_PER_EPOCH, EPOCHS = 2, 8


class Drawn:
    """The random numbers of a batch: the start of the attack, and ELLE's two ends and share."""

    def __init__(self, defense, batch):
        of = lambda number: jax.vmap(lambda key: jax.random.fold_in(key, number))(batch.keys)  # noqa: E731
        uniform = lambda key: jax.random.uniform(key, SHAPE, jnp.float64, -EPS, EPS)  # noqa: E731
        self.start = nchw(pgd.starting_points(defense.attack.start, THREAT, batch.images, batch.keys))
        self.ends = [nchw(jax.vmap(uniform)(of(number))) for number in (3, 4)]
        share = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float64))(of(5))
        self.share = torch.tensor(np.asarray(share))


def nfgsm(net, x, y, drawn, index, si):
    gradient = slope(lambda u: attack_loss(*net.forward(u, 'update'), y, si), drawn.start)
    x_adv = (drawn.start + EPS * gradient.sign()).clamp(0, 1)  # no projection to the ball
    assert (x_adv - x).abs().max() > 1.5 * EPS
    g, c = net.forward(x_adv, 'update')
    return F.cross_entropy(g, y) + regulariser(c, y, si)


def elle(net, x, y, drawn, index, si, weight=1000.0):
    gradient = slope(lambda u: attack_loss(*net.forward(u, 'update'), y, si), x)
    g_adv, c_adv = net.forward(x + EPS * gradient.sign(), 'update')  # not clipped either
    a, b = (x + end for end in drawn.ends)
    share = drawn.share[:, None, None, None]
    g, c = net.forward(torch.cat([a, b, (1 - share) * a + share * b]), 'update')
    values = F.cross_entropy(S * c if si else g, y.repeat(3), reduction='none')
    n = len(y)
    line = (1 - drawn.share) * values[:n] + drawn.share * values[n : 2 * n]
    net.error = F.mse_loss(values[2 * n :], line)
    net.forward(x, 'update')
    return F.cross_entropy(g_adv, y) + weight * net.error + regulariser(c_adv, y, si)


def ellea(net, x, y, drawn, index, si):
    """lambda and the history lie on the network."""
    if not index:
        net.weight, net.history, net.rises = 0.0, [], 0
    loss = elle(net, x, y, drawn, index, si, net.weight)
    error = net.error.item()
    if len(net.history) > 2 and error > np.mean(net.history) + 2 * np.std(net.history):
        net.weight, net.rises = 4000.0, net.rises + 1
    else:
        net.weight *= 0.99
    net.history.append(error)
    return loss


def nuat(net, x, y, drawn, index, si):
    weight, odd = 4.0 * (index // STEPS_PER_EPOCH) / EPOCHS, index % STEPS_PER_EPOCH % 2
    score = lambda g, c: S * c if si else g  # noqa: E731
    with torch.no_grad():
        clean = score(*net.forward(x, 'update'))

    def climb(u):
        g, c = net.forward(u, 'eval')
        norm = torch.linalg.matrix_norm(clean - score(g, c), 'nuc') / len(x)
        return attack_loss(g, c, y, si) + odd * weight * norm

    x_adv = inside((drawn.start + EPS * slope(climb, drawn.start).sign()).clamp(0, 1), x)
    g_adv, c_adv = net.forward(x_adv, 'update')
    g, c = net.forward(x, 'update')
    norm = torch.linalg.matrix_norm(score(g, c) - score(g_adv, c_adv), 'nuc') / len(x)
    return F.cross_entropy(g, y) + weight * norm + regulariser(c_adv, y, si)


METHODS = {loss.__name__: loss for loss in (nfgsm, elle, ellea, nuat)}


@pytest.mark.parametrize(
    # NuAT without SI is in test_awp.py.
    ('name', 'si'),
    [('nfgsm', True), ('elle', True), ('ellea', False), ('nuat', True)],
)
def test_steps_equal_pytorch(name, si):
    defense = built(name, si=si)
    one = {'attack_steps': 1, 'attack_step_size': EPS}
    state, step, _ = compiled(defense, calendar=Calendar(STEPS_PER_EPOCH, EPOCHS), **one)
    net, rng = Torch({'params': state.params, 'batch_stats': state.batch_stats}), np.random.default_rng(0)
    for index in range(6 if name == 'ellea' else 4):
        real = ROWS - 3 * (index == 3)  # the last rows only pad, and count for nothing
        batch = make_batch(rng, index, real)
        shown = jax.tree.map(lambda x: x[:real], batch)  # noqa: B023
        labels = torch.tensor(np.asarray(shown.labels)).long()
        state, _, metrics = step(state, (), batch)
        loss = METHODS[name](net, nchw(shown.images), labels, Drawn(defense, shown), index, si)
        assert float(metrics['loss']) == pytest.approx(net.update(loss), rel=1e-6)  # metrics are float32
        check_same(state, net)
    assert int(state.bad_step) == -1
    if name == 'ellea':
        seen = state.memory['nonlinearity']
        assert net.rises and 4000 * float(seen.factor) == pytest.approx(net.weight, rel=1e-9)
        assert float(seen.mean) == pytest.approx(np.mean(net.history), rel=1e-9)
        assert float(np.sqrt(seen.squares / seen.total)) == pytest.approx(np.std(net.history), rel=1e-7)


def test_nfgsm_starts_in_the_wider_ball_and_k_is_a_field():
    images = jnp.full((4, 16, 16, 3), 0.5)
    keys = jax.random.split(jax.random.key(0), 4)
    for k, changes in ((2.0, {}), (3.0, {'start_radius': 3.0})):
        noise = built('nfgsm', **changes).attack.start(THREAT, keys, images) - images
        assert 0.98 * k * EPS < float(jnp.max(jnp.abs(noise))) <= k * EPS * (1 + 1e-6)
        assert float(jnp.std(noise)) == pytest.approx(k * EPS / np.sqrt(3), rel=0.03)
    assert recipes.recipe('nfgsm_cifar10').defense.start_radius == 2.0


def test_the_nuclear_norm_and_its_gradient():
    rng = np.random.default_rng(0)
    adv, nat = rng.normal(size=(2, 9, 4))
    mask = jnp.arange(9) < 7

    def norm(adv, mask=mask):
        return jnp.sum(losses.nuclear_norm(adv, jnp.asarray(nat), mask=mask))

    value, gradient = jax.value_and_grad(norm)(jnp.asarray(adv))
    matrix = (adv - nat)[:7]
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    assert float(value) == pytest.approx(s.sum(), rel=1e-12)
    np.testing.assert_allclose(gradient[:7], u @ vt, atol=1e-12)
    assert not np.any(gradient[7:])
    step = rng.normal(size=adv.shape)
    difference = (norm(adv + 1e-6 * step) - norm(adv - 1e-6 * step)) / 2e-6
    assert float(jnp.sum(gradient * step)) == pytest.approx(float(difference), rel=1e-7)


@pytest.mark.parametrize(
    'matrix',
    [np.zeros((6, 3)), np.eye(6, 3), np.ones((6, 3)), np.eye(2, 5), np.outer(np.arange(6.0), [1, 0, 2])],
    ids=['zero', 'equal', 'rank one', 'fewer rows', 'rank one, other'],
)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_gradient_is_finite_at_equal_and_zero_singular_values(matrix, dtype):
    """The shortest subgradient: U V^T of the directions that are there."""
    given = jnp.asarray(matrix, dtype)
    mask = jnp.ones(len(matrix), bool)
    zeros = jnp.zeros_like(given)
    gradient = jax.grad(lambda x: jnp.sum(losses.nuclear_norm(x, zeros, mask=mask)))(given)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.sum(s > 1e-9))
    np.testing.assert_allclose(gradient, u[:, :rank] @ vt[:rank], atol=1e-5 if dtype == 'float32' else 1e-12)


def test_si_reaches_the_terms_that_compare_scaled_cosines():
    for name in METHODS:
        plain, si = DEFENSES[name], with_si(DEFENSES[name])
        assert set(si.outer) == {*plain.outer, SI_TERM} and si.outer[SI_TERM].score is cosine
    terms = with_si(DEFENSES['nuat'], scale=7.0)
    for term in (terms.outer['nuclear'], terms.inner_terms['nuclear']):
        assert term.score.__qualname__.startswith('scaled_cosine')
    assert terms.outer['natural_ce'] == DEFENSES['nuat'].outer['natural_ce']


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('nfgsm', {'start_radius': 0.0}, 'defense.start_radius=0 must be positive'),
        ('nfgsm', {'start': 'original'}, "changes nothing with start='original': use start_radius=1"),
        ('nfgsm', {'bounds': 'box'}, "unknown bounds 'box'"),
        (
            'elle',
            {'passes': 'adv'},
            "lacks 'segment', which the term 'nonlinearity' needs",
        ),
        (
            'elle',
            {'inner': 'kl', 'start': 'uniform'},
            "compares losses of the labels.* use inner='ce'",
        ),
        ('ellea', {'inner': 'calibrated_ce'}, "use inner='ce' or inner='si'"),
    ],
)
def test_wrong_settings_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        built(name, **changes)
