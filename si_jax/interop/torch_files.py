"""Reading and writing files of weights, safely: `.safetensors`, and files of torch.save.

A file of torch.save is a pickle, which could run any code as it is read. It is read with `weights_only=True`:
it may hold tensors, numbers, strings and containers of them, and is refused if it asks for anything else.
"""

import contextlib
import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from si_jax.errors import InputError
from si_jax.runtime.extras import extra
from si_jax.storage import hub, npz

FORMATS = {'torch': '.pt', 'safetensors': '.safetensors'}
# How torch words what it has refused.
_REFUSED = re.compile(r'(?:\bGLOBAL|unrecognized function) ([\w.]+)')


def import_torch() -> Any:
    """The torch package; InputError if it is not installed."""
    return extra('torch', 'PyTorch', 'torch')


def read(path: str | pathlib.Path) -> Any:
    """What a file of weights holds: for `.safetensors` a dict of NumPy arrays by name, else whatever
    torch.save was given, with its tensors on the CPU. `hf:OWNER/NAME@REVISION/FILE` is a path too, see
    `si_jax.storage.hub`.

    Raises:
        InputError: If there is no such file, it is not a file of torch.save or safetensors, is truncated, or
            holds anything but plain data.
    """
    path = hub.local(path)
    if not path.is_file():
        raise InputError(f'{path} is not a file')
    if path.suffix == '.npz':
        raise InputError(
            f'{path} is an npz file, not one of PyTorch: give weights of this library as --model={path}, and '
            'other arrays as a dict of tensors that torch.save wrote'
        )
    return _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    safetensors = extra('safetensors.numpy', 'safetensors', 'torch')
    try:
        return safetensors.load_file(path)
    except Exception as error:  # The library raises errors of several types for a damaged file.
        raise InputError(f'{path} is damaged, or not a safetensors file: {error}') from error


def _read_torch(path: pathlib.Path) -> Any:
    torch = import_torch()
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if words := npz.too_large(archive.infolist()):
                raise InputError(f'{path} is refused: {words}; get the file from its author again')
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


def as_arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors or arrays of a state dict as float arrays: float64 stays, all else becomes float32.

    Raises:
        InputError: One is complex, quantised, sparse, nested or without values; or they would take far more
            memory than the file holds values for, as a tensor does that repeats one value.
    """
    for name, value in state.items():
        if words := _unfit(value):
            raise InputError(f'{name!r} {words}')
    claimed = {name: _bytes_of(value) for name, value in state.items()}
    held = sum({key: size for key, size in map(_memory, state.values())}.values())
    if sum(claimed.values()) > held + max(npz.SUSPECT, held):
        name = max(claimed, key=claimed.__getitem__)
        raise InputError(
            f'its tensors would take {sum(claimed.values())} bytes, and it holds {held}: values are '
            f'repeated, as in {name!r}, {list(state[name].shape)}. Save contiguous tensors, none expanded'
        )
    return {name: _as_array(name, value) for name, value in state.items()}


def _unfit(value: Any) -> str:
    """Why a tensor or an array cannot be a network's weights, with the remedy; '' if it can."""
    if not hasattr(value, 'detach'):
        kind = np.asarray(value).dtype
        fit = kind.kind in 'fiub' or jnp.issubdtype(kind, jnp.floating)
        return '' if fit else f'is of {kind}, and weights are real numbers: save them as float32'
    if value.is_quantized:
        return f'is quantised ({value.dtype}): save its dequantize(), or better the network before'
    if value.is_nested or str(value.layout) != 'torch.strided':
        return f'is no dense tensor ({value.layout}{", nested" * value.is_nested}): save its to_dense()'
    if value.is_meta:
        return 'is on the device meta, which holds no values: save it from the device it was trained on'
    if value.is_complex():
        return f'is complex ({value.dtype}), and networks here are real: save its real part if that is meant'
    return ''


def _bytes_of(value: Any) -> int:
    return value.numel() * value.element_size() if hasattr(value, 'detach') else np.asarray(value).nbytes


def _memory(value: Any) -> tuple[Any, int]:
    """What tells the memory of a tensor from that of others, and its bytes."""
    if not hasattr(value, 'detach'):
        return id(value), np.asarray(value).nbytes
    storage = value.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        if hasattr(value, 'detach'):
            value = value.detach().cpu()
            value = (value.double() if str(value.dtype) == 'torch.float64' else value.float()).numpy()
        value = np.asarray(value)
        return value if value.dtype == np.float64 else value.astype(np.float32)
    except (RuntimeError, TypeError, ValueError) as error:  # dtypes that PyTorch can store and not convert
        raise InputError(
            f'{name!r} is of {value.dtype}, which cannot be read as numbers ({str(error).splitlines()[0]}): '
            'save it as float32'
        ) from error


def write(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name: as safetensors if the path ends so, else as torch.save does for a state_dict."""
    path = pathlib.Path(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == '.safetensors':
        extra('safetensors.numpy', 'safetensors', 'torch').save_file(arrays, path)
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


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Names joined by commas; beyond `limit`, how many more there are."""
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
