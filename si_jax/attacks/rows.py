"""What searches do row by row: every image has its own state and its own key."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def where(condition: Array, chosen: Any, other: Any) -> Any:
    """`chosen` in the rows where `condition` [B] holds, else `other`; pytrees whose leaves are [B, ...]."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, chosen, other)


def split(keys: Array, number: int = 2) -> tuple[Array, ...]:
    """`number` independent key arrays [B] from one [B]."""
    subkeys = jax.vmap(lambda key: jax.random.split(key, number))(keys)
    return tuple(subkeys[:, i] for i in range(number))


def fold_in(keys: Array, number: Array | int) -> Array:
    """The keys [B] of step `number`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
