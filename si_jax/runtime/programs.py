"""Compiled programs of this process: one that was compiled is not compiled again.

`jax.jit` knows a program by the Python function that it was made from. Each evaluation makes its functions
anew. The second one on the same network would have all of them lowered and compiled again, though no
operation in them differs. Here a program is known by what it does: the operations of the traced function
with their settings, the constants in it, the types of its arguments, its devices and the settings of JAX.
"""

import collections
import contextlib
import threading
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
from jax.extend import core

KEPT = 96  # programs, those used last; each holds about a megabyte
MOST_BYTES = 2**16  # of a constant; a program with a larger one is its function's alone
# Settings of operations that say how they are differentiated: what is traced has that behind it.
_DERIVATIVES = {
    'custom_jvp_call': {'jvp_jaxpr_fun'},
    'custom_vjp_call': {'fwd_jaxpr_thunk', 'bwd', 'out_trees'},
}
# With these JAX runs a function in another way than as one compiled program.
_OTHERWISE = ('jax_disable_jit', 'jax_debug_nans', 'jax_debug_infs')
# The settings that a thread may have as its own, and by which one call is traced unlike the next.
_OF_THREADS = (
    'jax_enable_x64',
    'jax_default_matmul_precision',
    'jax_numpy_dtype_promotion',
    'jax_numpy_rank_promotion',
    'jax_threefry_partitionable',
)
_programs: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
_lock = threading.Lock()


class Once:
    """A function of `jax.jit` whose programs are shared with all functions that do the same.

    It is called as the function is. A call inside a traced function, or with a setting of JAX under which
    nothing is compiled as a whole, goes to the function itself.
    """

    def __init__(self, jitted: Any, layouts: tuple[Any, ...], about: Hashable):
        """Of a jitted function of positional arguments.

        Args:
            jitted: The function of `jax.jit`.
            layouts: The sharding of each argument, as given to `jax.jit`.
            about: What else its programs depend on: what is returned where, what is donated, the options of
                the compiler.
        """
        self._jitted, self._layouts, self._about = jitted, layouts, (layouts, about)
        self._known: dict[Hashable, Any] = {}
        self._last: tuple[Hashable, Any] = None, None
        self._making = threading.Lock()
        self.lower, self.trace = jitted.lower, jitted.trace

    def __call__(self, *arguments: Any) -> Any:
        otherwise = any(getattr(jax.config, name) for name in _OTHERWISE)
        settings = otherwise, *(getattr(jax.config, name) for name in _OF_THREADS)
        last, program = self._last
        if settings == last:
            # The program looks at what it is given before it runs, sooner than we could.
            with contextlib.suppress(TypeError, ValueError):
                return program(*arguments)
        leaves, structure = jax.tree.flatten(arguments)
        if otherwise or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._jitted(*arguments)
        asked = structure, tuple(map(_type_of, leaves)), settings
        if asked not in self._known:
            with self._making:
                if asked not in self._known:
                    self._known[asked] = _program(self._jitted.trace(*arguments), (self._about, asked))
        placed = []
        for argument, layout in zip(arguments, self._layouts, strict=True):
            placed.append(jax.tree.map(lambda leaf, layout=layout: _placed(leaf, layout), argument))
        self._last = settings, self._known[asked]
        return self._known[asked](*placed)


def forget() -> None:
    """Forgets all programs: their memory is free once nobody uses them."""
    with _lock:
        _programs.clear()


def _program(traced: Any, about: Hashable) -> Any:
    """The compiled program of a traced function."""
    try:
        name = about, jax.tree.structure(traced.out_info), _settings(), _closed(traced.jaxpr)
    except _NoNameError:
        return traced.lower().compile()
    with _lock:
        if name in _programs:
            _programs.move_to_end(name)
            return _programs[name]
    program = traced.lower().compile()
    with _lock:
        _programs[name] = program
        while len(_programs) > KEPT:
            _programs.popitem(last=False)
    return program


def _type_of(leaf: Any) -> Hashable:
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.dtype, False
    kind: Any = jax.typeof(leaf)
    return kind.shape, kind.dtype, kind.weak_type


def _placed(leaf: Any, layout: Any) -> Any:
    """The argument where the program takes it: an array that lies elsewhere is copied, as `jax.jit` does."""
    if not isinstance(leaf, jax.Array) or leaf.sharding == layout:
        return leaf
    return jax.device_put(leaf, layout)


def _settings() -> Hashable:
    """The settings of JAX as they hold in this thread: some change what an operation is lowered to."""
    return tuple((name, str(getattr(jax.config, name, None))) for name in sorted(jax.config.values))


class _NoNameError(Exception):
    """What a traced function does cannot be told from its operations."""


def _closed(closed: core.ClosedJaxpr) -> Hashable:
    return _jaxpr(closed.jaxpr), tuple(map(_value, closed.consts))


def _jaxpr(jaxpr: core.Jaxpr) -> Hashable:
    """All that a traced function does, with its variables by their numbers."""
    # That it has an axis of devices, over which it computes means and the like, does nothing by itself.
    if any(type(effect).__name__ != 'NamedAxisEffect' for effect in jaxpr.effects):
        raise _NoNameError
    numbers: dict[Any, int] = {}

    def new(variables: Any) -> Hashable:
        for one in variables:
            numbers[one] = len(numbers)
        return tuple(one.aval for one in variables)

    def read(atom: Any) -> Hashable:
        return (_value(atom.val), atom.aval) if isinstance(atom, core.Literal) else numbers[atom]

    takes = new([*jaxpr.constvars, *jaxpr.invars])
    operations = []
    for one in jaxpr.eqns:
        inputs = tuple(map(read, one.invars))
        operations.append((one.primitive, inputs, _parameters(one), one.ctx, new(one.outvars)))
    return takes, tuple(operations), tuple(map(read, jaxpr.outvars))


def _parameters(equation: core.JaxprEqn) -> Hashable:
    name = equation.primitive.name
    if 'callback' in name:
        raise _NoNameError
    left_out = _DERIVATIVES.get(name, set())
    return tuple((key, _value(value)) for key, value in equation.params.items() if key not in left_out)


def _value(value: Any) -> Hashable:
    """A setting or a constant by what it says."""
    match value:
        case core.ClosedJaxpr():
            return _closed(value)
        case core.Jaxpr():
            return _jaxpr(value)
        case tuple() | list() if type(value) in (tuple, list):
            return type(value), tuple(map(_value, value))
        case dict():
            return tuple((key, _value(one)) for key, one in value.items())
        case set():
            return frozenset(value)
        case np.ndarray() | np.generic() | jax.Array():
            if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) or value.nbytes > MOST_BYTES:
                raise _NoNameError
            array = np.asarray(value)
            return array.shape, array.dtype, getattr(value, 'weak_type', False), array.tobytes()
        case bool() | int() | float() | complex():
            return type(value), repr(value)  # 0.0 is not -0.0, and NaN is NaN
    function = callable(value) and not isinstance(value, type | jax.sharding.Mesh)
    if function or type(value).__hash__ is None:
        raise _NoNameError
    # The name keeps it alive: what is known by its identity alone is taken for nothing else.
    return value
