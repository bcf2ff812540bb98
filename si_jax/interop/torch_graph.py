"""Any PyTorch module as a JAX classifier: a graph of ATen operations, then one JAX function for each.

    classifier = TorchClassifier(module, image_shape=(32, 32, 3))
    outputs = classifier(images)              # images [B, 32, 32, 3] in [0, 1] -> Outputs

The module maps [B, C, H, W] in [0, 1] to logits [B, K]; a normalisation of its input belongs into it. It is
translated in evaluation mode (batch normalisation with running statistics, no dropout) whatever mode it is
in, from a copy on the CPU: the module itself is not changed. Half-precision weights are widened to float32. A
part under torch.no_grad() is differentiated like any other; what is behind .detach() is not.

What does not depend on the images PyTorch computes once. Weights are JAX arrays that the classifier captures.
"""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.errors import InputError
from si_jax.interop import aten, torch_trace
from si_jax.interop.graph_nodes import (
    aten_name,
    check_logits,
    first_line,
    is_random,
    place_of,
    unsupported_error,
)
from si_jax.interop.linear_head import Head, find_head
from si_jax.interop.torch_files import check_finite, import_torch
from si_jax.interop.translated import Translated
from si_jax.models.convolution import chosen_convolution, use_convolution
from si_jax.outputs import Outputs

Array = jax.Array

# Where an array lies, and its memory format, mean nothing here.
_IGNORED_KEYWORDS = ('device', 'layout', 'memory_format', 'non_blocking', 'pin_memory')
_SIZE_FUNCTIONS = ('sym_float', 'sym_int', 'sym_max', 'sym_min', 'sym_not')


class TorchClassifier(Translated):
    """images [B, H, W, C] in [0, 1] -> `Outputs`: it computes what a torch.nn.Module computes.

    Args:
        module: Maps float [B, C, H, W] in [0, 1] to logits [B, K].
        image_shape: (H, W, C) of the images that it will be given.

    Attributes:
        image_shape: (H, W, C).
        num_classes: K.
        why_no_features: None, or why features and kernel could not be read from the graph.

    Raises:
        InputError: If the module branches on values of the images, draws random numbers, uses
            operations that are not in the tables (all are listed, with their place in the module), has
            weights that are not finite, or does not return logits [B, K].
    """

    def __init__(self, module: Any, image_shape: Sequence[int] = (32, 32, 3)):
        torch = import_torch()
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            module = module.module
        self._name = type(module).__name__
        self._module = _copied(module).cpu().eval().requires_grad_(False)
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in self._tensors().values()):
            self._module.float()
        floats = {name: t.numpy() for name, t in self._tensors().items() if t.is_floating_point()}
        check_finite(floats, self._name)
        self.image_shape = _image_shape(image_shape)
        self._graphs: dict[int | None, _Graph] = {}
        try:
            graph = self._graphs[None] = self._translate(None)
        except _FixedBatchError:
            # The code of the module asks for values: one graph for each number of images.
            graph = self._graphs[2] = self._translate(2)
        self.num_classes = graph.num_classes
        self.why_no_features = graph.head if isinstance(graph.head, str) else None

    def _tensors(self) -> dict[str, Any]:
        return {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}

    def _dtype(self) -> Any:
        """What the module computes in."""
        floats = (t.dtype for t in self._tensors().values() if t.is_floating_point())
        return next(floats, import_torch().float32)

    def __call__(self, images: Array) -> Outputs:
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            *sides, channels = self.image_shape
            remedy = f'give image_shape={tuple(images.shape[1:])} when it is loaded'
            if images.shape[1:] == (channels, *sides):
                remedy = 'these are [B, C, H, W], so give images.transpose(0, 2, 3, 1)'
            raise InputError(
                f'{self._name} was translated for images [B, {", ".join(map(str, self.image_shape))}], not '
                f'{list(images.shape)}: {remedy}'
            )
        rows = None if None in self._graphs else images.shape[0]
        if rows not in self._graphs:
            # This may happen while JAX traces a function: the arrays of the new graph are no part of it.
            with jax.ensure_compile_time_eval():
                self._graphs[rows] = self._translate(rows)
        return self._graphs[rows](images)

    def original(self, images: np.ndarray) -> np.ndarray:
        """What the module itself, run by PyTorch, says of images [B, H, W, C]: its logits [B, K]."""
        torch = import_torch()
        given = torch.as_tensor(np.moveaxis(np.asarray(images), 3, 1).copy(), dtype=self._dtype())
        with torch.no_grad():
            # Whatever stands around the logits, as in the translation: a tuple, a dictionary, a data class.
            (logits,) = torch.utils._pytree.tree_leaves(self._module(given))
        return logits.double().numpy() if logits.dtype == torch.float64 else logits.float().numpy()

    def _translate(self, rows: int | None) -> '_Graph':
        torch = import_torch()
        height, width, channels = self.image_shape
        example = torch.zeros(rows or 2, channels, height, width, dtype=self._dtype())
        try:
            traced = torch_trace.export(self._module, example, dynamic=rows is None)
        except InputError:
            raise
        except Exception as error:  # It raises whatever the code of the module raises.
            if rows is None:
                raise _FixedBatchError from error
            traced = self._trace(example)
        return _Graph(traced, self._name)

    def _trace(self, example: Any) -> torch_trace.Traced:
        """The graph of a module that torch.export refused."""
        try:
            return torch_trace.trace(self._module, example)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f'{self._name} cannot be traced{place_of(error)}: {first_line(error)}. Its forward must be '
                f'free of branches on values of the images, and take images {list(example.shape[1:])}'
            ) from error


