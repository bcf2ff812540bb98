"""Files of weights: an npz with the arrays of a network by path, and `about`, the JSON that rebuilds it.

    params/conv1/kernel, batch_stats/bn/mean, ...   the arrays
    about                                           UTF-8 bytes of {"format": 1, "config": {...}, "step": N}

A network that started from other weights has their record there too, as "init_from".

A safetensors file holds the same arrays, and `about` in its metadata. NumPy reads npz files without pickle,
so that neither can hold code. `si_jax.storage.hub` says how one is named that lies on the Hugging Face Hub.
"""

import hashlib
import importlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.storage import npz
from si_jax.storage.files import LARGEST_JSON, check_fields, parse_json, write_atomic
from si_jax.storage.trees import leaves

FORMAT = 1
ABOUT = 'about'
SUFFIX, SAFETENSORS = '.npz', '.safetensors'


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
        path: The file.
        config: That of the run.
        step: The training step of the checkpoint.
        headers: Shapes and dtypes of the arrays by path, which nothing was unpacked for.
        init_from: The record of the weights that the run started from; {} for random ones.
    """

    path: Path
    config: dict[str, Any]
    step: int
    headers: dict[str, npz.Header]
    init_from: dict[str, Any]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by path, unpacked now; InputError as in `read`."""
        if self.path.suffix == SAFETENSORS:
            return _safetensors(self.path)[0]
        return _reading(self.path, lambda: npz.read(self.path, list(self.headers)))


def write(
    path: str | os.PathLike,
    config: Mapping[str, Any],
    step: int,
    variables: Any,
    init_from: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network in one step, into a folder that exists; config and record are in JSON's types."""
    content = {'format': FORMAT, 'config': config, 'step': step}
    about = json.dumps(content | ({'init_from': init_from} if init_from else {}), sort_keys=True).encode()
    arrays = {name: np.asarray(array, order='C') for name, array in sorted(leaves(variables))}
    if Path(path).suffix == SAFETENSORS:
        write_atomic(path, _library().save(arrays, {ABOUT: about.decode()}))
        return
    file = io.BytesIO()
    np.savez_compressed(file, **{ABOUT: np.frombuffer(about, np.uint8)}, **arrays)  # type: ignore[arg-type]
    write_atomic(path, file.getvalue())


def read(path: str | os.PathLike) -> Weights:
    """Reads a file of `write`.

    Raises:
        InputError: There is none, it is damaged or cut short, holds Python objects (a pickle), or is
            something else.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS:
        arrays, metadata = _safetensors(path)
        headers = {name: npz.Header(array.shape, array.dtype) for name, array in arrays.items()}
        content = metadata.get(ABOUT, '').encode()
    else:
        headers = _reading(path, lambda: npz.headers(path))
        shape, dtype = headers.pop(ABOUT, npz.Header((0,), np.dtype(np.uint8)))
        small = dtype == np.uint8 and 0 < math.prod(shape) < LARGEST_JSON
        content = _reading(path, lambda: npz.read(path, [ABOUT])[ABOUT].tobytes()) if small else b''
    try:
        about = parse_json(content)
        check_fields(about, {('format',): int, ('config',): dict, ('step',): int})
        found, config, step = about['format'], about['config'], about['step']
        check_fields({'init_from': {}, **about}, {('init_from',): dict})
    except ValueError as error:
        raise InputError(
            f'{path} does not say what network it is of ({error}): only files of python -m si_jax.cli.zoo '
            'add, and of python -m si_jax.cli.export --format=jax, can be read so; weights of PyTorch are '
            '--torch_checkpoint=FILE --arch=NAME'
        ) from error
    if found != FORMAT:
        raise InputError(f'{path} has format {found}, this version of si_jax reads format {FORMAT}')
    return Weights(path, config, step, headers, about.get('init_from', {}))


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FileNotFoundError:
        raise InputError(
            f'there is no file of weights {path}: python -m si_jax.cli.zoo lists those that there are'
        ) from None
    except (OSError, npz.ArchiveError) as error:
        raise InputError(f'{path} {error}: get it again') from error


def is_ours(path: Path) -> bool:
    """Whether a safetensors file was written by `write`, and not for PyTorch; InputError as in `read`."""
    return path.suffix == SAFETENSORS and ABOUT in _safetensors(path)[1]


def _library() -> Any:
    try:
        return importlib.import_module('safetensors.numpy')
    except ImportError as error:
        raise InputError('safetensors is not installed: pip install safetensors') from error


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    if not path.is_file():
        raise InputError(f'there is no file of weights {path}: give one that is there')
    _library()
    from safetensors import safe_open

    try:
        with safe_open(path, 'numpy') as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            return arrays, file.metadata() or {}
    except Exception as error:  # the library raises errors of several types for a damaged file
        raise InputError(f'{path} is damaged, or not a safetensors file ({error}): get it again') from error


def sha256(path: Path) -> str:
    """The digest of a file.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
