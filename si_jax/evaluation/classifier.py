"""Classifiers: whatever the user gives, as one function with its weights as arguments.

A compiled program treats arrays that a function closes over as constants: they are written out in the
program's text, and every program that uses them holds its own copy. So the function is traced once, the
arrays it captured are lifted out, and all programs take them as arguments.
"""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from si_jax.errors import InputError
from si_jax.evaluation.tolerances import equations, resolution
from si_jax.interop.jax_networks import as_function, is_equinox_module
from si_jax.interop.loading import is_torch_module, load_torch_module
from si_jax.interop.translated import Translated
from si_jax.models.convolution import convolve
from si_jax.outputs import Outputs, as_outputs

Array = jax.Array
_ONE_AT_A_TIME = threading.RLock()
# What the products of float32 arrays may be computed in.
PRECISIONS = ('float32', 'tf32', 'bfloat16')
PRODUCTS = ('dot_general', 'conv_general_dilated')


@dataclasses.dataclass(frozen=True)
class Randomised:
    """A classifier that is random on purpose.

    Its randomness comes from keys alone: what the host draws is frozen when a program is compiled.

    Attributes:
        function: (images [B, H, W, C] in [0, 1], keys [B], typed PRNG keys) -> `Outputs`, a 3-tuple or
            logits. Row i may depend on images[i] and keys[i] only.
    """

    function: Callable[[Array, Array], Any]


@dataclasses.dataclass(frozen=True)
class BlackBox:
    """A classifier that JAX cannot look into: a predict function of TensorFlow, scikit-learn or NumPy.

    It has no gradient, so only attacks that need none run on it: square, rays, spsa. The others are refused,
    unless `gradient_of` says whose gradient they shall take.

    Attributes:
        function: images, a NumPy array [B, H, W, C] in [0, 1] -> logits [B, K], or whatever grows with them.
            It is called with different B.
        num_classes: K.
    """

    function: Callable[[np.ndarray], Any]
    num_classes: int

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f'a BlackBox holds a function of images, not {type(self.function).__name__}')
        if (
            isinstance(self.num_classes, bool)
            or not isinstance(self.num_classes, int | np.integer)
            or self.num_classes < 2
        ):
            raise InputError(f'num_classes={self.num_classes!r} must be an integer of at least 2')

    def logits(self, images: Any) -> np.ndarray:
        """The logits of images, checked.

        Raises:
            InputError: They are not [B, K].
        """
        images = np.asarray(images)
        with _ONE_AT_A_TIME:  # on the CPU several threads attack, and what is not of JAX may have a state
            logits = as_array(self.function(images))
        if logits.shape != (len(images), self.num_classes):
            raise InputError(
                f'the function of a BlackBox returned shape {logits.shape} for {len(images)} images: it must '
                f'return logits [B, num_classes] = {(len(images), self.num_classes)}'
            )
        return logits.astype(images.dtype)

    def __call__(self, images: Array) -> Array:
        """The logits of images, called from a compiled program."""
        if not isinstance(images, jax.core.Tracer):
            return jnp.asarray(self.logits(images))
        shape = jax.ShapeDtypeStruct((len(images), self.num_classes), images.dtype)
        return jax.pure_callback(self.logits, shape, images, vmap_method='sequential')


def as_array(value: Any) -> np.ndarray:
    """An array on the host, of PyTorch's tensors too."""
    if hasattr(value, 'detach'):
        value = value.detach().cpu()
        value = value.float() if 'bfloat16' in str(value.dtype) else value
    return np.asarray(value)


class Classifier(NamedTuple):
    """A classifier as evaluation works with it: (images [B, H, W, C] in [0, 1], keys [B]) -> `Outputs`.

    Only where it is `randomised` do the keys matter. Where `function` is a translation, `original` is what it
    was translated from, images -> logits [B, K] on the host.
    """

    function: Callable[[Array, Array], Outputs]
    randomised: bool
    original: Callable[[np.ndarray], np.ndarray] | None = None


