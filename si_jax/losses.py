"""Losses: one number per image from scores and labels.

A *loss* maps a score [B, K] and integer labels [B] to [B]. A *pair loss* compares the scores of an
adversarial batch with those of the natural batch. Attacks maximise losses and training minimises them; batch
means are taken by the caller. Nothing here stops a gradient, unless it says so.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from si_jax.errors import InputError

Array = jax.Array


def _check(score: Array, labels: Array, least_classes: int = 2) -> None:
    if score.ndim != 2 or labels.shape != score.shape[:1]:
        raise InputError(f'a loss takes scores [B, K] and labels [B], not {score.shape} and {labels.shape}')
    if not jnp.issubdtype(score.dtype, jnp.floating) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f'scores must be floating and labels integer, not {score.dtype} and {labels.dtype}')
    if score.shape[1] < least_classes:
        raise InputError(
            f'this loss is defined for {least_classes} classes or more, not for {score.shape[1]}'
        )


def _check_pair(adversarial: Array, natural: Array) -> None:
    if adversarial.ndim != 2 or adversarial.shape != natural.shape:
        raise InputError(
            f'a pair loss takes two scores [B, K] of one shape, not {adversarial.shape} and {natural.shape}'
        )


def _of_label(score: Array, labels: Array) -> Array:
    return jnp.take_along_axis(score, labels[:, None].astype(jnp.int32), axis=1)[:, 0]


def _others(score: Array, labels: Array) -> Array:
    """The scores with that of the label replaced by the lowest finite number, [B, K]."""
    is_label = jax.nn.one_hot(labels, score.shape[1], dtype=bool)
    # Finite: -inf would turn into NaN as soon as it meets an arithmetic operation in a gradient.
    return jnp.where(is_label, jnp.finfo(score.dtype).min, score)


def cross_entropy(score: Array, labels: Array) -> Array:
    """CE(u, y) = logsumexp(u) - u_y, [B] (eq. 7 of the paper)."""
    _check(score, labels)
    return jax.nn.logsumexp(score, axis=1) - _of_label(score, labels)


def margin(score: Array, labels: Array) -> Array:
    """max_{k != y} u_k - u_y, [B]: positive exactly where the image is misclassified.

    Source: the loss of Carlini and Wagner (2017) without confidence offset; eq. 5 of the paper, on logits.
    """
    _check(score, labels)
    return _others(score, labels).max(axis=1) - _of_label(score, labels)


def highest_other(score: Array, labels: Array) -> Array:
    """max_{k != y} u_k, [B]: the first of the two terms of `margin`.

    Source: margin decomposition, Ma et al. (2020), arXiv 2006.13726: where the gradients of the two terms
    differ much in size, an attack on their sum raises one of them only.
    """
    _check(score, labels)
    return _others(score, labels).max(axis=1)


def minus_label(score: Array, labels: Array) -> Array:
    """-u_y, [B]: the second of the two terms of `margin` (see `highest_other`)."""
    _check(score, labels)
    return -_of_label(score, labels)


def dlr(score: Array, labels: Array) -> Array:
    """Difference of logits ratio, (max_{k != y} u_k - u_y) / (u_(1) - u_(3) + 1e-12), [B].

    u_(1) >= u_(2) >= ... are the sorted scores; the gradient goes through the denominator too.

    Source: Croce and Hein (2020), eq. 6 of the paper.

    Raises:
        InputError: With fewer than three classes, where it is not defined.
    """
    _check(score, labels, least_classes=3)
    top = jax.lax.top_k(score, 3)[0]
    return margin(score, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def probability_margin(score: Array, labels: Array) -> Array:
    """max_{k != y} p_k - p_y with p = softmax(u), [B]: the margin of the probabilities.

    Source: the loss of PMA, Xie et al. (2024), arXiv 2411.15210; the first term of GAMA, Sriramanan et al.
    (2020).
    """
    _check(score, labels)
    return margin(jax.nn.softmax(score, axis=1), labels)


def targeted_margin(score: Array, labels: Array, targets: Array) -> Array:
    """u_t - u_y, [B]: how far the target class is above the true one; 0 where they are the same.

    Args:
        score: [B, K].
        labels: [B].
        targets: [B], the class to aim at.
    """
    _check(score, labels)
    _check(score, targets)
    return _of_label(score, targets) - _of_label(score, labels)


def targeted_dlr(score: Array, labels: Array, targets: Array) -> Array:
    """Targeted DLR, (u_t - u_y) / (u_(1) - (u_(3) + u_(4)) / 2 + 1e-12), [B].

    The arguments are those of `targeted_margin`; the gradient goes through the denominator too.

    Source: Croce and Hein (2020), the loss of APGD-T.

    Raises:
        InputError: With fewer than four classes, where it is not defined (`targeted_margin` is).
    """
    _check(score, labels, least_classes=4)
    top = jax.lax.top_k(score, 4)[0]
    return targeted_margin(score, labels, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def soft_cross_entropy(score: Array, soft: Array) -> Array:
    """CE(u, q) = sum_k q_k (logsumexp(u) - u_k), [B]: `cross_entropy` where q is one class.

    Args:
        score: u [B, K].
        soft: q [B, K], a distribution over the classes for each image.
    """
    _check_pair(soft, score)
    return jnp.sum(soft * (jax.nn.logsumexp(score, axis=1, keepdims=True) - score), axis=1)


def smoothed_labels(soft: Array, *, smoothing: float, over: str) -> Array:
    """Soft labels [B, K] with label smoothing.

    Args:
        soft: q [B, K].
        smoothing: s.
        over: 'all' for (1 - s) q + s / K (torch, wzekai99/DM-Improves-AT); 'others' for s spread over the
            K - 1 other classes, (1 - s) q + s (1 - q) / (K - 1) (jiequancui/DKL, val-iisc/DAJAT).
    """
    classes = soft.shape[1]
    spread = 1 / classes if over == 'all' else (1 - soft) / (classes - 1)
    return (1 - smoothing) * soft + smoothing * spread


def smoothed_cross_entropy(score: Array, labels: Array, *, smoothing: float, over: str) -> Array:
    """Cross-entropy with `smoothed_labels` of the classes `labels` [B], [B]."""
    _check(score, labels)
    hot = jax.nn.one_hot(labels, score.shape[1], dtype=score.dtype)
    return soft_smoothed_cross_entropy(score, hot, smoothing=smoothing, over=over)


def soft_smoothed_cross_entropy(score: Array, soft: Array, *, smoothing: float, over: str) -> Array:
    """Cross-entropy with `smoothed_labels` of soft labels [B, K], [B]."""
    return soft_cross_entropy(score, smoothed_labels(soft, smoothing=smoothing, over=over))


def cosine_margin_cross_entropy(cosine: Array, labels: Array, *, scale: float, margin: float) -> Array:
    """R_SI = CE(s (cos - m onehot(y)), y), [B]: the SI regulariser.

    The margin lowers the cosine of the true class only (CosFace); with m = 0 this is the loss of SI-PGD.

    Args:
        cosine: [B, K], see `si_jax.outputs.cosine`.
        labels: [B].
        scale: s; 15 in the paper.
        margin: m; 0.2 in the paper.

    Source: eq. 25 of the paper; Wang et al. (2018), CosFace.
    """
    _check(cosine, labels)
    shift = margin * jax.nn.one_hot(labels, cosine.shape[1], dtype=cosine.dtype)
    return cross_entropy(scale * (cosine - shift), labels)


def soft_cosine_margin_cross_entropy(cosine: Array, soft: Array, *, scale: float, margin: float) -> Array:
    """CE(s (cos - m q), q) with soft labels q [B, K], [B]: R_SI for mixtures of images.

    It is `cosine_margin_cross_entropy` where q is one class. The form is ours, not the paper's.
    """
    _check_pair(soft, cosine)
    return soft_cross_entropy(scale * (cosine - margin * soft), soft)


def kl_divergence(adversarial: Array, natural: Array) -> Array:
    """KL(softmax(natural) || softmax(adversarial)), [B].

    Both arguments keep their gradients: TRADES detaches neither.

    Source: Zhang et al. (2019), repository yaodongyu/TRADES, trades.py.
    """
    _check_pair(adversarial, natural)
    log_p = jax.nn.log_softmax(natural, axis=1)
    log_q = jax.nn.log_softmax(adversarial, axis=1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def boosted_cross_entropy(score: Array, labels: Array) -> Array:
    """MART's BCE: CE(u, y) - log(1.0001 - max_{k != y} softmax(u)_k + 1e-12), [B].

    1.0001 caps the second term at -log(1e-4) = 9.21, without which early training meets infinities.

    Source: Wang et al. (2020), repository YisenWang/MART, mart.py.
    """
    _check(score, labels)
    highest_other = _others(jax.nn.softmax(score, axis=1), labels).max(axis=1)
    return cross_entropy(score, labels) - jnp.log(1.0001 - highest_other + 1e-12)


def weighted_kl_divergence(adversarial: Array, natural: Array, labels: Array) -> Array:
    """MART's KL(p || q) (1.0000001 - p_y) with p the natural and q the adversarial probabilities, [B].

    The weight keeps its gradient. log(q + 1e-12), and 0 log 0 = 0.

    Source: Wang et al. (2020), repository YisenWang/MART, mart.py.
    """
    _check(natural, labels)
    _check_pair(adversarial, natural)
    log_p = jax.nn.log_softmax(natural, axis=1)
    p, q = jnp.exp(log_p), jax.nn.softmax(adversarial, axis=1)
    kl = jnp.sum(p * (log_p - jnp.log(q + 1e-12)), axis=1)
    return kl * (1.0000001 - _of_label(p, labels))


def logit_pairing(adversarial: Array, natural: Array) -> Array:
    """Mean over the classes of (g_k - g'_k)^2, [B].

    Source: Kannan et al. (2018); repository ShawnXYang/AT_HE, losses.py. The paper writes a norm of
    W^T (z - z'), in which the bias cancels.
    """
    _check_pair(adversarial, natural)
    return jnp.mean(jnp.square(natural - adversarial), axis=1)


def probability_distance(adversarial: Array, natural: Array) -> Array:
    """Sum over the classes of (p_k - p'_k)^2 with p and p' the natural and adversarial probabilities, [B].

    Source: the guided term of Sriramanan et al. (2020); repository val-iisc/GAMA-GAT.
    """
    _check_pair(adversarial, natural)
    difference = jax.nn.softmax(natural, axis=1) - jax.nn.softmax(adversarial, axis=1)
    return jnp.sum(jnp.square(difference), axis=1)


def squared_difference(value: Array, other: Array) -> Array:
    """(v - w)^2 of two values an image, [B].

    Source: ELLE, Abad Rocamora et al. (2024), repository LIONS-EPFL/ELLE, core/utils/train.py: of the loss
    between two points of the ball, and of what a straight line between them would give there.
    """
    return jnp.square(value - other)


def pair_cross_entropy(adversarial: Array, natural: Array) -> Array:
    """-sum_k p_k log q_k, [B], with p the natural and q the adversarial probabilities; p has no gradient.

    Source: the second part of IKL (see `weighted_differences`).
    """
    _check_pair(adversarial, natural)
    p = jax.nn.softmax(jax.lax.stop_gradient(natural), axis=1)
    return -jnp.sum(p * jax.nn.log_softmax(adversarial, axis=1), axis=1)


def weighted_differences(adversarial: Array, natural: Array, weights: Array) -> Array:
    """(1/4) sum_jk w_j w_k (u_j - u_k)^2 with u = natural - adversarial, [B]: the first part of IKL.

    u_j - u_k is by how much the difference of two logits differs between the two images. It is computed as
    (W/2) sum_j w_j (u_j - m)^2, with W = sum_j w_j and m the mean of u under w: no K x K matrix an image.

    Args:
        adversarial: [B, K].
        natural: [B, K].
        weights: w [B, K], not negative, with a positive sum.

    Source: Cui et al. (2023), "Decoupled Kullback-Leibler divergence loss", repository jiequancui/DKL,
        dkl_loss.
    """
    _check_pair(adversarial, natural)
    difference = natural - adversarial
    total = jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.sum(weights * difference, axis=1, keepdims=True) / total
    return total[:, 0] / 2 * jnp.sum(weights * jnp.square(difference - mean), axis=1)


def branch_divergence(scores: Array) -> Array:
    """Jensen-Shannon divergence of N distributions, the mean of KL(p_b || m), [B].

    p_b = softmax(scores_b), and m is their mean, at least 1e-7. Everything keeps its gradient.

    Args:
        scores: [N, B, K].

    Source: Addepalli et al. (2022), repository val-iisc/DAJAT, train_DAJAT.py.
    """
    log_p = jax.nn.log_softmax(scores, axis=-1)
    p = jnp.exp(log_p)
    log_mean = jnp.log(jnp.clip(jnp.mean(p, axis=0), 1e-7, 1))
    return jnp.mean(jnp.sum(p * (log_p - log_mean), axis=-1), axis=0)


def nuclear_norm(
    adversarial: Array,
    natural: Array,
    *,
    mask: Array,
    gathered: Callable[[Array], Array] = lambda x: x,
    own: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """||M||_*, the sum of the singular values of M = adversarial - natural of the whole batch, in parts [B].

    With M = U S V^T and P = U V^T, ||M||_* is the sum over the rows of <P_i, M_i>, and P is its gradient. So
    a row's part is <P_i, M_i>, with P a constant to every gradient: the derivative of the decomposition,
    which is not defined where singular values are equal or zero, is never asked for. Directions whose
    singular value is zero (to rounding) have no part in P, which makes it the shortest of the subgradients:
    zero where M is.

    Args:
        adversarial: [B, K].
        natural: [B, K].
        mask: [B] bool, the rows that count; the parts of the others are 0.
        gathered: The rows [B, K] of every device, one after another, from those of this device.
        own: Its inverse.

    Source: NuAT, Sriramanan et al. (2021), repository val-iisc/NuAT, CIFAR10/NuAT_cifar10.py.
    """
    _check_pair(adversarial, natural)
    difference = jnp.where(mask[:, None], adversarial - natural, 0)
    matrix = gathered(jax.lax.stop_gradient(difference))
    # NaN would make some decompositions loop; the loss of its row says that it was there.
    finite = jnp.where(jnp.isfinite(matrix), matrix, 0)
    u, s, vt = jnp.linalg.svd(finite, full_matrices=False)
    kept = s > max(matrix.shape) * jnp.finfo(s.dtype).eps * s[0]
    return jnp.sum(own((u * kept) @ vt) * difference, axis=1)


def misalignment(gradient: Array, other: Array) -> Array:
    """1 - the cosine of the angle between two gradients [B, H, W, C] of one image, [B]; 1 where one is zero.

    Source: GradAlign, Andriushchenko and Flammarion (2020); repository
    tml-epfl/understanding-fast-adv-training.
    """
    if gradient.ndim < 2 or gradient.shape != other.shape:
        raise InputError(f'two gradients of one shape are needed, not {gradient.shape} and {other.shape}')

    def unit(x: Array) -> Array:
        x = x.reshape(len(x), -1)
        square = jnp.sum(x * x, axis=1, keepdims=True)
        # Replaced before the root: its gradient at zero is not finite.
        return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))

    return 1 - jnp.sum(unit(gradient) * unit(other), axis=1)
