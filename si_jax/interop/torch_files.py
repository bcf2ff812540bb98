"""Reading and writing files of weights, safely: `.safetensors`, and files of torch.save.

A file of torch.save is a pickle, which could run any code as it is read. It is read with `weights_only=True`:
it may hold tensors, numbers, strings and containers of them, and is refused if it asks for anything else.
"""

import importlib
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from si_jax.errors import InputError

FORMATS = {'torch': '.pt', 'safetensors': '.safetensors'}
# How torch words what it has refused.
_REFUSED = re.compile(r'(?:\bGLOBAL|unrecognized function) ([\w.]+)')


def import_torch() -> Any:
    """The torch package; InputError if it is not installed."""
    return _import('torch', 'PyTorch')


def _import(module: str, title: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f'{title} is not installed: pip install "si_jax[torch]"') from error


def read(path: str | pathlib.Path) -> Any:
    """What a file of weights holds: for `.safetensors` a dict of NumPy arrays by name, else whatever
    torch.save was given, with its tensors on the CPU.

    Raises:
        InputError: If there is no such file, it is not a file of torch.save or safetensors, is truncated, or
            holds anything but plain data.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f'{path} is not a file')
    if path.suffix == '.npz':
        raise InputError(
            f'{path} is an npz file, not one of PyTorch: give weights of this library as --model={path}, and '
            'other arrays as a dict of tensors that torch.save wrote'
        )
    return _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = _import('safetensors.numpy', 'safetensors')
    try:
        return safetensors.load_file(path)
    except Exception as error:  # The library raises errors of several types for a damaged file.
        raise InputError(f'{path} is damaged, or not a safetensors file: {error}') from error


def _read_torch(path: pathlib.Path) -> Any:
    torch = import_torch()
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # A damaged file can fail in torch, zipfile, pickle or struct.
        message = str(error)
        if 'TorchScript' in message:
            raise InputError(
                f'{path} is a TorchScript archive, which holds code: save the state_dict() of its model'
            ) from error
        refused = _REFUSED.search(message)
        if refused:
            raise InputError(
                f'{path} is refused: it asks for {refused.group(1)}, and a pickle that may ask for more than '
                f'tensors can run any code. If you trust its author, load it with torch.load(..., '
                f'weights_only=False) on a machine you can spare, and save its state_dict alone'
            ) from error
        raise InputError(
            f'{path} is truncated or damaged, or not a file of torch.save ({type(error).__name__}: '
            f'{message.splitlines()[0] if message else "no message"})'
        ) from error


def write(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name: as safetensors if the path ends so, else as torch.save does for a state_dict."""
    path = pathlib.Path(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == '.safetensors':
        _import('safetensors.numpy', 'safetensors').save_file(arrays, path)
    else:
        torch = import_torch()
        torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, path)


def check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses NaN and infinity, naming the arrays that hold them."""
    bad = {name: int(np.sum(~np.isfinite(array))) for name, array in arrays.items()}
    found = [f'{name} ({count} of {arrays[name].size} values)' for name, count in bad.items() if count]
    if found:
        raise InputError(
            f'{source} holds values that are NaN or infinite, in {listed(found)}: its training diverged, or '
            f'the file is damaged'
        )


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names joined by commas; beyond `limit`, how many more there are."""
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