def classifier_of(value: Any, layout: str = 'nhwc') -> Classifier:
    """The `Classifier` of whatever stands for one.

    Args:
        value: A callable (images -> `Outputs`, a 3-tuple or logits), a `Randomised` or `BlackBox` one, or a
            torch.nn.Module, which is translated for the images that it is first called with; a pair
            (flax.linen module, variables); or an equinox.Module, which takes one image [C, H, W].
        layout: Of the images that a callable takes: 'nhwc' or 'nchw'. Modules of PyTorch and Equinox always
            take [C, H, W].

    Raises:
        InputError: It is none of these.
    """
    randomised = isinstance(value, Randomised)
    call: Any = value.function if isinstance(value, Randomised) else value
    if (network := _call_of(value)) is not None:
        call, layout = network, 'nhwc'
    if isinstance(value, type) or not callable(call):
        raise InputError(
            'a classifier is a callable from images [B, H, W, C] to si_jax.Outputs or logits, a '
            'torch.nn.Module or a pair (flax.linen module, variables), '
            f'not {value.__name__ if isinstance(value, type) else type(value).__name__}'
        )

    def function(images: Array, keys: Array) -> Outputs:
        given = images if layout == 'nhwc' else jnp.transpose(images, (0, 3, 1, 2))
        try:
            returned = call(given, keys) if randomised else call(given)
        except (InputError, jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            raise
        except Exception as error:  # It raises whatever the user's code raises.
            raise InputError(_failed(given.shape, error)) from error
        # Whatever the network computes in, losses are computed in what the images are given in.
        return jax.tree.map(lambda array: jnp.asarray(array, images.dtype), as_outputs(returned))

    return Classifier(function, randomised, call.original if isinstance(call, Translated) else None)


def _failed(shape: tuple[int, ...], error: Exception) -> str:
    """What to say of a classifier that raised an error on images of this shape."""
    words = f'{type(error).__name__}: {(str(error).splitlines() or [""])[0]}'
    if type(error).__name__ in (
        'TraceContextError',
        'ModifyScopeVariableError',
    ):  # of flax.nnx and flax.linen
        return (
            f'the classifier changes its own state when it is called ({words}): put it into evaluation '
            'mode first, model.eval() in flax.nnx, use_running_average=True in flax.linen'
        )
    return (
        f'the classifier cannot take images of shape {list(shape)} ({words}). It must take any number of '
        f'images {list(shape[1:])}: one that is written for a single image is jax.vmap(function). A function '
        'that is not of JAX can be given as si_jax.BlackBox(function, num_classes)'
    )


def _call_of(value: Any) -> Callable[..., Any] | None:
    """A function of images [B, H, W, C] for a network of PyTorch, linen or Equinox; None for all else."""
    return load_torch_module(value) if is_torch_module(value) else as_function(value)


def takes_channels_first(value: Any) -> bool:
    """Whether it is a network whose layers take [C, H, W]: of PyTorch or Equinox."""
    return is_torch_module(value) or is_equinox_module(value)


def with_logit_scale(value: Any, factor: float | Array) -> Randomised | Callable[[Array], Outputs]:
    """The classifier with its logits multiplied by a factor: every decision stays, and so do the cosines.

    A network of PyTorch keeps the weights that it has when it is first called, as `load_torch_module` says.

    A `factor` is positive. As an array it is lifted like weights: one compiled program serves all factors.

    Source: Xu et al., Fig. 1 and eq. 12.

    Raises:
        InputError: It cannot be called.
    """
    classifier_of(value)
    value = _call_of(value) or value

    def scaled(outputs: Any) -> Outputs:
        outputs = as_outputs(outputs)
        return outputs._replace(logits=factor * outputs.logits)

    if isinstance(value, Randomised):
        return Randomised(lambda images, keys: scaled(value.function(images, keys)))
    if isinstance(value, Translated):
        return _Scaled(value, scaled, factor)
    return lambda images: scaled(value(images))


class _Scaled(Translated):
    """A translated network with its logits multiplied, which is still held against the network itself."""

    def __init__(self, network: Translated, scaled: Callable[[Any], Outputs], factor: float | Array):
        self._network, self._scaled, self._factor = network, scaled, factor

    def __call__(self, images: Array) -> Outputs:
        return self._scaled(self._network(images))

    def original(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._factor) * self._network.original(images)


class Lifted(NamedTuple):
    """A function whose captured arrays have become an argument.

    Attributes:
        weights: The arrays, each once.
        apply: (weights, *arguments, precision=None) -> what the function returns; `precision`, one of
            `PRECISIONS`, is that of its convolutions and matrix products, where it is not to be as traced.
        shape: What it returns, with `jax.ShapeDtypeStruct` leaves.
        coarse: The resolution of the coarsest type that it computes in.
        calls_back: Whether it calls functions of Python when it runs, which JAX cannot differentiate.
    """

    weights: list[Array]
    apply: Callable[..., Any]
    shape: Any
    coarse: float
    calls_back: bool


def lift(function: Callable[..., Any], *arguments: Any) -> Lifted:
    """Traces a function and lifts the arrays that it closes over, also through `jax.jit`.

    Only what a jitted function closes over inside the body of a `lax` loop or branch stays a constant.

    The arguments are examples: arrays or `jax.ShapeDtypeStruct`. `Lifted.apply` takes arguments of other
    shapes too, for which the function is traced again.

    Raises:
        InputError: JAX cannot trace the function.
    """
    closed, shape = _trace(function, arguments)
    weights: list[Array] = []
    slots: dict[int, int] = {}  # identity of a captured array -> its place in `weights`
    for constant in _captured(closed):
        if id(constant) not in slots:
            slots[id(constant)] = len(weights)
            weights.append(constant if isinstance(constant, jax.Array) else jnp.asarray(constant))
    traced = {_shapes(arguments): (closed, jax.tree.structure(shape))}

    def apply(weights: list[Array], *arguments: Any, precision: str | None = None) -> Any:
        nonlocal slots
        if _shapes(arguments) not in traced:
            closed, shape = _trace(function, arguments)
            for constant in _captured(closed):
                # An array that each tracing makes anew is known by its values; a new one stays a constant.
                if id(constant) not in slots:
                    places = (slots[id(old)] for old in known if _equal(old, constant))
                    slots |= {id(constant): place for place in places}
            traced[_shapes(arguments)] = closed, jax.tree.structure(shape)
        closed, structure = traced[_shapes(arguments)]

        def captured(constant: Any) -> Array:
            return weights[slots[id(constant)]] if id(constant) in slots else jnp.asarray(constant)

        def replaced(equation: core.JaxprEqn, inputs: list[Any]) -> Array | None:
            if precision in ('tf32', 'bfloat16') and equation.primitive.name in PRODUCTS:
                x, y = inputs
                return _product(equation, x, y, precision)
            if _is_plain_convolution(equation):
                images, kernel = inputs
                return _convolve(images, kernel, equation.params)
            return None

        return jax.tree.unflatten(structure, _inline(closed, captured, jax.tree.leaves(arguments), replaced))

    known = _captured(closed)
    calls_back = any('callback' in one.primitive.name for one in equations(closed.jaxpr))
    return Lifted(weights, apply, shape, resolution(closed.jaxpr), calls_back)


def flattened(function: Callable[..., Any], arguments: tuple[Any, ...]) -> core.ClosedJaxpr:
    """The traced function, with the functions that it calls through `jax.jit` written out in it.

    Raises:
        InputError: JAX cannot trace the function.
    """
    closed, _ = _trace(function, arguments)
    flat, _ = _trace(
        lambda *arguments: _inline(closed, lambda constant: constant, jax.tree.leaves(arguments)), arguments
    )
    return flat


def _trace(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[core.ClosedJaxpr, Any]:
    """The traced function and the shape of what it returns."""
    arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    try:
        return jax.make_jaxpr(function, return_shape=True)(*arguments)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise InputError(
            'the classifier cannot be compiled by JAX: it must compute on jax arrays without looking at '
            'their values (no numpy, no Python branches on the data). JAX says: '
            f'{str(error).splitlines()[0]}. For attacks that need no gradient (square, rays, spsa) give it '
            'as si_jax.BlackBox(function, num_classes)'
        ) from error


def _shapes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))


