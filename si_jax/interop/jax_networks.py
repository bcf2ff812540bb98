"""Networks of Flax and Equinox as functions of images, in evaluation mode."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from si_jax.errors import InputError

# Arguments of a linen network's __call__ by which it is told to predict, and not to train.
PREDICTING = {
    'train': False,
    'training': False,
    'is_training': False,
    'deterministic': True,
    'use_running_average': True,
}


def as_function(value: Any) -> Callable[..., Any] | None:
    """A function of images [B, H, W, C] for a network of linen or Equinox; None for anything else.

    Raises:
        InputError: It is a linen module without its variables.
    """
    if type(value) is tuple and len(value) == 2 and isinstance(value[0], nn.Module):
        return of_linen(*value)
    if isinstance(value, nn.Module) and value.scope is None:
        raise InputError(
            f'{type(value).__name__} is a flax.linen module without variables: give the pair '
            '(module, variables), as module.apply takes them'
        )
    return of_equinox(value) if is_equinox_module(value) else None


def of_linen(module: nn.Module, variables: Any) -> Callable[[jax.Array], Any]:
    """`module.apply` with its variables; arguments of `PREDICTING` that it has are given."""
    if isinstance(variables, Mapping) and variables and 'params' not in variables:
        raise InputError(
            f'the variables of {type(module).__name__} have {", ".join(map(str, variables))} and no params: '
            "give (module, {'params': params}), with 'batch_stats' beside where there are any"
        )
    known = inspect.signature(type(module).__call__).parameters
    predicting: dict[str, Any] = {name: value for name, value in PREDICTING.items() if name in known}
    return lambda images: module.apply(variables, images, **predicting)


def is_equinox_module(value: Any) -> bool:
    """Whether value is an equinox.Module, found out without importing equinox."""
    return any(
        cls.__module__.startswith('equinox.') and cls.__name__ == 'Module' for cls in type(value).__mro__
    )


def of_equinox(module: Any) -> Callable[[jax.Array], Any]:
    """An equinox.Module in inference mode; as its layers do, it takes one image [C, H, W]."""
    import equinox

    predicting = equinox.nn.inference_mode(module)
    return lambda images: jax.vmap(predicting)(jnp.transpose(images, (0, 3, 1, 2)))
