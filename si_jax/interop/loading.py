"""Classifiers from PyTorch: a module, or a checkpoint of a named architecture."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from si_jax import models
from si_jax.errors import InputError
from si_jax.interop import torch_weights
from si_jax.interop.translated import Translated
from si_jax.outputs import Outputs

Classifier = Callable[[jax.Array], Outputs]


def is_torch_module(value: Any) -> bool:
    """Whether value is a torch.nn.Module, found out without importing torch."""
    return any(
        cls.__module__.startswith('torch.nn.modules.') and cls.__name__ == 'Module'
        for cls in type(value).__mro__
    )


def check_precision(module: Any) -> None:
    """Raises InputError for a torch.nn.Module in half precision or quantised: it is another."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        dtype = str(tensor.dtype).removeprefix('torch.')
        if dtype in ('float16', 'bfloat16'):
            raise InputError(
                f'the module computes in {dtype} ({name}), and its translation in float32, which is another '
                'network: give module.float(), and compare its clean accuracy with that of the original'
            )
    quantised = next((m for m in module.modules() if '.quantized.' in f'{type(m).__module__}.'), None)
    if quantised is not None:
        raise InputError(
            f'the module is quantised ({type(quantised).__name__}), which cannot be translated: give the '
            'floating module that it was made from, or si_jax.BlackBox(function, num_classes) for attacks '
            'without gradients'
        )


def load_torch_module(module: Any, image_shape: Sequence[int] | None = None) -> Classifier:
    """A classifier, images [B, H, W, C] in [0, 1] -> `Outputs`, that computes what a torch.nn.Module does.

    Args:
        module: Maps [B, C, H, W] in [0, 1] to logits [B, K].
        image_shape: (H, W, C) of the images that it will be given; None to translate it when it is first
            given some, once for each size.

    Raises:
        InputError: As `torch_graph.TorchClassifier`; or the module is in half precision or quantised.
    """
    if is_torch_module(module):
        check_precision(module)
    if image_shape is not None or not is_torch_module(module):
        return _translated(module, image_shape or (32, 32, 3))
    return _ForAnySize(module)


def _translated(module: Any, image_shape: Sequence[int]) -> Any:
    from si_jax.interop.torch_graph import TorchClassifier  # with all that only translations need

    return TorchClassifier(module, image_shape)


class _ForAnySize(Translated):
    """A module, translated for images of each size when it is first given some."""

    def __init__(self, module: Any):
        self._module = module
        self._made: dict[tuple[int, ...], Any] = {}

    def _for(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._made:
            # JAX may be tracing: the arrays of the module are no part of that.
            with jax.ensure_compile_time_eval():
                self._made[shape] = _translated(self._module, shape)
        return self._made[shape]

    def __call__(self, images: jax.Array) -> Outputs:
        return self._for(images.shape[1:])(images)

    def original(self, images: np.ndarray) -> np.ndarray:
        """`TorchClassifier.original`."""
        return self._for(images.shape[1:]).original(images)


def load_torch_checkpoint(
    path: str | pathlib.Path,
    arch: str,
    *,
    normalise: str = 'none',
    variant: str | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Classifier:
    """A classifier, images [B, H, W, C] in [0, 1] -> `Outputs`, from a checkpoint of a named architecture.

    The arguments and errors are those of `torch_weights.from_torch`, with a path for the state dict.
    `torch_weights.load` gives the network and its weights apart.
    """
    network = torch_weights.load(
        path, arch, normalise=normalise, variant=variant, num_classes=num_classes, image_shape=image_shape
    )
    return functools.partial(models.predict, network.model, network.variables)
