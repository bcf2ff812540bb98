"""Every loss: values worked out by hand, gradients against finite differences, extreme scores, bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from si_jax import losses, objectives
from si_jax.errors import InputError
from si_jax.outputs import Outputs, cosine

soft_r_si = functools.partial(losses.soft_cosine_margin_cross_entropy, scale=15.0, margin=0.2)
r_si = functools.partial(losses.cosine_margin_cross_entropy, scale=15.0, margin=0.2)


def scores(*rows):
    return jnp.array(rows, jnp.float64)


def labels(*values):
    return jnp.array(values, jnp.int32)


# softmax(U) = (1/8, 2/8, 5/8), softmax(V) = (2/4, 1/4, 1/4): the logarithms of whole numbers.
U = scores([math.log(1), math.log(2), math.log(5)])
V = scores([math.log(2), math.log(1), math.log(1)])


def test_cross_entropy_by_hand():
    # -log(2/8) = log 4; -log(5/8) = log 1.6.
    np.testing.assert_allclose(losses.cross_entropy(U, labels(1)), [1.3862943611198906], rtol=1e-14)
    np.testing.assert_allclose(losses.cross_entropy(U, labels(2)), [0.47000362924573563], rtol=1e-14)


def test_margin_by_hand():
    u = scores([1, 4, 2, -3], [1, 4, 2, -3], [1, 4, 2, -3])
    # Label 1: 2 - 4. Label 0: 4 - 1. Label 3: 4 - (-3).
    np.testing.assert_array_equal(losses.margin(u, labels(1, 0, 3)), [-2.0, 3.0, 7.0])


def test_the_two_terms_of_the_margin_by_hand():
    u = scores([1, 4, 2, -3], [1, 4, 2, -3], [1, 4, 2, -3])
    np.testing.assert_array_equal(losses.highest_other(u, labels(1, 0, 3)), [2.0, 4.0, 4.0])
    np.testing.assert_array_equal(losses.minus_label(u, labels(1, 0, 3)), [-4.0, -1.0, 3.0])


def test_objectives_in_turn():
    change = objectives.in_turn(objectives.minus_label, objectives.margin, 3)
    u, y = scores([1, 4, 2, -3]), labels(1)
    values = [float(change(u, None, y, i)[0]) for i in range(5)]
    assert values == [-4.0, -4.0, -4.0, -2.0, -2.0]
    assert change.uses == {'adv'}
    assert objectives.in_turn(objectives.kl, objectives.margin, 1).uses == {'adv', 'nat'}


def test_probability_margin_by_hand():
    u = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))
    np.testing.assert_allclose(losses.probability_margin(u, labels(0)), [-0.2], rtol=1e-12)
    np.testing.assert_allclose(losses.probability_margin(u + 7, labels(1)), [0.3], rtol=1e-12)


def test_dlr_by_hand():
    u = scores([1, 4, 2, -3], [1, 4, 2, -3], [1, 4, 2, -3])
    # The margins above, over 4 - 1 (highest less third highest).
    np.testing.assert_allclose(losses.dlr(u, labels(1, 0, 3)), [-2 / 3, 1.0, 7 / 3], rtol=1e-11)


def test_targeted_margin_by_hand():
    u = scores([1, 4, 2, -3], [1, 4, 2, -3], [1, 4, 2, -3])
    # 2 - 4; 4 - (-3); the label itself.
    value = losses.targeted_margin(u, labels(1, 3, 2), labels(2, 1, 2))
    np.testing.assert_array_equal(value, [-2.0, 7.0, 0.0])


def test_targeted_dlr_by_hand():
    u = scores([1, 4, 2, -3], [1, 4, 2, -3])
    # 4 - (1 + (-3)) / 2 = 5; (2 - 4) / 5 and (4 - (-3)) / 5.
    value = losses.targeted_dlr(u, labels(1, 3), labels(2, 1))
    np.testing.assert_allclose(value, [-0.4, 1.4], rtol=1e-11)


def test_cosine_margin_cross_entropy_by_hand():
    # s = 5, m = 0.2, cos = (0.6, -0.8). Label 0: scores 5 (0.6 - 0.2) = 2 and -4, log(1 + e^-6).
    # Label 1: scores 3 and 5 (-0.8 - 0.2) = -5, log(1 + e^8).
    c = scores([0.6, -0.8], [0.6, -0.8])
    value = losses.cosine_margin_cross_entropy(c, labels(0, 1), scale=5.0, margin=0.2)
    np.testing.assert_allclose(value, [0.0024756851377301196, 8.000335406372896], rtol=1e-12)


def test_kl_divergence_by_hand():
    # KL(U || V) = 1/8 log((1/8)/(1/2)) + 1/4 log 1 + 5/8 log((5/8)/(1/4)) = -log(4)/8 + 5 log(2.5)/8.
    value = losses.kl_divergence(adversarial=V, natural=U)
    np.testing.assert_allclose(value, [0.3993949122813606], rtol=1e-13)
    # KL(V || U) = 1/2 log 4 + 0 + 1/4 log(1/2.5): not symmetric.
    value = losses.kl_divergence(adversarial=U, natural=V)
    np.testing.assert_allclose(value, [0.46407449759140654], rtol=1e-13)


def test_boosted_cross_entropy_by_hand():
    # Label 1: log 4 - log(1.0001 - 5/8). Label 2: log 1.6 - log(1.0001 - 2/8).
    value = losses.boosted_cross_entropy(jnp.repeat(U, 2, axis=0), labels(1, 2))
    expected = [1.3862943611198906 + 0.9805626218916, 0.47000362924573563 + 0.2875487480052]
    np.testing.assert_allclose(value, expected, rtol=1e-11)


def test_weighted_kl_divergence_by_hand():
    # KL(U || V) from above times 1.0000001 - p_y = 0.7500001 and 0.3750001.
    natural, adversarial = jnp.repeat(U, 2, axis=0), jnp.repeat(V, 2, axis=0)
    value = losses.weighted_kl_divergence(adversarial, natural, labels(1, 2))
    np.testing.assert_allclose(value, [0.29954622415051, 0.14977313204501], rtol=1e-10)


def test_logit_pairing_by_hand():
    # ((1 - 1)^2 + (2 - 4)^2 + (3 - 0)^2) / 3 = 13/3.
    value = losses.logit_pairing(scores([1, 4, 0]), scores([1, 2, 3]))
    np.testing.assert_allclose(value, [13 / 3], rtol=1e-15)


Y = labels(0, 3, 1)
T = labels(2, 1, 4)
SMOOTHED = {'smoothing': 0.3, 'over': 'others'}
# Each as a function of the adversarial and the natural score of three images.
ALL = {
    'cross_entropy': lambda adv, nat: losses.cross_entropy(adv, Y),
    'margin': lambda adv, nat: losses.margin(adv, Y),
    'highest_other': lambda adv, nat: losses.highest_other(adv, Y),
    'minus_label': lambda adv, nat: losses.minus_label(adv, Y),
    'dlr': lambda adv, nat: losses.dlr(adv, Y),
    'probability_margin': lambda adv, nat: losses.probability_margin(adv, Y),
    'targeted_margin': lambda adv, nat: losses.targeted_margin(adv, Y, T),
    'targeted_dlr': lambda adv, nat: losses.targeted_dlr(adv, Y, T),
    'cosine_margin_cross_entropy': lambda adv, nat: r_si(adv, Y),
    'kl_divergence': lambda adv, nat: losses.kl_divergence(adv, nat),
    'boosted_cross_entropy': lambda adv, nat: losses.boosted_cross_entropy(adv, Y),
    'weighted_kl_divergence': lambda adv, nat: losses.weighted_kl_divergence(adv, nat, Y),
    'logit_pairing': lambda adv, nat: losses.logit_pairing(adv, nat),
    'probability_distance': lambda adv, nat: losses.probability_distance(adv, nat),
    'misalignment': lambda adv, nat: losses.misalignment(adv, nat),
    'squared_difference': lambda adv, nat: losses.squared_difference(adv[:, 0], nat[:, 0]),
    # Of soft labels that depend on the scores, so that their derivative counts too.
    'soft_cross_entropy': lambda adv, nat: losses.soft_cross_entropy(adv, jax.nn.softmax(nat)),
    'soft_cosine_margin_cross_entropy': lambda adv, nat: soft_r_si(adv, jax.nn.softmax(nat)),
    'smoothed_cross_entropy': lambda adv, nat: losses.smoothed_cross_entropy(adv, Y, **SMOOTHED),
    'soft_smoothed_cross_entropy': lambda adv, nat: losses.soft_smoothed_cross_entropy(
        adv, jax.nn.softmax(nat), **SMOOTHED
    ),
    'smoothed_labels': lambda adv, nat: losses.smoothed_labels(adv, **SMOOTHED).sum(axis=1),
    'weighted_differences': lambda adv, nat: losses.weighted_differences(adv, nat, jnp.ones_like(adv)),
    'branch_divergence': lambda adv, nat: losses.branch_divergence(jnp.stack([adv, nat])),
}


def test_no_loss_is_left_out_here():
    public = {
        name
        for name, value in vars(losses).items()
        if callable(value)
        and not name.startswith('_')
        and getattr(value, '__module__', '') == losses.__name__
    }
    # These hold a part constant: the singular vectors, the natural probabilities. `tests/training` has their
    # derivatives.
    assert public == set(ALL) | {'nuclear_norm', 'pair_cross_entropy'}


@pytest.mark.parametrize('name', ALL)
def test_gradients_agree_with_finite_differences(name):
    """First and second derivatives, in both arguments: nothing is detached."""
    rng = np.random.default_rng(5)
    adversarial, natural = jnp.asarray(rng.normal(size=(2, 3, 6)))
    weights = jnp.array([1.0, -2.0, 0.5])
    total = jax.jit(lambda adv, nat: jnp.sum(weights * ALL[name](adv, nat)))
    check_grads(total, (adversarial, natural), order=2, modes=('rev',), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('name', ['kl_divergence', 'weighted_kl_divergence', 'logit_pairing'])
def test_pair_losses_keep_the_gradient_of_both_scores(name):
    rng = np.random.default_rng(5)
    adversarial, natural = jnp.asarray(rng.normal(size=(2, 3, 6)))
    gradients = jax.grad(lambda adv, nat: jnp.sum(ALL[name](adv, nat)), (0, 1))(adversarial, natural)
    assert all(float(jnp.min(jnp.max(jnp.abs(g), axis=1))) > 1e-3 for g in gradients)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
@pytest.mark.parametrize('name', ALL)
def test_extreme_scores_stay_finite(name, dtype):
    big = 1e4
    right, wrong = np.full((3, 5), -big), np.full((3, 5), -big)
    right[np.arange(3), np.asarray(Y)] = big
    wrong[np.arange(3), np.asarray(T)] = big
    extremes = [right, wrong, np.zeros((3, 5)), np.full((3, 5), big), np.full((3, 5), -big)]
    both = jax.jit(
        lambda adv, nat: (
            ALL[name](adv, nat),
            jax.grad(lambda a, n: jnp.sum(ALL[name](a, n)), (0, 1))(adv, nat),
        )
    )
    for adversarial in extremes:
        for natural in extremes:
            value, gradients = both(jnp.asarray(adversarial, dtype), jnp.asarray(natural, dtype))
            assert value.dtype == dtype and value.shape == (3,)
            assert np.isfinite(value).all()
            assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_dlr_gradient_goes_through_the_denominator():
    # f = (u_2 - u_1) / (u_1 - u_0) = -2/3 at u = (1, 4, 2): df/du_2 = 1/3, df/du_0 = f/3 = -2/9,
    # df/du_1 = -1/3 - f/3 = -1/9.
    gradient = jax.grad(lambda u: losses.dlr(u, labels(1))[0])(scores([1, 4, 2]))
    np.testing.assert_allclose(gradient, [[-2 / 9, -1 / 9, 1 / 3]], rtol=1e-10)


@pytest.mark.parametrize('factor', [1e-3, 1e3])
def test_dlr_is_scale_invariant(factor):
    u = jnp.asarray(np.random.default_rng(2).normal(size=(3, 5)))
    for loss in (lambda u: losses.dlr(u, Y), lambda u: losses.targeted_dlr(u, Y, T)):
        np.testing.assert_allclose(loss(factor * u + 3), loss(u), rtol=1e-8)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_boosted_cross_entropy_is_capped(dtype):
    """MART's 1.0001: a certain other class costs -log(1e-4) = 9.21 beyond the cross-entropy, and no more."""
    u = jnp.array([[100.0, 0.0, 0.0], [1e4, 0.0, 0.0]], dtype)
    second = losses.boosted_cross_entropy(u, labels(1, 1)) - losses.cross_entropy(u, labels(1, 1))
    # In float32 1.0001 - 1 is 1.0002e-4, and the sum with 10,000 keeps three decimals.
    np.testing.assert_allclose(second, 9.2103404, atol=1e-3 if dtype == jnp.float32 else 1e-7)


