"""Files of weights: an npz with the arrays of a network by path, and `about`, the JSON that rebuilds it.

    params/conv1/kernel, batch_stats/bn/mean, ...   the arrays
    about                                           UTF-8 bytes of {"format": 1, "config": {...}, "step": N}

NumPy reads them without pickle, so that a file can hold no code.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.storage import npz
from si_jax.storage.files import check_fields, write_atomic
from si_jax.storage.trees import leaves

FORMAT = 1
ABOUT = 'about'
SUFFIX = '.npz'


class Weights(NamedTuple):
    """What a file holds: the config of the run, the training step of the checkpoint, and arrays by path."""

    config: dict[str, Any]
    step: int
    arrays: dict[str, np.ndarray]


def write(path: str | os.PathLike, config: Mapping[str, Any], step: int, variables: Any) -> None:
    """Writes a network in one step, into a folder that exists; the config is in JSON's types."""
    about = json.dumps({'format': FORMAT, 'config': config, 'step': step}, sort_keys=True).encode()
    arrays = {name: np.asarray(array) for name, array in sorted(leaves(variables))}
    content = io.BytesIO()
    np.savez_compressed(content, **{ABOUT: np.frombuffer(about, np.uint8)}, **arrays)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())


def read(path: str | os.PathLike) -> Weights:
    """Reads a file of `write`.

    Raises:
        InputError: There is none, it is damaged or cut short, holds Python objects (a pickle), or is
            something else.
    """
    path = Path(path)
    try:
        arrays = npz.read(path)
    except FileNotFoundError:
        raise InputError(
            f'there is no file of weights {path}: python -m si_jax.zoo lists those that there are'
        ) from None
    except (OSError, npz.ArchiveError) as error:
        raise InputError(f'{path} {error}: get it again') from error
    try:
        about = json.loads(arrays.pop(ABOUT).tobytes())
        check_fields(about, {('format',): int, ('config',): dict, ('step',): int})
        found, config, step = about['format'], about['config'], about['step']
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f'{path} does not say what network it is of ({error}): only files of python -m si_jax.zoo add '
            'can be read'
        ) from error
    if found != FORMAT:
        raise InputError(f'{path} has format {found}, this version of si_jax reads format {FORMAT}')
    return Weights(config, step, arrays)


def sha256(path: Path) -> str:
    """The digest of a file.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
