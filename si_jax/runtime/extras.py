"""Packages that the base installation leaves out, imported where they are needed."""

import importlib
from typing import Any

from si_jax.errors import InputError


def extra(module: str, title: str, name: str = '') -> Any:
    """A module of an optional package.

    Args:
        module: Its name.
        title: What a reader calls the package.
        name: The extra of this project that brings it; '' if none does.

    Raises:
        InputError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition('.')[0] != module.partition('.')[0]:
            raise  # it is there, and something that it needs is broken
        wanted = f'"si_jax[{name}]"' if name else module.partition('.')[0]
        raise InputError(f'{title} is not installed: pip install {wanted}') from error
