"""Rows over devices, copies of the state, and the compiled step, on eight simulated devices."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax.errors import InputError
from si_jax.runtime import devices as parallel

DEVICES = 8


@pytest.fixture(autouse=True)
def eight_devices():
    assert jax.local_device_count() == DEVICES


@pytest.mark.parametrize('devices', [None, 2])
def test_shard_rows_keeps_the_order_of_the_rows(devices):
    some = jax.local_devices()[:devices] if devices else None
    count = devices or DEVICES
    images, labels = np.arange(16 * 3).reshape(16, 3), np.arange(16)
    sharded = parallel.shard_rows({'images': images, 'labels': labels}, some)
    assert sharded['images'].shape == (count, 16 // count, 3)
    np.testing.assert_array_equal(sharded['images'].reshape(16, 3), images)
    np.testing.assert_array_equal(sharded['labels'][1], np.arange(16 // count, 2 * 16 // count))


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        (100, 'batch_size=100 is not divisible by the 8 devices: use 96 or 104'),
        (7, 'batch_size=7 is not divisible by the 8 devices: use 8 or 16'),
        (0, 'batch_size=0 is not divisible'),
    ],
)
def test_batches_that_do_not_divide_are_refused(size, message):
    with pytest.raises(InputError, match=message):
        parallel.check_divisible(size)
    with pytest.raises(InputError, match=message):
        parallel.shard_rows(np.zeros((size, 2)))


@pytest.mark.parametrize('size', [8, 128])
def test_batches_that_divide_are_accepted(size):
    parallel.check_divisible(size)
    parallel.check_divisible(size, 4)


def test_replicated_state_is_a_copy_that_can_be_donated():
    traces = []

    def double(state, carry, data, batch, key):
        traces.append(batch.shape)
        total = jax.lax.psum(jnp.sum(batch), parallel.AXIS)
        return jax.tree.map(lambda x: 2 * x + data, state), carry + jnp.sum(batch), {'total': total}

    source = {'w': jnp.arange(4.0), 'n': np.float64(3.0)}
    state = parallel.replicate(source)
    assert all(len(leaf.devices()) == DEVICES and leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    step = parallel.compile_step(double)
    data, key = parallel.replicate((np.float64(1.0), jax.random.key(0)))
    rows = jax.sharding.NamedSharding(parallel.mesh(), jax.sharding.PartitionSpec(parallel.AXIS))
    carry = jax.device_put(parallel.shard_rows(np.zeros(DEVICES)), rows)  # a host array would compile twice
    batch = parallel.shard_rows(np.arange(16.0))
    new, carry, metrics = step(state, carry, data, batch, key)
    # The donated copy is gone, what it was made from is not.
    assert state['w'].is_deleted()
    np.testing.assert_array_equal(source['w'], np.arange(4.0))
    np.testing.assert_array_equal(new['w'], 2 * np.arange(4.0) + 1)
    assert float(metrics['total']) == 120.0  # 0 + ... + 15
    np.testing.assert_array_equal(carry.ravel(), np.arange(16.0).reshape(8, 2).sum(axis=1))

    # All copies are equal, and the second call takes what the first one returned.
    for copy in new['w'].addressable_shards:
        np.testing.assert_array_equal(copy.data, new['w'])
    new, carry, _ = step(new, carry, data, batch, key)
    np.testing.assert_array_equal(new['w'], 4 * np.arange(4.0) + 3)
    np.testing.assert_array_equal(carry.ravel(), 2 * np.arange(16.0).reshape(8, 2).sum(axis=1))
    assert traces == [(2,)]


@pytest.mark.parametrize('count', [2, DEVICES])
def test_a_compiled_step_is_what_pmap_makes_of_it(count):
    """An update with a mean over the devices, a carry in shards and keys, three times."""
    some = jax.local_devices()[:count]

    def step(state, carry, data, batch, key):
        index = jax.lax.axis_index(parallel.AXIS)
        noise = jax.random.normal(jax.random.fold_in(key, index), batch.shape)
        gradient = jax.lax.pmean(jnp.mean(jnp.tanh(batch @ state) - data), parallel.AXIS)
        return state - 0.1 * gradient, carry + noise, {'gradient': gradient}

    rng = np.random.default_rng(0)
    state, data = rng.normal(size=3).astype(np.float32), np.float32(0.3)
    batch = parallel.shard_rows(rng.normal(size=(16, 3)).astype(np.float32), some)
    key = jax.random.key(0)
    mapped = jax.pmap(
        step, parallel.AXIS, in_axes=(None, 0, None, 0, None), out_axes=(None, 0, None), devices=some
    )
    compiled = parallel.compile_step(step, some)
    expected = state, np.zeros_like(batch)
    got = parallel.replicate(state, some), parallel.place_rows(np.zeros((16, 3), np.float32), some)
    for _ in range(3):
        *expected, metrics = mapped(*expected, data, batch, key)
        *got, ours = compiled(*got, *parallel.replicate((data,), some), batch, parallel.replicate(key, some))
        np.testing.assert_allclose(ours['gradient'], metrics['gradient'], rtol=1e-6)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_replicate_keeps_typed_keys():
    key = jax.random.key(7)
    copy = parallel.replicate(key)
    np.testing.assert_array_equal(jax.random.key_data(copy), jax.random.key_data(key))
    assert len(copy.devices()) == DEVICES


@pytest.mark.parametrize('count', [1, 16, 21, 40])
def test_map_rows_equals_the_function_on_all_rows_at_once(count):
    traces = []

    def function(shared, images, labels):
        traces.append(images.shape)
        return {'value': shared['w'] * images.sum(axis=1) + labels, 'images': images}

    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(count, 3)), rng.integers(0, 10, count)
    shared = parallel.replicate({'w': np.float64(2.0)})
    result = parallel.map_rows(parallel.compile_rows(function), shared, (images, labels), 16)
    np.testing.assert_allclose(result['value'], 2 * images.sum(axis=1) + labels, rtol=1e-14)
    np.testing.assert_array_equal(result['images'], images)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(result))
    assert traces == [(2, 3)]  # one program for all chunks, the partial one too


def test_map_rows_on_some_of_the_devices():
    some = jax.local_devices()[:2]
    function = parallel.compile_rows(lambda shared, rows: shared * rows, some)
    result = parallel.map_rows(
        function, parallel.replicate(np.float64(3.0), some), (np.arange(5.0),), 4, some
    )
    np.testing.assert_array_equal(result, 3 * np.arange(5.0))


def test_map_rows_carries_keys():
    keys = jax.random.split(jax.random.key(0), 10)
    function = parallel.compile_rows(lambda shared, keys: shared + jax.vmap(jax.random.bits)(keys))
    result = parallel.map_rows(function, parallel.replicate(np.uint32(0)), (keys,), 8)
    np.testing.assert_array_equal(result, jax.vmap(jax.random.bits)(keys))


def test_map_rows_refuses_a_chunk_that_does_not_divide():
    function = parallel.compile_rows(lambda shared, rows: rows)
    with pytest.raises(InputError, match='batch_size=12 is not divisible by the 8 devices'):
        parallel.map_rows(function, parallel.replicate(np.float64(0.0)), (np.zeros(12),), 12)


def test_tasks_go_side_by_side_on_the_cores_and_come_back_in_order(monkeypatch):
    monkeypatch.setattr(parallel, 'cores', lambda: 3)
    together = threading.Barrier(3)

    def task(number):
        together.wait(timeout=60)  # breaks unless three are under way
        return number, jax.config.jax_default_matmul_precision

    with jax.default_matmul_precision('highest'):
        done = parallel.side_by_side(task, range(6), jax.local_devices()[:1])
    assert done == [(number, 'highest') for number in range(6)]


def test_one_device_runs_programs_of_several_threads_side_by_side(monkeypatch):
    monkeypatch.setattr(parallel, 'cores', lambda: 2)
    together, one, compiling = threading.Barrier(2), jax.local_devices()[:1], [True]

    def meet(rows):
        if not compiling:
            together.wait(timeout=60)  # breaks unless both programs are running
        return rows

    def function(shared, rows):
        return shared + jax.pure_callback(meet, jax.ShapeDtypeStruct(rows.shape, rows.dtype), rows)

    rows, compiled = np.arange(4.0), parallel.compile_rows(function, one)
    parallel.map_rows(compiled, np.float64(1), (rows[:2],), 2, one)
    compiling.clear()
    result = parallel.map_rows(compiled, np.float64(1), (rows,), 2, one)
    np.testing.assert_array_equal(result, rows + 1)


def test_a_task_that_fails_fails_the_call(monkeypatch):
    monkeypatch.setattr(parallel, 'cores', lambda: 2)
    with pytest.raises(ZeroDivisionError):
        parallel.side_by_side(lambda number: 1 / number, [2, 1, 0], jax.local_devices()[:1])


@pytest.mark.parametrize(('cores', 'devices'), [(1, 1), (8, 8), (15, 8)])
def test_a_device_with_one_core_does_one_task_at_a_time(monkeypatch, cores, devices):
    monkeypatch.setattr(parallel, 'cores', lambda: cores)
    threads = parallel.side_by_side(lambda _: threading.get_ident(), range(3), jax.local_devices()[:devices])
    assert threads == [threading.get_ident()] * 3


def test_convolutions_are_left_to_eigen_on_the_cpu_alone(monkeypatch):
    monkeypatch.delenv('XLA_FLAGS')
    option = 'xla_cpu_experimental_ynn_fusion_type'
    library = 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
    options = parallel.compiler_options.__wrapped__
    assert options() == {option: library}
    monkeypatch.setenv('XLA_FLAGS', f'--{option}=LIBRARY_FUSION_TYPE_DOT')
    assert options() == {}  # the user's choice stays
    monkeypatch.delenv('XLA_FLAGS')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert options() == {}


def test_a_version_of_xla_without_the_option_is_let_be(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    jit = jax.jit

    def without(function, compiler_options):
        return jit(
            function, compiler_options={f'no_{name}': value for name, value in compiler_options.items()}
        )

    monkeypatch.setattr(jax, 'jit', without)
    assert parallel.compiler_options.__wrapped__() == {}


def test_a_container_has_the_cores_and_the_memory_that_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, 'GROUP', tmp_path)
    whole, cores = parallel.memory(), parallel.cores()
    for limits in (('max 100000\n', 'max\n'), (f'{10**9} 100000\n', f'{2**60}\n')):
        for name, text in zip(('cpu.max', 'memory.max'), limits, strict=True):
            (tmp_path / name).write_text(text)
        assert (parallel.cores(), parallel.memory()) == (cores, whole)
    (tmp_path / 'cpu.max').write_text('100000 100000\n')
    (tmp_path / 'memory.max').write_text(f'{2**20}\n')
    assert parallel.cores() == 1 and parallel.memory() == 2**20 / jax.local_device_count()
