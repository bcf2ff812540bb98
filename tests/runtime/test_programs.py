"""A program that was compiled in this process is not compiled again, and is never taken for another."""

import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax.runtime import devices as devices_module
from si_jax.runtime import programs
from si_jax.runtime.devices import compile_rows, compile_step, map_rows, replicate

ROWS = np.linspace(-2, 2, 8, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_programs():
    programs.forget()
    yield
    programs.forget()


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The names of what was lowered, which all that is compiled here has to be first."""
    found: list[str] = []

    def heard(event: str, seconds: float, **about) -> None:
        if event.endswith('jaxpr_to_mlir_module_duration'):
            found.append(about['fun_name'].removeprefix('jit(').removesuffix(')'))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)


def on_rows(function, shared=1.0, rows=ROWS, devices=None) -> np.ndarray:
    """What a function of (shared, rows) makes of the rows, by a program of its own or of another."""
    devices = devices or jax.local_devices()[:2]
    return map_rows(compile_rows(function, devices), replicate(shared, devices), (rows,), len(rows), devices)


def test_functions_that_do_the_same_share_one_program(compiled):
    def make():
        return lambda shared, rows: shared * jnp.sin(rows)

    first, second = on_rows(make(), np.float32(2)), on_rows(make(), np.float32(3))
    np.testing.assert_allclose(first, 2 * np.sin(ROWS), rtol=1e-6)
    np.testing.assert_allclose(second, 3 * np.sin(ROWS), rtol=1e-6)
    assert compiled.count('shard') == 1


def relu_with_gradient(slope):
    """max(x, 0) with a derivative that the function itself does not tell."""

    @jax.custom_jvp
    def relu(x):
        return jnp.maximum(x, 0)

    relu.defjvps(lambda tangent, result, x: slope * tangent)
    return relu


def with_backward(slope):
    """The same by a function that goes backward."""

    @jax.custom_vjp
    def relu(x):
        return jnp.maximum(x, 0)

    relu.defvjp(lambda x: (relu(x), None), lambda _, cotangent: (slope * cotangent,))
    return relu


def gradient(function):
    return lambda shared, rows: jax.grad(lambda x: jnp.sum(function(x)))(rows)


TABLES = {factor: np.full(3, factor, np.float32) for factor in (2, 3)}
# Pairs of functions that differ in one respect, and what tells them apart in their results.
PAIRS = {
    'a constant': lambda c: lambda shared, rows: rows * c,
    'the sign of zero': lambda c: lambda shared, rows: jnp.copysign(rows, 0.0 if c == 2 else -0.0),
    'an array': lambda c: lambda shared, rows: rows * jnp.asarray(TABLES[c])[0],
    'an array in a loop': lambda c: (
        lambda shared, rows: jax.lax.fori_loop(0, 3, lambda i, x: x * jnp.asarray(TABLES[c])[i], rows)
    ),
    'an array in a branch': lambda c: (
        lambda shared, rows: jax.lax.cond(rows[0] < 9, lambda: rows * TABLES[c][0], lambda: rows)
    ),
    'the length of a loop': lambda c: lambda shared, rows: jax.lax.fori_loop(0, c, lambda i, x: x * 2, rows),
    'an operation': lambda c: lambda shared, rows: (jnp.sin if c == 2 else jnp.cos)(rows),
    'the order of arguments': lambda c: (
        lambda shared, rows: rows - 2 * rows[::-1] if c == 2 else rows[::-1] - 2 * rows
    ),
    'the order of results': lambda c: (
        lambda shared, rows: jnp.stack([rows, -rows] if c == 2 else [-rows, rows], axis=1)
    ),
    'the names of results': lambda c: lambda shared, rows: {str(c): rows},
    'a setting': lambda c: lambda shared, rows: jnp.cumsum(jnp.stack([rows, rows], 1), axis=c - 2),
    'random numbers': lambda c: lambda shared, rows: rows + jax.random.uniform(jax.random.key(c), rows.shape),
    'a generator': lambda c: (
        lambda shared, rows: rows + jax.random.normal(jax.random.key(0, impl=['rbg', 'threefry2x32'][c - 2]))
    ),
    'a function of jit': lambda c: lambda shared, rows: jax.jit(lambda x: x * c)(rows),
    'a derivative': lambda c: gradient(relu_with_gradient(c)),
    'a derivative of a batch': lambda c: gradient(jax.vmap(relu_with_gradient(c))),
    'a way backward': lambda c: gradient(with_backward(c)),
    'a type': lambda c: lambda shared, rows: rows.astype([jnp.float32, jnp.float16][c - 2]) + 1,
}


@pytest.mark.parametrize('make', PAIRS.values(), ids=PAIRS)
def test_functions_that_differ_do_not(make, compiled):
    found = {}
    for factor in (2, 3):
        found[factor] = on_rows(make(factor))
        programs.forget()
    assert jax.tree.structure(found[2]) != jax.tree.structure(found[3]) or any(
        a.dtype != b.dtype or a.tobytes() != b.tobytes()
        for a, b in zip(jax.tree.leaves(found[2]), jax.tree.leaves(found[3]), strict=True)
    )
    before = compiled.count('shard')
    for factor in (2, 3, 2, 3):
        jax.tree.map(np.testing.assert_array_equal, on_rows(make(factor)), found[factor])
    # Each of the two was compiled once, and then found.
    assert compiled.count('shard') - before == 2


def test_a_function_of_python_that_is_called_back_is_nobody_elses(compiled):
    def make(factor):
        def host(rows):
            return np.asarray(rows) * np.float32(factor)

        def function(shared, rows):
            return jax.pure_callback(host, jax.ShapeDtypeStruct(rows.shape, rows.dtype), rows)

        return function

    for factor in (2, 3, 2):
        np.testing.assert_array_equal(on_rows(make(factor)), factor * ROWS)
    assert compiled.count('shard') == 3
    assert not programs._programs


def test_a_program_with_large_constants_is_not_kept(compiled):
    large = jnp.asarray(np.random.default_rng(0).normal(size=programs.MOST_BYTES), jnp.float32)
    for _ in range(2):
        on_rows(lambda shared, rows: rows + jnp.sum(large))
    assert compiled.count('shard') == 2
    assert not programs._programs


def test_types_shapes_devices_and_settings_have_programs_of_their_own(compiled):
    def function(shared, rows):
        return jnp.outer(rows, rows) @ rows * shared

    ways = [
        lambda: on_rows(function),
        lambda: on_rows(function, rows=ROWS.astype(np.float64)),
        lambda: on_rows(function, rows=ROWS[:4]),
        lambda: on_rows(function, shared=np.float32(1)),
        lambda: on_rows(function, devices=jax.local_devices()[:1]),
        lambda: on_rows(function, devices=jax.local_devices()[2:4]),
    ]
    with jax.default_matmul_precision('float32'):
        on_rows(function)
    for count, way in enumerate(ways, start=2):
        way()
        way()
        assert compiled.count('shard') == count


def test_arguments_may_lie_anywhere():
    devices = jax.local_devices()[:2]
    program = compile_rows(lambda shared, rows: rows + shared, devices)
    rows = ROWS.reshape(2, 4)
    for shared in (1.0, np.float32(1), jnp.float32(1), jax.device_put(np.float32(1), devices[0])):
        for given in (rows, jnp.asarray(rows)):
            np.testing.assert_array_equal(program(shared, given), rows + 1)


def test_the_type_of_each_call_counts_whatever_the_last_one_was(compiled):
    program = compile_rows(lambda shared, rows: rows + shared, jax.local_devices()[:1])
    one, two = jnp.float32(1), jnp.float64(1)
    for shared, rows in ((one, ROWS[None]), (two, ROWS[None]), (one, ROWS[None, :3]), (one, ROWS[None])) * 2:
        found = program(shared, rows)
        assert found.dtype == shared.dtype
        np.testing.assert_array_equal(found, rows + np.asarray(shared))
    assert compiled.count('shard') == 3


def test_it_can_be_called_inside_a_traced_function(monkeypatch):
    monkeypatch.setattr(devices_module, 'compiler_options', dict)  # with some JAX allows it nowhere
    devices = jax.local_devices()[:1]
    program = compile_rows(lambda shared, rows: rows**2 + shared, devices)
    slope = jax.grad(lambda x: jnp.sum(program(jnp.float32(1), x)))(jnp.asarray(ROWS[None]))
    np.testing.assert_allclose(slope, 2 * ROWS[None])


def test_nan_is_still_found_where_jax_is_asked_to_look_for_it():
    devices = jax.local_devices()[:1]
    program = compile_rows(lambda shared, rows: jnp.log(rows), devices)
    for _ in range(2):  # the program is compiled without that, and found again
        assert np.isnan(program((), ROWS[None])).any()
    with jax.debug_nans(True):
        for _ in range(2):
            with pytest.raises(FloatingPointError):
                program((), ROWS[None])


def test_what_is_not_to_be_compiled_is_not(compiled):
    seen = []
    devices = jax.local_devices()[:1]
    program = compile_rows(lambda shared, rows: seen.append(rows) or rows + 1, devices)
    program((), ROWS[None])
    count = len(compiled)
    with jax.disable_jit():
        np.testing.assert_array_equal(program((), ROWS[None]), ROWS[None] + 1)
    assert len(seen) == 2 and 'shard' not in compiled[count:]


def test_the_programs_used_last_are_kept(monkeypatch, compiled):
    monkeypatch.setattr(programs, 'KEPT', 2)
    for factor in (1, 2, 1, 3, 1, 2):  # 2 was used least when 3 came
        on_rows(PAIRS['a constant'](factor))
    assert compiled.count('shard') == 4


def test_threads_that_ask_at_once_get_one_program(compiled):
    devices = jax.local_devices()[:1]
    program = compile_rows(lambda shared, rows: jnp.sin(rows), devices)
    barrier, found = threading.Barrier(4), []

    def ask():
        barrier.wait()
        found.append(np.asarray(program((), ROWS[None])))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and compiled.count('shard') == 1


def test_steps_of_training_are_shared_too(compiled):
    def make():
        def step(state, carry, data, batch, key):
            return state + jax.lax.pmean(jnp.mean(batch), 'devices'), carry, {'state': state}

        return compile_step(step)

    count = jax.device_count()
    batch, carry = np.ones((count, 2), np.float32), np.zeros((count, 1), np.float32)
    for _ in range(2):
        state, _, _ = make()(replicate(np.float32(1)), carry, (), batch, replicate(jax.random.key(0)))
        assert state == 2
    assert compiled.count('shard') == 1


def test_a_second_evaluation_compiles_nothing_and_finds_the_same(compiled):
    rng = np.random.default_rng(0)
    images = rng.random((12, 4, 4, 3), np.float32)
    kernel = jnp.asarray(rng.normal(size=(48, 3)), jnp.float32)
    logits = images.reshape(12, -1) @ np.asarray(kernel)
    labels, attacks = logits.argmax(1), ['pgd', 'apgd-ce', 'square', 'fmn']

    def ask(scale):
        weights = scale * kernel
        classifier = lambda x: jax.nn.relu(x).reshape(len(x), -1) @ weights  # noqa: E731
        return si_jax.evaluate(classifier, images, labels, attacks=attacks, eps=0.02, steps=3)

    alone = {}
    for scale in (1.0, 0.25):
        programs.forget()
        alone[scale] = ask(scale)
    before = compiled.count('shard')
    for scale in (1.0, 0.25, 1.0):
        again = ask(scale)
        for name in attacks:
            for field in ('runs', 'queries', 'max_perturbation', 'distances'):
                np.testing.assert_array_equal(
                    getattr(again.attacks[name], field), getattr(alone[scale].attacks[name], field)
                )
        np.testing.assert_array_equal(again.clean, alone[scale].clean)
    assert compiled.count('shard') == before