def _equal(array: Any, other: Any) -> bool:
    """Whether two captured arrays are one, or equal."""
    if array is other:
        return True
    if array.shape != other.shape or array.dtype != other.dtype:
        return False
    return jnp.issubdtype(array.dtype, jnp.number) and np.array_equal(np.asarray(array), np.asarray(other))


def _is_jit(equation: core.JaxprEqn) -> bool:
    return equation.primitive.name in ('jit', 'pjit')  # its names, new and old


def _captured(closed: core.ClosedJaxpr) -> list[Any]:
    """The arrays captured by a traced function, and by the jitted functions that it calls."""
    captured = list(closed.consts)
    for equation in closed.jaxpr.eqns:
        if _is_jit(equation):
            captured += _captured(equation.params['jaxpr'])
    return captured


def _inline(
    closed: core.ClosedJaxpr,
    captured: Callable[[Any], Array],
    arguments: list[Any],
    replaced: Callable[[core.JaxprEqn, list[Any]], Array | None] = lambda equation, inputs: None,
) -> list[Any]:
    """Computes a traced function, with jitted functions inlined and captured arrays looked up.

    `replaced` is given each equation with its inputs, and may return the result in place of the equation's.
    """
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= zip(jaxpr.constvars, map(captured, closed.consts), strict=True)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if _is_jit(equation):
            results = _inline(equation.params['jaxpr'], captured, inputs, replaced)
        elif (result := replaced(equation, inputs)) is not None:
            results = [result]
        else:
            # A program of this one equation: JAX itself knows how to run it, custom derivatives included.
            variables = list(dict.fromkeys(atom for atom in equation.invars if isinstance(atom, core.Var)))
            single = jaxpr.replace(
                constvars=[],
                invars=variables,
                outvars=equation.outvars,
                eqns=[equation],
                effects=equation.effects,
            )
            results = core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))(*map(read, variables))
        values |= zip(equation.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _product(equation: core.JaxprEqn, x: Array, y: Array, precision: str) -> Array:
    """A convolution or matrix product in another precision; the result has the type it had."""
    result: Any = equation.outvars[0].aval
    if not {x.dtype, y.dtype, result.dtype} == {jnp.dtype('float32')}:
        return equation.primitive.bind(x, y, **equation.params)
    # Said out loud, so that the gradients are computed alike: None would be what is set around them.
    params = equation.params | {'precision': (jax.lax.Precision.DEFAULT, jax.lax.Precision.DEFAULT)}
    if precision == 'bfloat16':
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
        params['preferred_element_type'] = jnp.dtype('bfloat16')
    return equation.primitive.bind(x, y, **params).astype(jnp.float32)


def _is_plain_convolution(equation: core.JaxprEqn) -> bool:
    """Whether it is a two-dimensional convolution that `convolve` can do: the form of common networks."""
    settings = equation.params
    atoms: list[Any] = [*equation.invars, *equation.outvars]
    return (
        equation.primitive.name == 'conv_general_dilated'
        and jax.default_backend() == 'cpu'
        and len(settings['window_strides']) == 2
        and settings['window_strides'][0] == settings['window_strides'][1]
        and settings['feature_group_count'] == settings['batch_group_count'] == 1
        and set(settings['lhs_dilation']) == set(settings['rhs_dilation']) == {1}
        and len({atom.aval.dtype for atom in atoms}) == 1
    )


def _convolve(images: Array, kernel: Array, settings: dict[str, Any]) -> Array:
    """The convolution of an equation in the form whose gradient stays fast inside a loop on the CPU."""
    (n, c, *space), (o, i, *window), out = settings['dimension_numbers']
    (top, bottom), (left, right) = settings['padding']
    images = images.transpose(n, *space, c)
    padding = top
    if not top == bottom == left == right >= 0:
        zero = jnp.zeros((), images.dtype)
        images = jax.lax.pad(images, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
        padding = 0
    y = convolve(images, kernel.transpose(*window, i, o), settings['window_strides'][0], padding)
    # y is NHWC; `out` says where batch, channel and space belong.
    order = [0, 0, 0, 0]
    for place, axis in zip(out, (0, 3, 1, 2), strict=True):
        order[place] = axis
    return y.transpose(order)