def test_margin_is_on_the_true_class_only():
    """numerator exp(s (c_y - m)), denominator the same plus sum over k != y of exp(s c_k)."""
    c = np.random.default_rng(3).uniform(-1, 1, (3, 5))
    y = np.asarray(Y)
    shifted = 15 * c
    shifted[np.arange(3), y] -= 15 * 0.2
    by_hand = -np.log(np.exp(shifted[np.arange(3), y]) / np.exp(shifted).sum(axis=1))
    np.testing.assert_allclose(r_si(jnp.asarray(c), Y), by_hand, rtol=1e-10)
    # On all classes it would cancel.
    everywhere = losses.cross_entropy(15.0 * (jnp.asarray(c) - 0.2), Y)
    np.testing.assert_allclose(everywhere, losses.cross_entropy(15.0 * jnp.asarray(c), Y), rtol=1e-10)
    assert (np.asarray(r_si(jnp.asarray(c), Y)) > np.asarray(everywhere)).all()


def test_si_regulariser_without_margin_is_the_attack_loss_and_it_increases_with_the_margin():
    c = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (3, 5)))
    values = [losses.cosine_margin_cross_entropy(c, Y, scale=15.0, margin=m) for m in np.linspace(0, 1, 6)]
    np.testing.assert_array_equal(values[0], losses.cross_entropy(15.0 * c, Y))
    assert (np.diff(np.array(values), axis=0) > 0).all()


