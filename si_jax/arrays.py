"""Trees of arrays by the paths of their leaves, and where two of them differ in shape or dtype."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Path and leaf, with one spelling for fields, keys and positions: `opt_state/0/trace/conv/kernel`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first path at which the shapes or dtypes of two sets of arrays differ, in words; '' if none.

    Args:
        stored: By path, arrays or `jax.ShapeDtypeStruct`, which the words call "there".
        wanted: Likewise, which they call "here".
    """

    def describe(tree: Mapping[str, Any], path: str) -> str:
        return f'{tuple(tree[path].shape)} {np.dtype(tree[path].dtype)}' if path in tree else 'absent'

    paths = [*wanted, *(path for path in stored if path not in wanted)]
    differing = [path for path in paths if describe(stored, path) != describe(wanted, path)]
    if not differing:
        return ''
    return (
        f'{differing[0]} is {describe(stored, differing[0])} there and {describe(wanted, differing[0])} here '
        f'({len(differing)} of {len(paths)} arrays differ)'
    )
