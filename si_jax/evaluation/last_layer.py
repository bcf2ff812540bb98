"""Features and kernel of a classifier that returns logits alone, read from its traced program.

The last linear layer is looked for from the logits backwards: before shifts and scales by what does not
depend on the images there must be a product of an array that does with one that does not. These two are
features and kernel. They become results of the same program, so no second forward pass is needed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from si_jax.errors import InputError
from si_jax.evaluation.classifier import flattened
from si_jax.outputs import Outputs

Array = jax.Array

_SHAPED = ('reshape', 'squeeze', 'expand_dims', 'broadcast_in_dim')
_UNCHANGED = ('convert_element_type', 'copy', 'copy_p', 'reduce_precision', 'optimization_barrier')


class Factor(NamedTuple):
    """A number or an array that the product is multiplied with, or divided by, and its axis of classes."""

    atom: Any
    axis: int
    divides: bool


class LastLayer(NamedTuple):
    """The product of a layer logits = factors * (features @ weight) + offset in a traced program.

    Attributes:
        features: What depends on the images, [.., F ..].
        weight: What does not.
        contracted: The axes of `features` and of `weight` that are summed over.
        sign: 1 or -1, which belongs to the factors.
    """

    features: Any
    weight: Any
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    sign: int
    factors: tuple[Factor, ...]


def with_features(function: Callable[..., Outputs], *arguments: Any) -> Callable[..., Outputs] | str:
    """The same classifier with features and kernel beside its logits, or a sentence why there are none.

    `arguments` are examples of what `function` takes, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        InputError: JAX cannot trace the function.
    """
    found = find_last_layer(flattened(function, arguments).jaxpr)
    if isinstance(found, str):
        return found

    def outputs(*arguments: Any) -> Outputs:
        closed = flattened(function, arguments)
        layer = find_last_layer(closed.jaxpr)
        if isinstance(layer, str):
            raise InputError(f'with {len(arguments[0])} images at once {layer}: give another batch size')
        atoms = [*closed.jaxpr.outvars, layer.features, layer.weight, *(f.atom for f in layer.factors)]
        program = core.ClosedJaxpr(closed.jaxpr.replace(outvars=atoms), closed.consts)
        values = core.jaxpr_as_fun(program)(*jax.tree.leaves(arguments))
        logits, features, weight, *factors = (jnp.asarray(value, values[0].dtype) for value in values)
        summed, of_weight = layer.contracted
        kernel = jnp.moveaxis(weight, of_weight, range(len(of_weight))).reshape(-1, logits.shape[1])
        for (_, axis, divides), factor in zip(layer.factors, factors, strict=True):
            if factor.ndim:  # the rows of what was broadcast over the images are all alike
                factor = jnp.moveaxis(factor, axis, -1).reshape(-1, factor.shape[axis])[0]
            kernel = kernel / factor if divides else kernel * factor
        last = range(features.ndim - len(summed), features.ndim)
        features = jnp.moveaxis(features, summed, last).reshape(len(logits), -1)
        return Outputs(logits, features, layer.sign * kernel)

    return outputs


def find_last_layer(jaxpr: core.Jaxpr) -> LastLayer | str:
    """The last linear layer of a program without nested functions, whose one result is the logits [B, K].

    Returns:
        The layer, or a sentence that says why there is none.
    """
    made_by: dict[Any, core.JaxprEqn] = {}
    varying: set[Any] = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        made_by |= dict.fromkeys(equation.outvars, equation)
        if any(isinstance(atom, core.Var) and atom in varying for atom in equation.invars):
            varying |= set(equation.outvars)
    atom: Any = jaxpr.outvars[0]
    rows, _ = atom.aval.shape
    axis, sign = 1, 1
    factors: list[Factor] = []
    if isinstance(atom, core.Literal) or atom not in varying:
        return 'the logits do not depend on the images'
    while atom in made_by:
        equation = made_by[atom]
        name, settings = equation.primitive.name, equation.params
        sources = [a for a in equation.invars if isinstance(a, core.Var) and a in varying]
        if len(sources) > 1:
            return f'the logits are the result of {name!r} of arrays that all depend on the images'
        source: Any = sources[0]
        place = next(i for i, a in enumerate(equation.invars) if a is source)
        if name == 'dot_general':
            return _layer(equation, place, axis, sign, factors, rows)
        if name in ('add', 'sub', 'mul', 'div'):
            if name == 'div' and place == 1:
                return 'the logits are a quotient with the images below, not the result of a linear layer'
            if name in ('mul', 'div'):
                factors.append(Factor(equation.invars[1 - place], axis, name == 'div'))
            sign = -sign if name == 'sub' and place == 1 else sign
        elif name == 'neg':
            sign = -sign
        elif name == 'transpose':
            axis = settings['permutation'][axis]
        elif name in _SHAPED:
            before = _axis_before(source.aval.shape, atom.aval.shape, axis)
            if before is None:
                return f'{name!r} with a change of shape lies between the last linear layer and the logits'
            axis = before
        elif name not in _UNCHANGED:
            return f'the logits are the result of {name!r}, not of a linear layer'
        atom = source
    return 'the logits are the images themselves, behind no linear layer'


def _layer(
    equation: core.JaxprEqn, place: int, axis: int, sign: int, factors: list[Factor], rows: int
) -> LastLayer | str:
    """The layer of a product, one of whose operands, that at `place`, depends on the images."""
    contracted, batch = equation.params['dimension_numbers']
    features: Any = equation.invars[place]
    weight: Any = equation.invars[1 - place]
    summed, of_weight = (tuple(map(int, contracted[i])) for i in (place, 1 - place))
    free = [size for i, size in enumerate(features.aval.shape) if i not in summed]
    columns = [size for i, size in enumerate(weight.aval.shape) if i not in of_weight]
    first = len(free) if place == 0 else 0
    if any(batch) or len(columns) != 1 or axis != first or math.prod(free) != rows or max(free) != rows:
        return 'the logits are a product of arrays, but not features [B, F] times weights [F, K]'
    return LastLayer(features, weight, (summed, of_weight), sign, tuple(factors))


def _axis_before(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """Where an axis was before a change of shape that only adds or drops axes of size 1; None for others."""
    kept = [i for i, size in enumerate(after) if size != 1]
    were = [i for i, size in enumerate(before) if size != 1]
    if axis not in kept or [after[i] for i in kept] != [before[i] for i in were]:
        return None
    return were[kept.index(axis)]
