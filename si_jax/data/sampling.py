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
    there, kinds = sorted(set(labels.tolist())), int(np.count_nonzero(shares))
    lacking = kinds - len(there)
    # That all of so many random images are of these classes, or of as many others.
    choices = math.lgamma(kinds + 1) - math.lgamma(lacking + 1) - math.lgamma(len(there) + 1)
    log_chance = choices + len(labels) * math.log(shares[there].sum())
    return (len(there), kinds) if lacking and log_chance < math.log(UNLIKELY) else None