def test_si_regulariser_can_only_turn_the_weights():
    """<W_k, dR_SI/dW_k> = 0, in float32 below 1e-6 of the product of the norms."""
    rng = np.random.default_rng(6)
    z, w = (
        jnp.asarray(rng.normal(size=(3, 16)), jnp.float32),
        jnp.asarray(rng.normal(size=(16, 5)), jnp.float32),
    )
    gradient = jax.grad(lambda w: jnp.mean(r_si(cosine(Outputs(z @ w, z, w)), Y)))(w)
    w, gradient = np.asarray(w, np.float64), np.asarray(gradient, np.float64)
    relative = (w * gradient).sum(axis=0) / np.linalg.norm(w, axis=0) / np.linalg.norm(gradient, axis=0)
    assert np.abs(relative).max() < 1e-6


def test_losses_agree_with_torch():
    torch = pytest.importorskip('torch', reason='cross-entropy and KL are compared with PyTorch')
    functional = torch.nn.functional
    adv, nat = 3 * np.random.default_rng(8).normal(size=(2, 3, 5))
    t_adv, t_nat = torch.tensor(adv, requires_grad=True), torch.tensor(nat, requires_grad=True)
    y = torch.tensor(np.asarray(Y)).long()

    value = functional.cross_entropy(t_adv, y, reduction='none')
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(adv), Y), value.detach(), rtol=1e-13)

    # As TRADES writes it: nn.KLDivLoss(log_softmax(adversarial), softmax(natural)), batchmean.
    value = functional.kl_div(
        functional.log_softmax(t_adv, dim=1), functional.softmax(t_nat, dim=1), reduction='batchmean'
    )
    value.backward()
    ours, gradients = jax.value_and_grad(lambda a, n: jnp.mean(losses.kl_divergence(a, n)), (0, 1))(
        jnp.asarray(adv), jnp.asarray(nat)
    )
    np.testing.assert_allclose(ours, value.item(), rtol=1e-13)
    np.testing.assert_allclose(gradients[0], t_adv.grad, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(gradients[1], t_nat.grad, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ('loss', 'classes', 'needed'),
    [
        (losses.cross_entropy, 1, 2),
        (losses.margin, 1, 2),
        (losses.dlr, 2, 3),
        (lambda u, y: losses.targeted_dlr(u, y, y), 3, 4),
        (r_si, 1, 2),
        (losses.boosted_cross_entropy, 1, 2),
    ],
)
def test_too_few_classes_are_refused(loss, classes, needed):
    with pytest.raises(InputError, match=f'{needed} classes or more, not for {classes}'):
        loss(jnp.zeros((2, classes)), labels(0, 0))
    assert loss(jnp.zeros((2, needed)), labels(0, 0)).shape == (2,)


BAD = {
    'labels of another batch': (jnp.zeros((2, 4)), labels(0, 1, 2), 'scores \\[B, K\\] and labels \\[B\\]'),
    'labels with two axes': (jnp.zeros((2, 4)), labels(0, 1)[:, None], r'not \(2, 4\) and \(2, 1\)'),
    'one-hot labels': (jnp.zeros((2, 4)), jnp.eye(4)[:2], r'not \(2, 4\) and \(2, 4\)'),
    'one score': (jnp.zeros(4), labels(0), r'not \(4,\) and'),
    'labels that are floats': (jnp.zeros((2, 4)), jnp.zeros(2), 'labels integer, not float64 and float64'),
    'scores that are integers': (jnp.zeros((2, 4), int), labels(0, 1), 'must be floating'),
}


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize(
    'loss',
    [
        losses.cross_entropy,
        losses.margin,
        losses.dlr,
        r_si,
        losses.boosted_cross_entropy,
        lambda u, y: losses.targeted_margin(u, y, labels(0, 1)),
        lambda u, y: losses.targeted_dlr(u, labels(0, 1), y),
        lambda u, y: losses.weighted_kl_divergence(u, u, y),
    ],
)
def test_bad_shapes_and_types_are_refused(loss, case):
    score, y, message = BAD[case]
    with pytest.raises(InputError, match=message):
        loss(score, y)


@pytest.mark.parametrize(
    'loss',
    [
        losses.kl_divergence,
        losses.logit_pairing,
        lambda adv, nat: losses.weighted_kl_divergence(adv, nat, labels(0, 1)),
    ],
)
def test_pair_losses_refuse_scores_of_two_shapes(loss):
    """[1, K] against [B, K] would broadcast to a number that looks right."""
    with pytest.raises(InputError, match=r'one shape, not \(1, 4\) and \(2, 4\)'):
        loss(jnp.zeros((1, 4)), jnp.zeros((2, 4)))


def test_objectives_read_what_they_say():
    adv, nat, y = scores([1, 4, 2, -3]), scores([0, 1, 2, 5]), labels(1)
    expected = {
        'natural_ce': losses.cross_entropy(nat, y),
        'adversarial_ce': losses.cross_entropy(adv, y),
        'margin': losses.margin(adv, y),
        'dlr': losses.dlr(adv, y),
        'boosted_ce': losses.boosted_cross_entropy(adv, y),
        'kl': losses.kl_divergence(adv, nat),
        'weighted_kl': losses.weighted_kl_divergence(adv, nat, y),
        'logit_pairing': losses.logit_pairing(adv, nat),
    }
    made = {
        'targeted_dlr': (objectives.targeted_dlr(labels(2)), losses.targeted_dlr(adv, y, labels(2))),
        'targeted_margin': (objectives.targeted_margin(labels(2)), losses.targeted_margin(adv, y, labels(2))),
        'si_margin_ce': (objectives.si_margin_ce(15.0, 0.2), r_si(adv, y)),
    }
    rows = {name: (getattr(objectives, name), value) for name, value in expected.items()} | made
    for name, (objective, value) in rows.items():
        # None stands in for every score that the objective says it does not read.
        given = [score if part in objective.uses else None for part, score in (('adv', adv), ('nat', nat))]
        np.testing.assert_array_equal(objective(*given, y, 0), value, err_msg=name)


def test_probability_distance_by_hand():
    # (1/8 - 2/4)^2 + (2/8 - 1/4)^2 + (5/8 - 1/4)^2 = 9/64 + 0 + 9/64.
    np.testing.assert_allclose(losses.probability_distance(U, V), [0.28125], rtol=1e-14)
    np.testing.assert_array_equal(losses.probability_distance(U, U + 3.0) < 1e-30, [True])


def test_misalignment_by_hand():
    one, other = jnp.zeros((4, 1, 2, 1)), jnp.zeros((4, 1, 2, 1))
    # (3, 4) and (4, 3): cosine 24/25. (1, 0) and (0, 2): 0. (1, 1) and (-2, -2): -1. A zero gradient: 0.
    one = one.at[:3, 0, :, 0].set(jnp.array([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]]))
    other = other.at[:, 0, :, 0].set(jnp.array([[4.0, 3.0], [0.0, 2.0], [-2.0, -2.0], [1.0, 1.0]]))
    np.testing.assert_allclose(losses.misalignment(one, other), [1 / 25, 1.0, 2.0, 1.0], rtol=1e-14)
    slope = jax.grad(lambda x: losses.misalignment(x, other).sum())(one)
    assert np.isfinite(slope).all()
    with pytest.raises(InputError, match='of one shape'):
        losses.misalignment(one, other[:2])


