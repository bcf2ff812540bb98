"""What the attacks differentiate, where it is not simply the classifier.

Two changes, apart or together: the gradient of another classifier in place of its own (BPDA), and logits
brought to one scale. Neither changes what counts as broken: the classifier decides that, from its own logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.state import remember
from si_jax.evaluation.tolerances import AGREEMENT, gaps
from si_jax.outputs import Outputs

Array = jax.Array
Function = Callable[[Array, Array], Outputs]  # of images and keys
# The gap between the two highest logits that calibration gives the median image.
GAP = 2.0


class Surrogate(NamedTuple):
    """A classifier as attacks see it: (shared, images [B, H, W, C], keys [B]) -> `Outputs`.

    `shared` are weights and whatever else it needs, replicated over the devices.
    """

    apply: Callable[[Any, Array, Array], Outputs]
    shared: Any


@jax.custom_vjp
def _straight_through(value: Array, stand_in: Array) -> Array:
    return value


_straight_through.defvjp(lambda value, stand_in: (value, None), lambda _, cotangent: (None, cotangent))


def backward_of(classifier: Function, other: Function) -> Function:
    """The classifier with the derivative of another: BPDA.

    Losses, decisions and everything computed from the logits are the classifier's; their gradient goes back
    to the images through `other`, of the same shapes. The classifier need not be differentiable.

    Source: backward pass differentiable approximation, Athalye, Carlini and Wagner (2018).
    """

    def outputs(images: Array, keys: Array) -> Outputs:
        # No derivative of the classifier is ever asked for: it may have none.
        value, stand_in = classifier(jax.lax.stop_gradient(images), keys), other(images, keys)
        features = value.features
        if features is not None and stand_in.features is not None:
            features = _straight_through(features, stand_in.features)
        return Outputs(_straight_through(value.logits, stand_in.logits), features, value.kernel)

    return outputs


def check_stand_in(shape: Outputs, expected: Outputs, needs_features: bool) -> None:
    """Raises InputError unless outputs of `gradient_of` have the classifier's `expected` shapes."""

    def shapes(outputs: Outputs) -> str:
        features = '' if not needs_features else f', features {getattr(outputs.features, "shape", None)}'
        return f'logits {outputs.logits.shape}{features}'

    if shapes(shape) != shapes(expected):
        raise InputError(
            f'gradient_of returns {shapes(shape)}, the classifier {shapes(expected)}: they must be the same, '
            "as one stands in for the other's gradient"
        )


def calibrate(logits: np.ndarray) -> dict[str, float]:
    """The one factor that brings the logits to a scale of their own: 2 / (median gap of the two highest).

    A factor on the logits cancels in it, so attacks on logits times this number do not see their scale; since
    it is one number for all images and iterates, losses can still be compared. It is kept with what is
    finished, so that an evaluation that goes on uses the same.

    Returns:
        `scale` and `median_gap`, for the logits [N, K] of all clean images.

    Raises:
        InputError: At least half of the images have no gap, or the state was calibrated for other logits.
    """
    gap = float(np.median(gaps(logits.astype(np.float64))))
    if gap <= 0:
        raise InputError(
            f'the median gap between the two highest logits of the clean images is {gap:g}, so they have no '
            "scale to calibrate to: use 'pgd-gap' and 'apgd-t', which scale each image by itself"
        )
    kept = remember('calibration', lambda: {'scale': np.float64(GAP / gap), 'median_gap': np.float64(gap)})
    before = float(kept['scale'])
    if abs(before * gap / GAP - 1) > AGREEMENT:
        raise InputError(
            f'the state was calibrated with the factor {before:.6g} on the logits, the clean images now give '
            f'{GAP / gap:.6g}: go on with the model it was made with, or remove the state'
        )
    return {'scale': before, 'median_gap': float(kept['median_gap'])}
