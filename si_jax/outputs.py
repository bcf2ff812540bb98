"""What a classifier returns, and the scores that losses are computed from.

Every classifier maps images [B, H, W, C] in [0, 1] to `Outputs`. A score turns outputs into one number per
class [B, K]; a loss turns scores and labels into one number per image [B].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.errors import InputError

Array = jax.Array


class Outputs(NamedTuple):
    """The result of one forward pass.

    Attributes:
        logits: [B, K], g = W^T z + b.
        features: [B, F], the input z of the last linear layer; None if the network does not end in one.
        kernel: [F, K], the weights W of the last linear layer; None likewise.
    """

    logits: Array
    features: Array | None = None
    kernel: Array | None = None


Score = Callable[[Outputs], Array]


def as_outputs(value: Any) -> Outputs:
    """`Outputs` from what a classifier returned: `Outputs`, a (logits, features, kernel) tuple, or logits.

    Raises:
        InputError: If it is none of these, or the shapes do not belong together.
    """
    outputs = Outputs(*value) if isinstance(value, tuple) and len(value) == 3 else Outputs(value)
    shape = getattr(outputs.logits, 'shape', None)
    if shape is None or len(shape) != 2 or shape[1] == 1:
        raise InputError(
            f'a classifier must return logits [B, K], or (logits, features, kernel), not {_described(value)}'
        )
    if (outputs.features is None) != (outputs.kernel is None):
        raise InputError('features and kernel belong together: give both, or None for both')
    if outputs.features is not None and outputs.kernel is not None:
        features, kernel = outputs.features.shape, outputs.kernel.shape
        if len(features) != 2 or features[0] != shape[0] or kernel != (features[1], shape[1]):
            raise InputError(
                f'logits {shape}, features {features} and kernel {kernel} do not belong together: they must '
                f'be [B, K], [B, F] and [F, K]'
            )
    return outputs


def _kind(value: Any) -> str:
    return 'array' if isinstance(value, jax.Array) else type(value).__name__


def _described(value: Any) -> str:
    """What a classifier returned in place of logits, and what it should return."""
    shape = getattr(value, 'shape', None)
    if isinstance(value, dict):
        keys = ', '.join(map(repr, value))
        advice = next((repr(key) for key in ('logits', 'output') if key in value), 'the key of the logits')
        return f'dict with {keys}: return the one that holds them, outputs[{advice}]'
    if isinstance(value, list | tuple):
        parts = ', '.join(f'{_kind(one)} {getattr(one, "shape", "")}'.strip() for one in value)
        return f'{type(value).__name__} of {len(value)} ({parts}): return the first, if it holds the logits'
    if shape is None:
        return f'{type(value).__name__}: return the array of the logits'
    came = f'{_kind(value)} of shape {tuple(shape)}'
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return (
            f'{came}, one number for each image: for two classes with score z of the second return '
            'jnp.stack([-z / 2, z / 2], axis=-1)' + (' with z = z[:, 0]' if len(shape) == 2 else '')
        )
    if len(shape) > 2 and 1 in shape[2:]:
        return f'{came}: drop the axes of size 1, outputs.reshape(len(outputs), -1)'
    return f'{came}: return one row of K numbers for each image'


def misclassified(logits: Array, labels: Array) -> Array:
    """Whether another class than the label has the highest logit, [B] bool.

    Logits [B, K] that are NaN or infinite count as misclassified: they are no decision for the label, and who
    looks at what an attack found meets them.
    """
    return (jnp.argmax(logits, axis=1) != labels) | ~jnp.isfinite(logits).all(axis=1)


def reached(logits: Array, targets: Array) -> Array:
    """Whether the target class has the highest logit, [B] bool; logits that are NaN or infinite count too.

    Those are to be met by who looks at what an attack found, as with `misclassified`.
    """
    return (jnp.argmax(logits, axis=1) == targets) | ~jnp.isfinite(logits).all(axis=1)


def logits(outputs: Outputs) -> Array:
    """The score that decides the predicted class: g = W^T z + b, [B, K]."""
    return outputs.logits


def cosine(outputs: Outputs) -> Array:
    """cos(theta_k), of the angle between the features and the weights of class k, [B, K] in [-1, 1].

    The weights of class k are column k of the kernel [F, K] of the last layer. Blind to the scale of the
    logits, of the features and of each weight vector, and to the bias; gradients flow through both norms.

    A norm counts as 1e-12 if it is smaller. So a zero vector has cosine 0, and no gradient is NaN. The
    gradient at zero features is 1e12 W_k / |W_k| (zero where W_k is zero too): finite, but not of moderate
    size. A step along its sign or its direction is like any other; in a sum with other gradients it drowns
    them. Where ReLU made the features zero, the layers before it receive no gradient.

    Source: eq. 17 of the paper.

    Raises:
        InputError: The outputs have no features or no kernel.
    """
    if outputs.features is None or outputs.kernel is None:
        raise InputError(
            'the cosine score needs the features and the kernel of the last linear layer: let the classifier '
            'return si_jax.Outputs(logits, features, kernel), or choose an attack on logits'
        )
    features = outputs.features * inverse_norm(outputs.features, axis=1)
    kernel = outputs.kernel * inverse_norm(outputs.kernel, axis=0)
    return features @ kernel


def inverse_norm(x: Array, axis: int) -> Array:
    """1 / max(|x|, 1e-12) along an axis, which is kept; its gradient at a zero vector is zero."""
    # rsqrt of the floored square: the gradient of sqrt at 0 would be NaN for features that ReLU set to zero.
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))


SI_SCALE = 15.0  # s of eq. 24, fixed for every model under evaluation (sec. 5.2 of the paper)


def scaled_cosine(scale: float) -> Score:
    """The score s * cos(theta), [B, K] (eq. 24 of the paper; s = 15 there)."""
    return lambda outputs: scale * cosine(outputs)


def scaled_logits(scale: float | Array) -> Score:
    """The score s * g, [B, K]: with hypersphere embedding, whose logits are cosines, s * cos(theta)."""
    return lambda outputs: scale * outputs.logits


def scaled_by_gap(outputs: Outputs) -> Array:
    """3 g / (g_(1) - g_(3)), [B, K], with a denominator that no gradient passes: logits of a fixed scale.

    Blind to the scale of the logits, image by image, and unlike the cosine it decides as they do. The third
    logit keeps the denominator away from zero at the decision boundary, where g_(1) = g_(2). With two classes
    it is g_(1) - g_(2). Where the denominator is 0 it counts as 1: equal logits have no scale.
    """
    return _over_gap(outputs.logits, 3.0, min(3, outputs.logits.shape[1]))


def over_top_gap(outputs: Outputs) -> Array:
    """g / (g_(1) - g_(2)), [B, K], with a denominator that no gradient passes (see `scaled_by_gap`).

    Source: the term of the last layer of LAFEAT (Yu et al., CVPR 2021; repository lafeat/lafeat, attack.py);
    MIFPE (Yu and Xu, CVPR 2023) with its factor T = 1.
    """
    return _over_gap(outputs.logits, 1.0, 2)


def _over_gap(logits: Array, factor: float, rank: int) -> Array:
    top = jax.lax.top_k(jax.lax.stop_gradient(logits), rank)[0]
    gap = top[:, :1] - top[:, -1:]
    return factor * (logits / jnp.where(gap > 0, gap, 1.0))