def test_gama_by_hand():
    # Probabilities 1/8, 2/8, 5/8 against 2/4, 1/4, 1/4; label 1: the margin is 5/8 - 2/8 = 3/8.
    gama = objectives.gama()
    for step, weight in ((0, 50.0), (1, 48.0), (24, 2.0), (25, 0.0), (99, 0.0)):
        value = gama(U, V, labels(1), jnp.asarray(step))
        np.testing.assert_allclose(value, [0.375 + weight * 0.28125], rtol=1e-12)
    assert gama.uses == {'adv', 'nat'}


@pytest.mark.parametrize('over', ['all', 'others'])
def test_label_smoothing_by_hand_and_of_soft_labels(over):
    """s = .3 over three classes: (.1, .8, .1), or (.15, .7, .15) over the others."""
    log_p = np.log([1 / 8, 2 / 8, 5 / 8])
    q = np.array([0.1, 0.8, 0.1] if over == 'all' else [0.15, 0.7, 0.15])
    smoothed = functools.partial(losses.smoothed_cross_entropy, smoothing=0.3, over=over)
    np.testing.assert_allclose(smoothed(U, labels(1)), [-np.sum(q * log_p)], rtol=1e-14)
    soft = functools.partial(losses.soft_smoothed_cross_entropy, smoothing=0.3, over=over)
    np.testing.assert_allclose(soft(U, scores([0.0, 1.0, 0.0])), smoothed(U, labels(1)), rtol=1e-14)
    # It is linear in the label.
    mixed = 0.25 * smoothed(U, labels(0)) + 0.75 * smoothed(U, labels(1))
    np.testing.assert_allclose(soft(U, scores([0.25, 0.75, 0.0])), mixed, rtol=1e-14)
    nothing = losses.smoothed_cross_entropy(U, labels(1), smoothing=0.0, over=over)
    np.testing.assert_allclose(nothing, losses.cross_entropy(U, labels(1)), rtol=1e-14)


def test_label_smoothing_is_torchs():
    torch = pytest.importorskip('torch', reason='label smoothing is compared with PyTorch')
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    ours = losses.smoothed_cross_entropy(jnp.asarray(u), labels(*y), smoothing=0.1, over='all')
    given = torch.tensor(u), torch.tensor(y)
    theirs = torch.nn.functional.cross_entropy(*given, reduction='none', label_smoothing=0.1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_soft_labels_in_the_regulariser():
    """CE(15 (c - .2 q), q): today's term for one class, and by its formula for a mixture."""
    cosines = scores([0.1, 0.5, -0.3], [0.9, -0.2, 0.4])
    hot = jax.nn.one_hot(labels(1, 0), 3, dtype=jnp.float64)
    np.testing.assert_allclose(soft_r_si(cosines, hot), r_si(cosines, labels(1, 0)), rtol=1e-14)
    q = np.array([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
    u = 15 * (np.asarray(cosines) - 0.2 * q)
    expected = np.log(np.exp(u).sum(1)) - (q * u).sum(1)
    np.testing.assert_allclose(soft_r_si(cosines, jnp.asarray(q)), expected, rtol=1e-13)