class _FixedBatchError(Exception):
    """torch.export refused an unknown number of images."""


class _Graph:
    """A graph of ATen operations; calling it interprets them with JAX arrays, in one compiled program."""

    def __init__(self, traced: torch_trace.Traced, name: str):
        check_logits(traced.outputs, name)
        images, constants = traced.images, dict(traced.tensors)
        # What depends on the images at all, and what depends on their values and not on their number alone.
        of_images, of_values = {images}, {images}
        self._steps: list[tuple[Any, bool]] = []
        self._images = images
        unsupported = []
        for node in traced.module.graph.nodes:
            if node.op == 'get_attr':  # a branch of torch.cond
                constants[node.name] = getattr(traced.module, node.target)
            if node.op != 'call_function':
                continue
            sources = {n.name for n in node.all_input_nodes}
            if sources & of_values and aten_name(node)[0] != 'sym_size':
                of_values.add(node.name)
            exact = node.name not in of_values
            if is_random(node) or (sources & of_images and not _is_supported(node)):
                unsupported.append(node)
            if sources & of_images:
                of_images.add(node.name)
                self._steps.append((node, exact))
            elif not unsupported:
                constants[node.name] = _torch_value(node, constants)
        if unsupported:
            raise unsupported_error(unsupported, name)
        (self._output,) = traced.outputs
        if self._output.name not in of_images:
            raise InputError(f'{name} returns logits that do not depend on the images')
        self.num_classes = self._output.meta['val'].shape[1]
        self.head: Head | str = find_head(self._output, of_images)
        used = {n.name for step, _ in self._steps for n in step.all_input_nodes}
        if isinstance(self.head, Head):
            used |= {n.name for n in self.head.nodes()}
        tensors = {name: value for name, value in constants.items() if name in used}
        self._arrays = {
            name: jnp.asarray(_in_range(name, value.detach().numpy()))
            for name, value in tensors.items()
            if hasattr(value, 'numpy')
        }
        self._others = {name: value for name, value in tensors.items() if name not in self._arrays}
        self._compiled = jax.jit(self._interpret, static_argnums=0)

    def __call__(self, images: Array) -> Outputs:
        return self._compiled(chosen_convolution(), self._arrays, images)

    def _interpret(self, kind: str, arrays: dict[str, Array], images: Array) -> Outputs:
        values: dict[str, Any] = self._others | arrays
        values[self._images] = aten.ChannelsLast(images)
        head = self.head if isinstance(self.head, Head) else None
        with use_convolution(kind):
            for node, exact in self._steps:
                # logits must be W^T z + b to rounding, which TF32 or bf16 products are not.
                precision = 'highest' if head is not None and node is head.linear else None
                with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
                    values[node.name] = _apply(node, values, exact)
            logits = aten.plain(values[self._output.name])
            if head is None:
                return Outputs(logits)
            return Outputs(logits, aten.plain(values[head.features.name]), head.kernel(values))


