"""Random numbers in the shape of an image."""

import math
from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array


def key_of(seed: int) -> Array:
    """The key of a seed, of the generator whose draws depend on each key alone, whatever JAX's default is.

    With `rbg`, which is a usual setting on TPUs, the keys of a batch draw together.
    """
    return jax.random.key(seed, impl='threefry2x32')


def drawn(how: Callable[..., Array], key: Array, shape: tuple[int, ...], *arguments: Any) -> Array:
    """`how(key, shape, *arguments)` of `jax.random`: the same numbers, drawn in one dimension.

    On the CPU a program that draws them in several dimensions takes longer to compile, and to run. Not where
    their norm is computed too: how a sum over one dimension is rounded depends on the batch around it.
    """
    return how(key, (math.prod(shape),), *arguments).reshape(shape)
