"""Functions of each image by itself, on all devices."""

from collections.abc import Callable
from typing import Any

import jax

from si_jax.evaluation.request import CHUNK, CHUNK_ACCELERATOR
from si_jax.runtime.devices import compile_rows, map_rows, replicate
from si_jax.runtime.progress import passing


def on_all_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles (shared, *rows) -> rows: the result takes and returns all N rows as host arrays.

    Args:
        function: Of one shard of the rows; see `si_jax.runtime.devices.compile_rows`.

    Returns:
        (shared, *rows) -> rows, which takes as many rows at once as evaluation does.
    """
    compiled, devices = compile_rows(function), jax.local_device_count()

    def all_rows(shared: Any, *rows: Any) -> Any:
        count = jax.tree.leaves(rows)[0].shape[0]
        chunk = devices * min(CHUNK.get(jax.default_backend(), CHUNK_ACCELERATOR), -(-count // devices))
        with passing(count, 'measuring') as told:
            return map_rows(compiled, replicate(shared), rows, chunk, on_share=told)

    return all_rows
