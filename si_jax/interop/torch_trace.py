"""From a torch.nn.Module to a graph of ATen operations, in two ways.

`export` is torch.export. It sees no values, those of weights included, so it fails for a module that branches
on one (`if self.alpha == 0`). `trace` runs the module once before, with the weights as they are and images
that have a shape but no values: a branch on weights is taken, one on images is an error. Its graph is for one
number of images.
"""

import warnings
from typing import Any, NamedTuple

from si_jax.errors import InputError
from si_jax.interop.torch_files import import_torch


class Traced(NamedTuple):
    """A graph of ATen operations.

    Attributes:
        module: A torch.fx.GraphModule.
        images: The name of the node that stands for the images [B, C, H, W].
        tensors: Values of the other placeholders, by name.
        outputs: The nodes of what the module returns.
    """

    module: Any
    images: str
    tensors: dict[str, Any]
    outputs: tuple[Any, ...]


def export(module: Any, example: Any, dynamic: bool) -> Traced:
    """The graph of a module without control flow on values.

    Args:
        module: In evaluation mode.
        example: Images [B, C, H, W]; only shape and type matter.
        dynamic: Whether B is free in the graph.

    Raises:
        InputError: If the module changes its buffers.
        Exception: Of any type, if torch.export fails.
    """
    torch = import_torch()
    decompositions = torch.export.default_decompositions()
    # By default detach would become an alias, and the gradient another.
    decompositions.pop(torch.ops.aten.detach.default, None)
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    with warnings.catch_warnings():
        # torch's own code about torch's own trees: nothing that a user could change.
        warnings.filterwarnings('ignore', '.*LeafSpec', FutureWarning)
        exported = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
        exported = exported.run_decompositions(decompositions)
    signature = exported.graph_signature
    if signature.buffers_to_mutate:
        raise _changes_buffers(module, signature.buffers_to_mutate.values())
    values = {**exported.state_dict, **exported.constants}
    tensors = {
        spec.arg.name: values[spec.target].detach()
        for spec in signature.input_specs
        if spec.target is not None
    }
    return Traced(exported.graph_module, signature.user_inputs[0], tensors, _outputs(exported.graph))


def trace(module: Any, example: Any) -> Traced:
    """The graph of a module for the shape of the example, with the branches taken that its weights ask for.

    Raises:
        InputError: If the module changes its buffers.
        Exception: Of any type, if it branches on values of the images, or draws random numbers.
    """
    torch = import_torch()
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class WeightsAreKnown(TorchDispatchMode):
        """What does not depend on the images is computed, and does not enter the graph."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            leaves = torch.utils._pytree.tree_leaves((args, kwargs))
            if any(isinstance(leaf, FakeTensor) for leaf in leaves):
                return function(*args, **kwargs)
            if torch.Tag.nondeterministic_seeded in function.tags:
                raise InputError(f'{type(module).__name__} draws random numbers with {function}')
            with disable_proxy_modes_tracing(), unset_fake_temporarily():
                return function(*args, **kwargs)

    def call(images: Any) -> Any:
        with WeightsAreKnown():
            return module(images)

    buffers = {name: buffer._version for name, buffer in module.named_buffers()}
    graph_module = make_fx(call, tracing_mode='fake', _allow_non_fake_inputs=True)(example)
    changed = [name for name, buffer in module.named_buffers() if buffer._version != buffers.get(name)]
    if changed:
        raise _changes_buffers(module, changed)
    return export(graph_module, example, dynamic=False)


def _outputs(graph: Any) -> tuple[Any, ...]:
    (result,) = next(node for node in graph.nodes if node.op == 'output').args
    return tuple(result) if isinstance(result, list | tuple) else (result,)


def _changes_buffers(module: Any, names: Any) -> InputError:
    return InputError(
        f'{type(module).__name__} changes its buffers when it is called: {", ".join(names)}. A classifier '
        f'must not'
    )
