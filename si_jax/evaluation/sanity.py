"""What the clean images tell of a classifier: outputs that are no logits, one answer for all, mere chance.

These are warnings, in the same words wherever a network is looked at: in a result, in an audit, in training.
"""

from typing import Any

import numpy as np

from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.pixels import Images, alike
from si_jax.evaluation.tolerances import FLOAT32

# How many images must be of other classes before one answer for all of them is a finding.
OTHERS = 5
VALUES = 20  # outputs below which nothing is told from where they lie
NEAR = 0.01  # of the range of all outputs: what is that near to an end of it lies at a bound
CROWD, LEAST = 0.04, 8  # the share and the number of outputs at either end that honest logits do not reach
CHANCE = 'the clean accuracy is no better than chance'  # how that sentence begins


def fixed(logits: np.ndarray) -> np.ndarray:
    """Which classes [K] have one logit for all images [N, K], as a masked one has; none, if all images do."""
    same = np.ptp(np.asarray(logits, np.float64), axis=0) == 0
    return same & ~same.all()


def outputs(logits: np.ndarray, coarse: float = FLOAT32) -> list[str]:
    """Whether outputs for the clean images [N, K], of a program of this resolution, look like logits.

    Logits are bounded by nothing. Probabilities lie in [0, 1]. Their multiples have one sum over the classes,
    and no larger range. A sum that is always 0, as of [-z/2, z/2], is one of logits. What went through a
    sigmoid, tanh or softmax of another range crowds at its bounds: both of them, or the upper one with
    several classes of an image. An output that is the same for all images, as of a masked class, is none.
    """
    rows = np.unique(np.asarray(logits, np.float64), axis=0)
    rows = rows[:, ~fixed(rows)]
    lowest, highest = float(rows.min()), float(rows.max())
    sums = rows.sum(axis=1)
    total = float(np.median(sums))
    one_sum = np.ptp(np.append(sums, total)) <= (1e-4 + 2 * coarse) * abs(total)
    unit = lowest >= -1e-6 and highest <= 1 + 1e-6
    told = ''
    if unit and one_sum and abs(total - 1) <= 1e-4 + 2 * coarse:
        told = 'look like probabilities (all in [0, 1], and each row sums to 1)'
    elif unit and rows.size >= VALUES and highest - lowest >= 0.5:
        told = f'look like a sigmoid of the logits (all {rows.size} are in [0, 1])'
    elif len(rows) > 1 and one_sum and 0.05 * abs(total) <= highest - lowest <= 1.1 * abs(total):
        told = f'look like a multiple of probabilities (each row sums to {total:.4g})'
    elif crowded := _crowded(rows):
        told = f'look bounded, as by a sigmoid, tanh or softmax ({crowded})'
    if not told:
        return []
    return [
        f'the outputs {told}, and gradients of the losses vanish through them: return the logits before the '
        'softmax or sigmoid'
    ]


def _crowded(rows: np.ndarray) -> str:
    """How many outputs [M, K] lie at bounds that logits do not have; '' if no more than logits may."""
    lowest, highest = float(rows.min()), float(rows.max())
    width = NEAR * (highest - lowest)
    low, high = rows <= lowest + width, rows >= highest - width
    least = max(LEAST, CROWD * rows.size)
    classes_low, classes_high = low.any(axis=0).sum(), high.any(axis=0).sum()
    both = min(low.sum(), high.sum()) >= least and min(classes_low, classes_high) > 1
    # The logarithm of probabilities is at its upper bound for one class of an image.
    above = high.sum() >= max(LEAST, 1.5 * len(rows)) and classes_high > 1
    if rows.size < VALUES or not width or not (both or above):
        return ''
    return (
        f'{low.sum()} of {rows.size} within 1 % of the range from the lowest, {lowest:.4g}, and {high.sum()} '
        f'from the highest, {highest:.4g}'
    )


def collapsed(predicted: Any, labels: Any) -> list[str]:
    """Whether a classifier gives all images one class, from predictions and labels [N]."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    count, right = len(labels), int(np.sum(predicted == labels))
    if count - right < OTHERS or (predicted != predicted[0]).any():
        return []
    return [
        f"every image gets class {predicted[0]} ({count} of {count}); the accuracy is that class's share "
        f'({right} of {count}, {100 * right / count:.2f} %) and says nothing of robustness: the network has '
        'collapsed, or its inputs are on another scale than those it was trained on'
    ]


def chance(right: int, count: int, classes: int) -> list[str]:
    """Whether the clean accuracy, `right` of `count`, is near that of guessing one of the classes."""
    share = 1 / classes
    if right / count >= share + min(share, 0.1):  # as most are: their interval is higher yet
        return []
    low, high = wilson(right, count)
    if not (high < share + min(share, 0.1) or (right <= share * count and high <= 0.5)):
        return []
    return [
        f'{CHANCE}: {right} of {count} ({100 * low:.1f} to {100 * high:.1f} % of others like them), where '
        f'guessing gives {100 * share:.4g} %. Are the inputs on another scale? The classifier gets pixels in '
        '[0, 1] and must itself normalise them as in its training. If it does, compare the order of the '
        'classes and of the axes'
    ]


def decisions(logits: np.ndarray, labels: np.ndarray, images: Images) -> list[str]:
    """What the decisions tell, from logits [N, K], labels [N] and images [N, H, W, C]."""
    if alike(images):
        return []  # copies of one image say nothing of others
    predicted = np.argmax(logits, axis=1)
    found = collapsed(predicted, labels)
    if (logits == logits[:1]).all():
        found.append('the classifier returns the same logits for every image: no attack can change its mind')
    return found or chance(int(np.sum(predicted == labels)), len(labels), logits.shape[1])
