"""Trees of arrays by the paths of their leaves, and where two of them differ in shape or dtype."""

import hashlib
import json
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


def digest(*arrays: Any) -> str:
    """A hash of the values, shapes and types of arrays, also of what gives one in `parts`."""
    total = hashlib.sha256()
    for array in arrays:
        if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if not hasattr(array, 'parts'):
            array = np.ascontiguousarray(array)
        total.update(f'{array.dtype} {array.shape} '.encode())
        for part in array.parts() if hasattr(array, 'parts') else (array,):
            total.update(part.tobytes())
    return total.hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields that differ, with (old, new); `'absent'` where there is no such field."""
    flat_old, flat_new = dict(_fields(old)), dict(_fields(new))
    pairs = {
        name: (flat_old.get(name, 'absent'), flat_new.get(name, 'absent'))
        for name in [*flat_old, *(name for name in flat_new if name not in flat_old)]
    }
    # By their JSON, in which 1, 1.0 and true differ as they do in a config.
    return {name: pair for name, pair in pairs.items() if json.dumps(pair[0]) != json.dumps(pair[1])}


def _fields(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
