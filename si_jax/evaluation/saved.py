"""An evaluation on disk, so that one that was interrupted goes on where it was.

The folder holds one file for each finished unit of work (a run of an attack, or a part of the images in it)
and says which evaluation they belong to. The evaluation is the same program after a restart: it asks for its
units in the same order and gets the finished ones from the folder, so the result is identical.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.checks import disagreement
from si_jax.files import write_atomic, write_json

Arrays = dict[str, Any]  # NumPy arrays and numbers


class Saved:
    """The finished units of an evaluation; without a folder it remembers nothing.

    Args:
        folder: Where they lie. Made when the first one is written.
        identity: What the evaluation is made of, in JSON's types: it must be the same to go on.
        logits: [N, K], of the clean images: the same model gives them again, to rounding.

    Raises:
        InputError: The folder holds the units of another evaluation; the message names the differences.
    """

    def __init__(self, folder: str | os.PathLike | None, identity: dict[str, Any], logits: np.ndarray):
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        path = self._folder / 'identity.json'
        try:
            before = json.loads(path.read_text())
        except FileNotFoundError:
            if self._folder.exists() and any(self._folder.iterdir()):
                raise InputError(
                    f'{str(folder)!r} is no state of an evaluation: give another place'
                ) from None
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write('clean', {'logits': logits})
            write_json(path, identity)
            return
        identity = json.loads(json.dumps(identity))
        differences = [
            f'{name} was {before.get(name)!r} and is {identity.get(name)!r}'
            for name in sorted(before.keys() | identity.keys())
            if before.get(name) != identity.get(name)
        ]
        if not differences:
            there = self._read('clean')
            if there is None or there['logits'].shape != logits.shape:
                differences = ['the logits of the clean images cannot be compared']
            elif difference := disagreement(logits, there['logits']):
                differences = [f'the model differs, by {difference} on the clean images']
        if differences:
            raise InputError(
                f'{str(folder)!r} holds the state of another evaluation: {"; ".join(differences)}. Go on '
                'with that one, choose another output, or remove the folder'
            )

    def remember(self, unit: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a unit: from the folder, or computed and written there."""
        arrays = self._read(unit)
        if arrays is None:
            arrays = compute()
            self._write(unit, arrays)
        return arrays

    def _read(self, unit: str) -> Arrays | None:
        if self._folder is None:
            return None
        try:
            content = (self._folder / f'{unit}.npz').read_bytes()
            return dict(np.load(io.BytesIO(content)))
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, zipfile.BadZipFile):
            return None  # damaged: it is computed again

    def _write(self, unit: str, arrays: Arrays) -> None:
        if self._folder is not None:
            content = io.BytesIO()
            np.savez(content, **arrays)
            write_atomic(self._folder / f'{unit}.npz', content.getvalue())


def digest(*arrays: Any) -> str:
    """A hash of the values, shapes and types of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        array = np.ascontiguousarray(array)
        total.update(f'{array.dtype} {array.shape} '.encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def remove(folder: str | os.PathLike) -> None:
    """Removes the state, once the result is safe."""
    shutil.rmtree(folder, ignore_errors=True)
