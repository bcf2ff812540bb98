"""ATen operations that treat every entry alike, as JAX functions.

Types follow JAX's promotion, so that float64 images widen a float32 network instead of failing. Where JAX and
PyTorch differentiate a kink differently (clamp at its bounds, leaky ReLU at 0), these do as PyTorch.

Source of the signatures: pytorch:aten/src/ATen/native/native_functions.yaml.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from si_jax.interop.aten.table import Table

Array = jax.Array
ELEMENTWISE = Table()

# Elementwise functions of one argument.
ELEMENTWISE |= {
    '_to_copy': lambda x, dtype=None: jnp.asarray(x, dtype),
    'abs': jnp.abs,
    'bitwise_not': jnp.bitwise_not,
    'ceil': jnp.ceil,
    'clone': lambda x: x,
    'cos': jnp.cos,
    'detach': lax.stop_gradient,
    'erf': lax.erf,
    'exp': jnp.exp,
    'expm1': jnp.expm1,
    'floor': jnp.floor,
    'gelu': lambda x, approximate='none': jax.nn.gelu(x, approximate=approximate == 'tanh'),
    'isinf': jnp.isinf,
    'isnan': jnp.isnan,
    'log': jnp.log,
    'log1p': jnp.log1p,
    'log2': jnp.log2,
    'logical_not': jnp.logical_not,
    'neg': jnp.negative,
    'reciprocal': lambda x: 1 / x,
    'relu': jax.nn.relu,
    'round': jnp.round,
    'rsqrt': lax.rsqrt,
    'sigmoid': jax.nn.sigmoid,
    'sign': jnp.sign,
    'sin': jnp.sin,
    'sqrt': jnp.sqrt,
    'tanh': jnp.tanh,
    'trunc': jnp.trunc,
}
# Elementwise functions of two arguments.
ELEMENTWISE |= {
    'add': lambda x, y, alpha=1: jnp.add(x, y if alpha == 1 else alpha * y),
    'atan2': jnp.arctan2,
    'bitwise_and': jnp.bitwise_and,
    'bitwise_or': jnp.bitwise_or,
    'eq': jnp.equal,
    'fmod': jnp.fmod,
    'ge': jnp.greater_equal,
    'gt': jnp.greater,
    'le': jnp.less_equal,
    'leaky_relu': lambda x, slope=0.01: jnp.where(x > 0, x, slope * x),
    'logical_and': jnp.logical_and,
    'logical_or': jnp.logical_or,
    'lt': jnp.less,
    'maximum': jnp.maximum,
    'minimum': jnp.minimum,
    'mul': jnp.multiply,
    'ne': jnp.not_equal,
    'pow': jnp.power,
    'remainder': jnp.remainder,
    'sub': lambda x, y, alpha=1: jnp.subtract(x, y if alpha == 1 else alpha * y),
    'where': jnp.where,
}


@ELEMENTWISE.add('div')
def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Array:
    if rounding_mode == 'floor':
        return jnp.floor_divide(x, y)
    return jnp.trunc(x / y) if rounding_mode == 'trunc' else jnp.divide(x, y)


@ELEMENTWISE.add('pow.Tensor_Scalar')
def _power(x: Array, exponent: Any) -> Array:
    # Whole powers by multiplication: the derivative of x**2.0 at 0 would go through a logarithm.
    whole = isinstance(exponent, int) or float(exponent).is_integer()
    return lax.integer_pow(x, int(exponent)) if whole else jnp.power(x, exponent)


@ELEMENTWISE.add('clamp')
def _clamp(x: Array, low: Any = None, high: Any = None) -> Array:
    # The derivative at a bound is 1; that of jnp.clip is one half.
    if low is not None:
        x = jnp.where(x < low, low, x)
    return x if high is None else jnp.where(x > high, high, x)


@ELEMENTWISE.add('hardtanh')
def _hardtanh(x: Array, low: Any = -1, high: Any = 1) -> Array:
    # The derivative at a bound is 0, unlike that of clamp.
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


@ELEMENTWISE.add('elu')
def _elu(x: Array, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Array:
    negative = alpha * jnp.expm1(jnp.minimum(x, 0) * input_scale)
    return scale * jnp.where(x > 0, x, negative)
