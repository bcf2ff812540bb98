"""IKL: its O(K) form is the sum over pairs of classes; two epochs of steps equal PyTorch in float64, class
means of the epoch before included, with and without SI and AWP, and the loss falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import losses
from si_jax.defenses import DEFENSES, check_soft_labels
from si_jax.errors import InputError
from si_jax.training.awp import Perturbation
from si_jax.training.update import Calendar
from tests.helpers.torch_steps import (
    CLASSES,
    GAMMA,
    ROWS,
    F,
    Torch,
    built,
    check_same,
    compiled,
    falls,
    kl_attack,
    make_batch,
    perturbed_update,
    regulariser,
    seen,
    torch,
)

STEPS_PER_EPOCH = 2


def by_pairs(nat, adv, weights):
    """(1/4) sum_jk w_j w_k (D(n) - D(a))_jk^2 with D(z)_jk = z_j - z_k, as [B, K, K]."""
    matrix = lambda z: z[:, :, None] - z[:, None, :]  # noqa: E731
    pairs = weights[:, :, None] * weights[:, None, :]
    return 0.25 * (pairs * (matrix(nat) - matrix(adv)) ** 2).sum((1, 2))


def test_the_form_without_pairs_is_the_sum_over_pairs_and_so_are_its_gradients():
    rng = np.random.default_rng(0)
    nat, adv = rng.normal(size=(2, 7, 10))
    weights = rng.dirichlet(np.ones(10), 7) * 1.3  # rows need not sum to one
    ours = losses.weighted_differences(jnp.asarray(adv), jnp.asarray(nat), jnp.asarray(weights))
    np.testing.assert_allclose(ours, by_pairs(nat, adv, weights), rtol=1e-12)
    total = lambda f: lambda n, a: jnp.sum(f(n, a))  # noqa: E731
    found = jax.grad(total(lambda n, a: losses.weighted_differences(a, n, jnp.asarray(weights))), (0, 1))
    wanted = jax.grad(total(lambda n, a: by_pairs(n, a, jnp.asarray(weights))), (0, 1))
    for one, other in zip(found(nat, adv), wanted(nat, adv), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    # A shift of all logits of an image is no difference, however large.
    shifted = losses.weighted_differences(jnp.asarray(adv) + 1e6, jnp.asarray(nat), jnp.asarray(weights))
    np.testing.assert_allclose(shifted, ours, rtol=1e-7)


def test_its_parts_have_the_gradient_of_kl_where_weights_are_the_natural_probabilities():
    """Cui et al., theorem 1: with weights p and none through them, and nothing through the natural logits."""
    rng = np.random.default_rng(1)
    nat, adv = (jnp.asarray(x) for x in rng.normal(size=(2, 4, 6)))
    p = jax.nn.softmax(nat, axis=1)

    def parts(nat, adv):
        squares = losses.weighted_differences(jax.lax.stop_gradient(adv), nat, p)
        return jnp.sum(squares + losses.pair_cross_entropy(adv, nat))

    kl = lambda nat, adv: jnp.sum(losses.kl_divergence(adv, nat))  # noqa: E731
    for one, other in zip(jax.grad(parts, (0, 1))(nat, adv), jax.grad(kl, (0, 1))(nat, adv), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


class Means:
    """The weights of jiequancui/DKL: used in an epoch, and summed for the next."""

    def __init__(self):
        self.used, self.sums = torch.full((CLASSES, CLASSES), 1 / CLASSES).double(), 0

    def begin(self, index):
        if index and index % STEPS_PER_EPOCH == 0:
            self.used, self.sums = self.sums / self.sums.sum(1, keepdim=True), 0

    def add(self, logits, y):
        self.sums = self.sums + F.one_hot(y, CLASSES).double().T @ F.softmax(logits.detach() / 4, 1)


def dkl(net, means, x, y, start, si):
    x_adv = kl_attack(net, x, y, start, si)

    def loss(mode):
        a, c = net.forward(x_adv, mode)
        n, _ = net.forward(x, mode)
        if mode == 'update':
            means.add(n, y)
        squares = by_pairs(n, a, means.used[y]).mean()
        entropy = -(F.softmax(n, 1).detach() * F.log_softmax(a, 1)).sum(1).mean()
        return F.cross_entropy(n, y) + 20 * squares + 4 * entropy + regulariser(c, y, si)

    return loss


@pytest.mark.parametrize(('si', 'awp'), [(False, None), (True, Perturbation(GAMMA))])
def test_steps_equal_pytorch_and_the_loss_falls(si, awp):
    defense = built('dkl', si=si)
    state, step, _ = compiled(defense, calendar=Calendar(STEPS_PER_EPOCH, 2), awp=awp)
    net, means = Torch({'params': state.params, 'batch_stats': state.batch_stats}), Means()
    rng = np.random.default_rng(0)
    for index in range(2 * STEPS_PER_EPOCH):
        real = ROWS - 3 * (index == 3)  # the last rows only pad, and count for nothing
        batch = make_batch(rng, index, real)
        batch = batch._replace(labels=jnp.arange(ROWS, dtype=jnp.int32) % CLASSES)  # of every class
        state, _, metrics = step(state, (), batch)
        means.begin(index)
        loss = dkl(net, means, *seen(defense, batch, real), si)
        value = perturbed_update(net, loss) if awp else net.update(loss('update'))
        assert float(metrics['loss']) == pytest.approx(value, rel=1e-6)  # metrics are float32
        check_same(state, net)
        memory = state.memory['ikl']
        np.testing.assert_allclose(memory.means, means.used, rtol=1e-9)
        np.testing.assert_allclose(memory.sums, means.sums, rtol=1e-9)
    assert float(means.used.std()) > 1e-3
    falls(step, state, batch, metrics)


def test_a_class_without_images_keeps_its_means():
    memory = DEFENSES['dkl'].outer['ikl'].memory
    first = memory.first(3)
    sums = jnp.array([[2.0, 1, 1], [0, 0, 0], [1, 1, 2]])
    means = memory.read(first._replace(sums=sums), jnp.bool_(True))
    np.testing.assert_allclose(means, [[0.5, 0.25, 0.25], [1 / 3] * 3, [0.25, 0.25, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(memory.read(first._replace(sums=sums), jnp.bool_(False)), first.means)


def test_mixed_labels_are_refused():
    with pytest.raises(InputError, match='no form for mixed labels was published of ikl'):
        check_soft_labels(DEFENSES['dkl'])
