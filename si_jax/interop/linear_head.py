"""Finds the last linear layer in a graph of ATen operations."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.interop.graph_nodes import aten_name

Array = jax.Array

_UNCHANGED = ('alias', 'clone', '_to_copy', 'view', 'reshape', '_unsafe_view', 'squeeze')


class Head(NamedTuple):
    """The layer logits = scale * (features @ weight) + offset, by its nodes.

    Attributes:
        linear: The product (aten.mm or aten.addmm).
        features: [B, F].
        weight: [F, K].
        factors: Numbers, or arrays of shape [] to [1, K], whose product is the scale; those of the second
            entry divide.
    """

    linear: Any
    features: Any
    weight: Any
    factors: tuple[tuple[Any, ...], tuple[Any, ...]]

    def nodes(self) -> list[Any]:
        """Nodes whose values `kernel` needs."""
        return [n for n in (self.weight, *self.factors[0], *self.factors[1]) if _is_node(n)]

    def kernel(self, values: Mapping[str, Any]) -> Array:
        """[F, K], with the scale in it: features @ kernel are the logits but for an offset."""
        kernel = values[self.weight.name]
        times, over = ([values[f.name] if _is_node(f) else f for f in factors] for factors in self.factors)
        for factor in times:
            kernel = kernel * factor
        for factor in over:
            kernel = kernel / factor
        return jnp.asarray(kernel)


def find_head(logits: Any, of_images: set[str]) -> Head | str:
    """The last linear layer, if logits are its output, perhaps scaled and shifted by constants.

    Args:
        logits: The node of the logits [B, K].
        of_images: Names of all nodes that depend on the images.

    Returns:
        The layer, or a sentence that says why there is none.
    """
    node = logits
    times: list[Any] = []
    over: list[Any] = []
    while True:
        name, _ = aten_name(node)
        images = [a for a in node.args if _is_node(a) and a.name in of_images]
        if name in ('mm', 'addmm'):
            return _head(node, name, images, times, over)
        if len(images) != 1 or name not in (*_UNCHANGED, 'add', 'sub', 'mul', 'div', 'neg'):
            return f'the logits are the result of {node.target}, not of a linear layer'
        source = images[0]
        if name in _UNCHANGED and _shape(source) != _shape(node):
            return f'{node.target} with a change of shape lies between the last linear layer and the logits'
        if name == 'neg' or (name == 'sub' and source is node.args[1]):
            times.append(-1)
        if name in ('add', 'sub') and source is node.args[1]:
            times.append(node.kwargs.get('alpha', 1))
        if name == 'mul':
            times.append(node.args[0] if source is node.args[1] else node.args[1])
        if name == 'div':
            if source is not node.args[0] or node.kwargs.get('rounding_mode'):
                return 'the logits are a quotient, not the result of a linear layer'
            over.append(node.args[1])
        node = source


def _head(node: Any, name: str, images: list[Any], times: list[Any], over: list[Any]) -> Head | str:
    features, weight = node.args[-2:]
    if len(images) != 1 or images[0] is not features or node.kwargs.get('beta', 1) != 1:
        return f'the logits are a product ({name}) of two arrays that both depend on the images'
    times = [*times, node.kwargs.get('alpha', 1)]
    return Head(node, features, weight, (tuple(f for f in times if _is_node(f) or f != 1), tuple(over)))


def _is_node(value: Any) -> bool:
    return hasattr(value, 'all_input_nodes')


def _shape(node: Any) -> list[str]:
    return [str(size) for size in node.meta['val'].shape]
