"""Reading npz files that may come from anywhere.

No pickle is read, as it could run any code, and no array that its bytes cannot honestly hold.
"""

import io
import math
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Bytes of one array, and how far one above `SUSPECT` may be compressed: pictures reach a few to one, zeros a
# thousand.
LARGEST, SUSPECT, COMPRESSION = 2**33, 2**26, 200


class ArchiveError(ValueError):
    """A file is no npz file that can be trusted; the message says why."""


def read(source: str | os.PathLike | bytes, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Args:
        source: The file, or its content.
        names: Which arrays; None for all.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: It is something else, damaged, or lacks an array; or an array holds Python objects, or
            claims a size that its bytes do not have.
    """
    try:
        with zipfile.ZipFile(
            io.BytesIO(source) if isinstance(source, bytes) else _regular(source)
        ) as archive:
            found = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
            if missing := sorted(set(found if names is None else names) - found.keys()):
                raise ArchiveError(f'has no array {missing[0]!r}, only {sorted(found)}')
            return {name: _array(archive, found[name], name) for name in (found if names is None else names)}
    except (ArchiveError, FileNotFoundError):
        raise
    except Exception as error:  # zipfile, zlib, numpy and its parser of headers raise a dozen kinds
        raise ArchiveError(f'cannot be read as an npz file ({error or type(error).__name__})') from error


def _regular(source: str | os.PathLike) -> Path:
    path = Path(source)
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
        raise ArchiveError('cannot be read as an npz file: it is a folder, a pipe or a device')
    return path


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    size = info.file_size
    if size > LARGEST or (size > SUSPECT and size > COMPRESSION * info.compress_size):
        raise ArchiveError(
            f'cannot be read as an npz file: array {name!r} would take {size} bytes, compressed to '
            f'{info.compress_size}, where {LARGEST} and {COMPRESSION} to 1 are the limits'
        )
    with archive.open(info) as stream:
        version: Any = np.lib.format.read_magic(stream)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ArchiveError(f'cannot be read as an npz file: array {name!r} has format {version}')
        shape, _, dtype = headers[version](stream)
        if dtype.hasobject:
            raise ArchiveError(
                f'holds Python objects as {name!r}, which could run any code: they are not read'
            )
        held = size - stream.tell()
        if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != held:
            raise ArchiveError(
                f'cannot be read as an npz file: array {name!r} says {dtype} {shape} and has {held} bytes'
            )
    with archive.open(info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ArchiveError(f'cannot be read as an npz file: bytes follow array {name!r}')
        return array