def _is_supported(node: Any) -> bool:
    name, overload = aten_name(node)
    return aten.find(name, overload) is not None if name else _is_python(node.target)


def _is_python(target: Any) -> bool:
    """Whether a function is arithmetic on sizes, which are Python numbers here, or getitem."""
    module = getattr(target, '__module__', None)
    return module in ('_operator', 'math') or getattr(target, '__name__', '') in _SIZE_FUNCTIONS


def _apply(node: Any, values: Mapping[str, Any], exact: bool) -> Any:
    """The value of a node, from the values of the nodes that it uses.

    If `exact` its type is PyTorch's. JAX's promotion widens what float64 images touch, and must; but PyTorch
    computes with positions and the like in float32, where JAX would make float64 out of integers.
    """
    torch = import_torch()

    def argument(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return values[value.name]
        if isinstance(value, list | tuple):
            return [argument(v) for v in value]
        return jax.dtypes.canonicalize_dtype(_numpy_dtype(value)) if isinstance(value, torch.dtype) else value

    arguments = [argument(a) for a in node.args]
    keywords = {k: argument(v) for k, v in node.kwargs.items() if k not in _IGNORED_KEYWORDS}
    name, overload = aten_name(node)
    if not name:
        return node.target(*arguments, **keywords)
    value = aten.call(name, overload, arguments, keywords)
    expected = getattr(node.meta.get('val'), 'dtype', None)
    if exact and expected is not None and expected.is_floating_point:
        return jax.tree.map(lambda x: x.astype(jax.dtypes.canonicalize_dtype(_numpy_dtype(expected))), value)
    return value


def _numpy_dtype(dtype: Any) -> np.dtype:
    return np.dtype(str(dtype).removeprefix('torch.'))


def _torch_value(node: Any, values: Mapping[str, Any]) -> Any:
    """The value of a node that does not depend on the images, computed by PyTorch."""
    torch = import_torch()
    arguments, keywords = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
    with torch.no_grad():
        return node.target(*arguments, **keywords)


def _in_range(name: str, array: np.ndarray) -> np.ndarray:
    """A constant of a module, if JAX can hold its integers."""
    long = array.dtype.kind in 'iu' and array.dtype.itemsize == 8 and array.size
    if long and not jax.config.values['jax_enable_x64'] and abs(array.astype(float)).max() >= 2**31:
        raise InputError(
            f'{name} holds integers beyond 32 bits, which JAX has not by default: set JAX_ENABLE_X64=1 in '
            'the environment, or keep smaller ones'
        )
    return array


def _copied(module: Any) -> Any:
    """A copy of a module of PyTorch.

    Raises:
        InputError: It is TorchScript, or cannot be copied.
    """
    torch, name = import_torch(), type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f'{name} is TorchScript, which cannot be translated: give the torch.nn.Module that it was made '
            'from, with its state_dict'
        )
    # What a forward pass left in an attribute belongs to a graph of autograd, which cannot be copied.
    held = torch.utils._pytree.tree_leaves([list(vars(part).values()) for part in module.modules()])
    left = {id(t): t.detach().clone() for t in held if isinstance(t, torch.Tensor) and not t.is_leaf}
    try:
        return copy.deepcopy(module, left)
    except Exception as error:
        raise InputError(
            f'{name} cannot be copied ({first_line(error)}): build it anew, load its state_dict, and give it '
            'before it is called'
        ) from error


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f'image_shape={shape} is not (H, W, C), for example (32, 32, 3)')
    return shape
