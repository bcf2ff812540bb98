"""What the manifest of a checkpoint says beyond the digests of its files, and whether it can be believed.

Its own digest tells accidents, not intentions: whoever writes a manifest can give it one.
"""

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.storage import manifest

LARGEST = 2**36  # numbers in one array


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, None where there is none or it cannot be one."""
    content = manifest.read(folder)
    return content if content and _describes_checkpoint(content) else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing."""
    if found := manifest.damage(folder):
        return found
    return None if read(folder) else f'its {manifest.NAME} does not describe a checkpoint'


def _describes_checkpoint(content: dict[str, Any]) -> bool:
    """Whether all that is read from a manifest is there, and arrays are numbers of a size that can be."""
    try:
        metric, arrays = content['metric'], content['arrays']
        if type(content['step']) is not int or not isinstance(content['metadata'], dict):
            return False
        if metric is not None and not (type(metric) in (int, float) and math.isfinite(metric)):
            return False
        if datetime.datetime.fromisoformat(content['time']).tzinfo is None:
            return False
        for shape, name in arrays.values():
            dtype = np.dtype(name)
            if str(dtype) != name or dtype.hasobject or dtype.names or dtype.itemsize > 16:
                return False
            if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) > LARGEST:
                return False
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return True
