"""Devices: the one place that knows how many there are and how a program is spread over them.

A training step is written for one shard of the batch and averages over the axis `AXIS` itself; it is compiled
for all devices of all processes. State and resident data are replicated once, before the first call: handed
over on the default device they would be copied at every call, and the step would compile twice. Attacks on
single images, which need nothing of each other, run on the devices of this process alone.
"""

import contextlib
import contextvars
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from si_jax.errors import InputError
from si_jax.runtime import processes
from si_jax.runtime.programs import Once

AXIS = 'devices'
Tree = TypeVar('Tree')
GROUP = Path('/sys/fs/cgroup')  # where Linux says what a container may use
Task = TypeVar('Task')
Done = TypeVar('Done')


def everywhere() -> list[jax.Device]:
    """All devices, process by process: each has a block of the rows of a batch."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """The one-dimensional mesh over the devices, all of all processes by default."""
    return Mesh(np.array(devices or everywhere()), (AXIS,))


def replicate(tree: Tree, devices: list[jax.Device] | None = None) -> Tree:
    """A copy of the tree on every device, by default of all processes, which must give the same values.

    Copies first: device_put may alias its source, which a later donation would delete.
    """
    target = NamedSharding(mesh(devices), PartitionSpec())

    def copy(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            if target.is_fully_addressable:
                return jax.device_put(leaf, target)
            data = copy(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.array(leaf)
        if target.is_fully_addressable:
            return jax.device_put(host, target)
        return jax.make_array_from_callback(host.shape, target, lambda index: host[index])

    return jax.tree.map(copy, tree)


def local(tree: Tree) -> Tree:
    """Replicated leaves as arrays on the devices of this process alone, without a copy."""
    target = NamedSharding(mesh(jax.local_devices()), PartitionSpec())

    def part(leaf: Any) -> jax.Array:
        if leaf.is_fully_addressable:
            return leaf
        copies = {shard.device: shard.data for shard in leaf.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            leaf.shape, target, [copies[device] for device in jax.local_devices()]
        )

    return jax.tree.map(part, tree)


def shard_rows(tree: Tree, devices: list[jax.Device] | None = None) -> Tree:
    """Leaves [B, ...] as [D, B / D, ...], in row order over the devices, by default of all processes.

    Over several processes each puts its own rows on its devices; the leaves are then arrays of all of them.

    Raises:
        InputError: B is not divisible by the number of devices.
    """
    devices = devices or everywhere()
    count, rank = len(devices), jax.process_index()
    mine = [number for number, device in enumerate(devices) if device.process_index == rank]
    layout = None if len(mine) == count else NamedSharding(mesh(devices), PartitionSpec(AXIS))

    def split(leaf: Any) -> Any:
        check_divisible(leaf.shape[0], count)
        rows = leaf.reshape((count, leaf.shape[0] // count, *leaf.shape[1:]))
        if layout is None:
            return rows
        return jax.make_array_from_process_local_data(layout, np.asarray(rows[mine]), rows.shape)

    return jax.tree.map(split, tree)


def place_rows(tree: Tree, devices: list[jax.Device] | None = None) -> Tree:
    """`shard_rows`, on the devices already: a host array would be handed over at every call."""
    return jax.device_put(shard_rows(tree, devices), NamedSharding(mesh(devices), PartitionSpec(AXIS)))


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that the devices of this process have."""
    ranks = [device.process_index for device in everywhere()]
    each, mine = batch_size // len(ranks), jax.process_index()
    first = ranks.index(mine)
    return slice(first * each, (first + ranks.count(mine)) * each)


def from_every_process(mine: np.ndarray) -> jax.Array:
    """What each process has, [D, ...] over the devices of all: each device has a copy of its process's."""
    layout = NamedSharding(mesh(), PartitionSpec(AXIS))
    copies = np.broadcast_to(mine, (jax.local_device_count(), *mine.shape))
    return jax.make_array_from_process_local_data(layout, copies, (jax.device_count(), *mine.shape))


def join_rows(tree: Tree) -> Tree:
    """Leaves [D, B / D, ...] as [B, ...], on the host of every process: the inverse of `shard_rows`."""

    def join(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf).reshape(-1, *leaf.shape[2:])

    return jax.tree.map(join, tree)


