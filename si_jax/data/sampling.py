"""Whether some images of a data set can stand for the others."""

import math

import numpy as np

UNLIKELY = 1e-3  # that random images have as few classes: these are sorted by class then


def of_few_classes(labels: np.ndarray, whole: np.ndarray) -> tuple[int, int] | None:
    """How many classes some images have and how many all, where random ones would have more; else None.

    Args:
        labels: [M], of the images that were chosen.
        whole: [N], of all images.
    """
    shares = np.bincount(whole) / len(whole)
    there, kinds = set(labels.tolist()), np.flatnonzero(shares)
    lacking = [label for label in kinds.tolist() if label not in there]
    # That these, or as many others, have none of so many random images.
    choices = math.lgamma(len(kinds) + 1) - math.lgamma(len(lacking) + 1) - math.lgamma(len(there) + 1)
    log_chance = choices + len(labels) * sum(math.log1p(-shares[label]) for label in lacking)
    return (len(there), len(kinds)) if lacking and log_chance < math.log(UNLIKELY) else None
