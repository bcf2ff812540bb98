"""How far two computations of the same logits may be apart, and whether they are.

A tolerance belongs to one logit of one image. It comes from how the logits of the classes that compete move
from image to image, so that neither a class with a huge constant (a masked one, at -1e9) nor one image with
huge logits widens that of the others.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from si_jax.errors import InputError

# Two forward passes of the same images agree to this fraction of the spread of the logits. Another batch size
# or algorithm moves float32 logits by about 1e-6 of it; batch statistics or dropout by 1e-2 and more.
AGREEMENT = 1e-3
# Float32 logits carry errors of about 1e-6 of their own size, whatever their spread.
ROUNDING = 1e-5
FLOAT32 = float(jnp.finfo(jnp.float32).eps)
# In bfloat16 and float16, in units of the type's own resolution. Roundings add up over the layers: compiled
# and not, a residual network of 17 layers in bfloat16 differs by 5 of them.
HALF_AGREEMENT = 16
HALF_ROUNDING = 2
NEGLIGIBLE = 1e-11  # of the gap between the two highest logits
COARSEST = 2.0**-7  # no program is taken to be coarser than one of bfloat16


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations of a traced program, and of the programs inside them."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                program: Any = getattr(inner, 'jaxpr', inner)
                if hasattr(program, 'eqns'):
                    yield from equations(program)


def resolution(jaxpr: core.Jaxpr) -> float:
    """The distance from 1 to the next number in the coarsest type that a traced program computes in."""
    found = FLOAT32
    for equation in equations(jaxpr):
        for atom in equation.outvars:
            dtype = getattr(atom.aval, 'dtype', None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                found = max(found, float(jnp.finfo(dtype).eps))
        if equation.primitive.name == 'reduce_precision':
            found = max(found, 2.0 ** -equation.params['mantissa_bits'])
    return min(found, COARSEST)


def tolerance(logits: np.ndarray, coarse: float = FLOAT32, others: np.ndarray | None = None) -> np.ndarray:
    """How far the logits [B, K] may be off, [B, K], if the program has the resolution `coarse`.

    The scale of an image is how far its second most remarkable class is from what it is on the median image,
    seen from the median class; the median image's scale counts where an image has less (a near-tie). It is
    measured on `others` [M, K], by default these images.
    """
    agreement, rounding = _fractions(coarse)
    others = logits if others is None else others
    usual = np.median(_centred(others), axis=0)

    def scale_of(logits: np.ndarray) -> np.ndarray:
        deviations = np.abs(_centred(logits) - usual)
        deviations[deviations <= rounding * np.abs(logits)] = 0  # of a huge constant
        return np.partition(deviations, -2, axis=1)[:, -2]

    scale = np.maximum(scale_of(logits), np.median(scale_of(others)))
    top = np.sort(logits, axis=1)[:, ::-1]
    # What a softmax has left of a class that lost, say.
    negligible = NEGLIGIBLE * (top[:, 0] - top[:, 1])
    if not scale.any():  # all images alike: the gap to the class that competes
        scale = top[:, 0] - top[:, min(2, logits.shape[1] - 1)]
    own = agreement * scale + rounding * _size(logits) + negligible
    return own[:, None] + rounding * np.abs(logits)


def _fractions(coarse: float) -> tuple[float, float]:
    """Of the spread and of the size, in which logits of this resolution agree."""
    if coarse <= FLOAT32:
        return AGREEMENT, ROUNDING
    return max(AGREEMENT, HALF_AGREEMENT * coarse), HALF_ROUNDING * coarse


def _centred(logits: np.ndarray) -> np.ndarray:
    return logits - np.median(logits, axis=1, keepdims=True)


def _size(logits: np.ndarray) -> np.ndarray:
    """How large the logits of an image are, seen from a middle class, without its largest ones, [B]."""
    classes = logits.shape[1]
    if classes == 2:
        return np.ptp(logits, axis=1)
    middle = np.partition(logits, classes // 2, axis=1)[:, classes // 2, None]
    return np.partition(np.abs(logits - middle), (classes - 1) // 2, axis=1)[:, (classes - 1) // 2]


def disagreement(logits: Any, others: Any, coarse: float = FLOAT32, scale_of: Any = None) -> str:
    """How far two passes over the same images [B, K] are apart, in words; '' if they agree to rounding.

    The program has the resolution `coarse`, and the scale of its logits is that of `scale_of` [M, K], by
    default of these.
    """
    logits, others, scale_of = (
        # What is not finite as 0: that there is none such is checked apart from this.
        np.nan_to_num(np.asarray(array, np.float64), posinf=0, neginf=0)
        for array in (logits, others, logits if scale_of is None else scale_of)
    )
    apart, allowed = np.abs(logits - others), tolerance(logits, coarse, scale_of)
    if (apart <= allowed).all():
        return ''
    row, column = np.unravel_index(np.argmax(apart / np.maximum(allowed, 1e-300)), apart.shape)
    return f'{apart[row, column]:.3g} in class {column}, where {allowed[row, column]:.2g} may be rounding'


def check_explained(logits: Any, products: Any, coarse: float = FLOAT32) -> None:
    """Whether features and kernel explain the logits up to one positive scale and one bias a class.

    SI attacks maximise the angle between features and kernel. If these are not what the logits are made of,
    the attack is blind, and the classifier would pass as robust.

    Raises:
        InputError: logits = alpha products + b with alpha > 0, where logits and products (features @ kernel)
            are [N, K], does not hold to 1e-3 of the logits' spread over images.
    """
    logits, products = np.asarray(logits, np.float64), np.asarray(products, np.float64)
    allowed = tolerance(logits, coarse)
    g, p = logits - np.median(logits, axis=0), products - np.median(products, axis=0)
    # What is known to fewer digits weighs less: a masked class, or an image with huge logits.
    weight = 1 / np.maximum(allowed, np.finfo(float).tiny ** 0.25) ** 2
    scale = float(np.sum(weight * g * p) / max(np.sum(weight * p * p), np.finfo(float).tiny))
    residual = np.abs(g - scale * p)
    if not ((residual <= allowed).all() and (scale > 0 or (np.abs(g) <= allowed).all())):
        excess = np.where(np.isfinite(residual), residual / np.maximum(allowed, 1e-300), np.inf)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise InputError(
            f'features and kernel do not explain the logits: the best fit, logits = {scale:.4g} features @ '
            f'kernel + b, leaves a residual of {residual[worst]:.3g} in class {worst[1]}, where '
            f'{allowed[worst]:.2g} may be rounding (and the scale must be positive). SI attacks would be '
            'blind: return the input of the last linear layer as features and its weights [F, K] as kernel'
        )


def gaps(scores: np.ndarray) -> np.ndarray:
    """The two largest of each row [N, K], one less the other [N]; 0 where there is only one class."""
    if scores.shape[1] < 2:
        return np.zeros(len(scores))
    top = np.partition(scores, -2, axis=1)
    return top[:, -1] - top[:, -2]