def check_divisible(batch_size: int, devices: int | None = None) -> None:
    """Raises InputError unless the batch size is a multiple of the number of devices of all processes."""
    devices = devices or jax.device_count()
    if batch_size < 1 or batch_size % devices:
        low = max(1, batch_size // devices) * devices
        parts = f' of {processes.count()} processes' if processes.count() > 1 else ''
        raise InputError(
            f'batch_size={batch_size} is not divisible by the {devices} devices{parts}: '
            f'use {low} or {low + devices}'
        )


def compile_step(step: Callable[..., Any], devices: list[jax.Device] | None = None) -> Callable[..., Any]:
    """Compiles (state, carry, data, batch, key) -> (state, carry, metrics) for all devices of all processes.

    This is what `jax.pmap` has become: `jax.jit` of `jax.shard_map` over the devices. A test,
    `test_a_compiled_step_is_what_pmap_makes_of_it`, holds the two equal.

    State, data and key are replicated, carry and batch have a leading device axis; metrics must be equal on
    all devices when the step returns them. State and carry are donated.
    """
    whole, rows = PartitionSpec(), PartitionSpec(AXIS)
    over = mesh(devices)

    def shard(state: Any, carry: Any, data: Any, batch: Any, key: Any) -> Any:
        carry, batch = jax.tree.map(lambda leaf: leaf[0], (carry, batch))
        state, carry, metrics = step(state, carry, data, batch, key)
        return state, jax.tree.map(lambda leaf: leaf[None], carry), metrics

    takes, returns = (whole, rows, whole, rows, whole), (whole, rows, whole)
    body = jax.shard_map(shard, mesh=over, in_specs=takes, out_specs=returns, check_vma=False)
    layouts = tuple(NamedSharding(over, spec) for spec in takes)
    compiled = jax.jit(
        body,
        compiler_options=compiler_options(),
        in_shardings=layouts,
        out_shardings=tuple(NamedSharding(over, spec) for spec in returns),
        donate_argnums=(0, 1),
    )
    if jax.process_count() > 1:  # compiling may need all of them, and each may know other programs
        return compiled
    return Once(compiled, layouts, ('step', *compiler_options().items()))


def compile_rows(function: Callable[..., Any], devices: list[jax.Device] | None = None) -> Callable[..., Any]:
    """Compiles (shared, *rows) -> rows, a function of each row by itself, for the devices of this process.

    `shared` is replicated (weights), every other argument and result has a leading device axis, as made by
    `shard_rows`.
    """

    rows = len(inspect.signature(function).parameters) - 1
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    over = mesh(devices or jax.local_devices())

    def shard(shared: Any, *rows: Any) -> Any:
        found = function(shared, *jax.tree.map(lambda leaf: leaf[0], rows))
        return jax.tree.map(lambda leaf: leaf[None], found)

    takes = (whole, *[split] * rows)
    layouts = tuple(NamedSharding(over, spec) for spec in takes)
    jitted = jax.jit(
        jax.shard_map(shard, mesh=over, in_specs=takes, out_specs=split, check_vma=False),
        compiler_options=compiler_options(),
        in_shardings=layouts,
        out_shardings=layouts[-1],
    )
    compiled = Once(jitted, layouts, ('rows', *compiler_options().items()))
    if jax.process_count() == 1:
        return compiled
    # Where there are several, jit takes no host array for rows, though they are of this process alone.
    return lambda shared, *rows: compiled(shared, *jax.device_put(rows, layouts[1:]))


@functools.cache
def compiler_options() -> dict[str, str]:
    """The options of XLA for a program of this package: on the CPU, to leave convolutions to Eigen.

    The other library that XLA may take for them, YNNPACK, was slower in attacks on all networks that were
    measured (docs/performance.md); products and reductions stay with it. `XLA_FLAGS` goes before; a version
    of XLA without the option is let be.
    """
    option = 'xla_cpu_experimental_ynn_fusion_type'
    if jax.default_backend() != 'cpu' or option in os.environ.get('XLA_FLAGS', ''):
        return {}
    options = {option: 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return {}
    return options


def at_once(devices: list[jax.Device]) -> int:
    """How many programs for these devices run side by side: on the CPU one for each core of a device."""
    return max(cores() // len(devices), 1) if devices[0].platform == 'cpu' else 1


def side_by_side(
    function: Callable[[Task], Done],
    tasks: Sequence[Task],
    devices: list[jax.Device] | None = None,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Done]:
    """[function(task) for task in tasks], as many at a time as `at_once` says.

    A small program keeps one core busy, however many its device has. JAX runs what one thread hands over in
    order, but what several do side by side. `function` itself waits for what it returns, on the CPU alone
    (`ready`). `on_done` gets how many tasks are done.
    """
    devices = devices or jax.local_devices()
    count = min(at_once(devices), len(tasks))
    found: list[Done] = []
    if count < 2:
        for task in tasks:
            found.append(function(task))
            on_done(len(found))
        return found
    with ThreadPoolExecutor(count, initializer=_in_context()) as pool:
        # A thread knows nothing of the context that it is started in, which a copy of it brings along.
        begun = []
        for task in tasks:
            begun.append(pool.submit(contextvars.copy_context().run, function, task))
        try:
            for one in begun:
                found.append(one.result())
                on_done(len(found))
        finally:  # after an interrupt nobody waits for the tasks that were not begun
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _in_context() -> Callable[[], None]:
    """What makes a thread of its own compute as the calling one does: JAX's contexts are of each thread."""
    names: dict[str, Any] = {
        'jax_default_matmul_precision': jax.default_matmul_precision,
        'jax_enable_x64': jax.enable_x64,
        'jax_numpy_dtype_promotion': jax.numpy_dtype_promotion,
        'jax_threefry_partitionable': jax.threefry_partitionable,
        'jax_debug_nans': jax.debug_nans,
    }
    wanted = {name: jax.config.values[name] for name in names}

    def enter() -> None:
        for name, context in names.items():
            if jax.config.values[name] != wanted[name]:
                context(wanted[name]).__enter__()

    return enter


def ready(tree: Tree, devices: list[jax.Device]) -> Tree:
    """The tree, waited for on the CPU: elsewhere the device has a queue, which must not run empty."""
    return jax.block_until_ready(tree) if devices[0].platform == 'cpu' else tree


def memory() -> float:
    """Bytes that a device of this process has: on the CPU its share of the machine's."""
    device = jax.local_devices()[0]
    known = device.memory_stats() if device.platform != 'cpu' else None
    if known and 'bytes_limit' in known:
        return float(known['bytes_limit'])
    whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    limit = _of_container('memory.max', 'memory/memory.limit_in_bytes')
    return min([whole, *limit[:1]]) / jax.local_device_count()


def cores() -> int:
    """How many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    quota = _of_container('cpu.max')  # microseconds of so many
    return min(count, max(1, quota[0] // quota[1])) if len(quota) == 2 else count


def _of_container(*names: str) -> list[int]:
    """The numbers of a container's limit, by the first of these files that has some; [] without one."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            return [int(number) for number in (GROUP / name).read_text().split()]
    return []


def map_rows(
    function: Callable[..., Any],
    shared: Any,
    rows: tuple[Any, ...],
    chunk: int | tuple[int, ...],
    devices: list[jax.Device] | None = None,
    on_share: Callable[[float], None] = lambda share: None,
) -> Any:
    """Applies a function from `compile_rows` to all rows, `chunk` at a time; results are host arrays.

    The last chunk is filled up with copies of its first row, so that one compiled program serves all chunks.

    Args:
        function: (shared, *rows) -> rows.
        shared: Replicated.
        rows: Trees of arrays [N, ...].
        chunk: Rows at once on all devices, a multiple of their number. Of several such sizes,
            largest first, the last chunk takes the smallest that holds its rows.
        devices: Those that the function was compiled for.
        on_share: Gets the share of the chunks that are done.
    """
    devices = devices or jax.local_devices()
    sizes = (chunk,) if isinstance(chunk, int) else chunk
    count = jax.tree.leaves(rows)[0].shape[0]

    def part(first: int) -> Any:
        real = min(sizes[0], count - first)
        size = min(size for size in sizes if size >= real)
        indices = np.arange(first, first + size)
        indices[real:] = first
        done = function(shared, *shard_rows(jax.tree.map(lambda leaf: leaf[indices], rows), devices))
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(size, *leaf.shape[2:])[:real], done)

    firsts = range(0, count, sizes[0])
    parts = side_by_side(part, firsts, devices, lambda done: on_share(done / len(firsts)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
