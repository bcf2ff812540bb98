"""How several measurements of one thing are quoted."""

import statistics


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest: machines are shared, and one figure alone says little."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}
