"""Counting FLOPs: of any function that JAX can trace, and of training and evaluation in forward passes.

A multiplication and an addition are two FLOPs. Counted are convolutions and matrix products alone, as if
padding were pixels: the analytic count of the literature (ResNet-18 on CIFAR-10: 1.111 GFLOP), which is what
utilisation means. XLA's own cost analysis skips the padding and sees the body of a loop once. F is one
forward pass of one image; the gradient of the image takes 2F with its forward pass, that of the parameters
3F.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.defenses import HELPED, SEGMENT, Defense
from si_jax.models import use_convolution
from si_jax.storage.trees import leaves


class Layer(NamedTuple):
    """A convolution or a matrix product: its FLOPs, and the elements of input, output and weights."""

    flops: float
    inputs: int
    outputs: int
    weights: int
    convolution: bool


class Network(NamedTuple):
    """What one forward pass of one image costs."""

    flops: float  # F
    outputs: int  # elements that the convolutions write; those of matrix products if it has none
    parameters: int
    norms: int  # batch normalisations
    layers: tuple[Layer, ...]  # in the order of the pass


class Passes(NamedTuple):
    """The work of a training step on one image, in forward passes: what the attack takes, and the update."""

    attack: float
    update: float

    @property
    def total(self) -> float:
        return self.attack + self.update


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of `function(*arguments)`, which may be shapes (`jax.ShapeDtypeStruct`); nothing is computed.

    The body of a loop counts as often as it runs, if that is known when it is traced, else once; of branches
    the dearest counts. What a compiler would drop counts too.
    """
    with use_convolution('lax'):
        return sum(times * layer.flops for times, layer in layers(jax.make_jaxpr(function)(*arguments).jaxpr))


def layers(jaxpr: Any) -> Iterator[tuple[int, Layer]]:
    """(how often it runs, layer) of every convolution and matrix product in a traced function."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ('conv_general_dilated', 'dot_general'):
            yield 1, _layer(equation)
        elif name == 'cond':
            branches = [list(layers(branch.jaxpr)) for branch in equation.params['branches']]
            yield from max(branches, key=lambda found: sum(times * layer.flops for times, layer in found))
        else:
            length = equation.params['length'] if name == 'scan' else 1
            for inner in _inner(list(equation.params.values())):
                yield from ((length * times, layer) for times, layer in layers(inner))


def _layer(equation: Any) -> Layer:
    left, right, out = (variable.aval for variable in (*equation.invars, *equation.outvars))
    if equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        taps = math.prod(left.shape[axis] for axis in contracted)
        return Layer(2.0 * out.size * taps, left.size, out.size, right.size, False)
    _, channels, *window = equation.params['dimension_numbers'].rhs_spec
    taps = right.shape[channels] * math.prod(right.shape[axis] for axis in window)
    # Of a dilated input, as in the gradient of a convolution with a stride, most taps meet zeros.
    taps /= math.prod(equation.params['lhs_dilation']) * equation.params['batch_group_count']
    return Layer(2.0 * out.size * taps, left.size, out.size, right.size, True)


def _inner(value: Any) -> Iterator[Any]:
    if hasattr(value, 'eqns'):
        yield value
    elif hasattr(value, 'jaxpr'):
        yield from _inner(value.jaxpr)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _inner(part)


def network(model: Any, image_shape: tuple[int, ...]) -> Network:
    """What a network of `si_jax.models` costs on images [H, W, C]; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    with use_convolution('lax'):
        traced = jax.make_jaxpr(model.apply)(variables, image)
    found = tuple(layer for _, layer in layers(traced.jaxpr))
    convolutions = [layer for layer in found if layer.convolution]
    return Network(
        flops=sum(layer.flops for layer in found),
        outputs=sum(layer.outputs for layer in convolutions or found),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
        norms=sum(path.rpartition('/')[2] == 'mean' for path, _ in leaves(variables.get('batch_stats', {}))),
        layers=found,
    )


def training_passes(defense: Defense, attack_steps: float, *, awp: bool = False) -> Passes:
    """What a training step of a defense takes, in forward passes of one image.

    AT with ten steps takes 23, TRADES 27 and TRADES-SI 26 (the public code of TRADES takes 36, as it computes
    the natural logits anew in every step).

    Args:
        defense: A row of `si_jax.defenses.DEFENSES`, perhaps with SI.
        attack_steps: Steps of the training attack, or their mean; a persistent perturbation has none.
        awp: Whether the weights are perturbed, which takes one more gradient.
    """
    if defense.persistent:
        return Passes(2.0 * (defense.inner is not None), 3.0)
    # The gradient of an image gradient: the latter's two passes, and twice as much for each of them.
    gradient = 3.0 * _forwards(defense.read_passes) + 6 * defense.aligned
    # A pass that is repeated, or that no term reads, moves the statistics alone. The other image gradient
    # does not change with the weights.
    once = _forwards(defense.passes) - _forwards(defense.read_passes) + 2 * defense.aligned
    # The helper is counted as one more of this network.
    branches = 1 + defense.branches
    update = branches * (gradient + once) + awp * gradient + (HELPED in defense.passes)
    attack = float(len(defense.before))
    if defense.inner is not None:
        inner = {name for term in defense.inner_terms.values() for name in term.objective.uses}
        natural = 'nat' in inner | defense.inner.uses and 'nat' not in defense.before
        attack += 2 * attack_steps + natural + defense.calibrated + defense.best_point
    return Passes(branches * attack, update)


def first_steps(first: float, most: int) -> int:
    """The number of attack steps with which a ramp from `first` times `most` begins."""
    return max(1, round(first * most))


def mean_steps(most: int, ramp: Sequence[float], changes: int) -> float:
    """The mean number of attack steps over a run of so many changes, with a ramp (a, b) of `training.ramps`.

    `ramp` () is none. The k-th number of m begins at the share k b / m of the run, counted from 0.
    """
    if not ramp:
        return most
    rises = most - first_steps(ramp[0], most)
    begins = (math.ceil(k * ramp[1] * changes / (rises + 1)) / changes for k in range(1, rises + 1))
    return most - sum(min(begin, 1.0) for begin in begins)


def live_forwards(defense: Defense) -> int:
    """The train-mode forward passes whose intermediate values wait for the backward pass at the same time."""
    return (1 + defense.branches) * max(1, _forwards(defense.read_passes)) + defense.aligned


def _forwards(passes: Iterable[str]) -> int:
    """The forward passes of one image, for one of the batch."""
    return sum(SEGMENT if name == 'segment' else 1 for name in passes)
