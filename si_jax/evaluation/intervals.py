"""How far an accuracy of some images may be off for others like them."""


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share count / total."""
    from scipy import stats  # takes a second, which a resumed evaluation need not wait for

    interval = stats.binomtest(count, total).proportion_ci(0.95, method='wilson')
    return float(interval.low), float(interval.high)
