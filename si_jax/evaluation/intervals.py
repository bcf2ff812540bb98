"""How far an accuracy of some images may be off for others like them."""

import math

import numpy as np

Z = 1.959963984540054  # the quantile of the normal distribution at 0.975


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share count / total."""
    from scipy import stats  # takes a second, which a resumed evaluation need not wait for

    interval = stats.binomtest(count, total).proportion_ci(0.95, method='wilson')
    return float(interval.low), float(interval.high)


def interval(counted: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean of what images count [N]: bool flags, or shares in [0, 1].

    Of shares it is too wide rather than too narrow: no numbers of the same mean vary more than 0 and 1.
    """
    total, mean = len(counted), float(np.mean(counted))
    if counted.dtype == bool:
        return wilson(int(np.sum(counted)), total)
    centre = mean + Z**2 / (2 * total)
    half = Z * math.sqrt(mean * (1 - mean) / total + (Z / (2 * total)) ** 2)
    low, high = ((centre + side * half) / (1 + Z**2 / total) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)
