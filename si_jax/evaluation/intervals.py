"""How far an accuracy of some images may be off for others like them."""

import math

import numpy as np

Z = 1.959963984540054  # the quantile of the normal distribution at 0.975


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share count / total.

    It is written out: SciPy's takes a second to import, for which each evaluation would wait. Tests hold the
    two equal.
    """
    low, high = _score(count / total, total)
    # Where no image counts the lower bound is 0, and where all do the upper one is 1: not 1e-18 beside it.
    return low if count else 0.0, high if count < total else 1.0


def interval(counted: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean of what images count [N]: bool flags, or shares in [0, 1].

    Of shares it is too wide rather than too narrow: no numbers of the same mean vary more than 0 and 1.
    """
    if counted.dtype == bool:
        return wilson(int(np.sum(counted)), len(counted))
    low, high = _score(float(np.mean(counted)), len(counted))
    return max(low, 0.0), min(high, 1.0)


def _score(mean: float, total: int) -> tuple[float, float]:
    """The bounds of Wilson (1927), in the form of Newcombe (1998); they may leave [0, 1] by rounding."""
    scale = 2 * (total + Z**2)
    centre = (2 * total * mean + Z**2) / scale
    half = Z / scale * math.sqrt(4 * total * mean * (1 - mean) + Z**2)
    return centre - half, centre + half
