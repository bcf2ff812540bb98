"""Reading npz files that may come from anywhere.

No pickle is read, as it could run any code, and no array that its bytes cannot honestly hold. Names, sizes
and headers are read before any array is unpacked.
"""

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from si_jax.storage.files import check_regular

# Bytes of all arrays that are read, and how far those above `SUSPECT` may be compressed: pictures reach a few
# to one, zeros a thousand.
LARGEST, SUSPECT, COMPRESSION = 2**33, 2**26, 200
SHOWN = 8  # names in a message
PART = 2**24  # bytes that are read at once


class ArchiveError(ValueError):
    """A file is no npz file that can be trusted; the message says why."""


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


def headers(source: str | os.PathLike | bytes) -> dict[str, Header]:
    """What the arrays of an npz file are, by name; none is unpacked.

    Raises:
        FileNotFoundError, ArchiveError: As in `read`.
    """
    return _opened(
        source, None, lambda _, found: {name: head for name, (_, head) in found.items()}, maps=True
    )


def read(source: str | os.PathLike | bytes, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Args:
        source: The file, or its content.
        names: Which arrays; None for all.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: It is something else, damaged, or lacks an array; or an array holds Python objects, or
            claims a size that its bytes do not have; or the arrays would take more memory than the file can
            honestly hold.
    """
    return _opened(
        source,
        names,
        lambda archive, found: {name: _array(archive, info, name) for name, (info, _) in found.items()},
    )


def mapped(path: str | os.PathLike, names: Sequence[str], *, verify: bool = False) -> dict[str, np.ndarray]:
    """As `read`, but an array that the file holds uncompressed stays there, mapped into memory, read only.

    So it may be larger than memory. Its checksum is compared with `verify` alone, as that reads all of it.

    Raises:
        FileNotFoundError, ArchiveError: As in `read`.
    """

    def take(archive: zipfile.ZipFile, found: dict[str, Any]) -> dict[str, np.ndarray]:
        for info in (info for info, _ in found.values() if verify and _is_stored(info)):
            with archive.open(info) as stream:  # which compares them at its end
                while stream.read(PART):
                    pass
        return {
            name: _mapped(path, info) if _is_stored(info) else _array(archive, info, name)
            for name, (info, _) in found.items()
        }

    return _opened(path, names, take, maps=True)


def checksums(source: str | os.PathLike | bytes) -> dict[str, int]:
    """The CRC-32 that an npz file has of each array, whether compressed or not; none is unpacked.

    Raises:
        FileNotFoundError, ArchiveError: As in `read`.
    """
    return _opened(
        source, None, lambda _, found: {name: info.CRC for name, (info, _) in found.items()}, maps=True
    )


def _opened(
    source: str | os.PathLike | bytes,
    names: Sequence[str] | None,
    take: Callable[[Any, Any], Any],
    maps: bool = False,
) -> Any:
    """What `take` makes of an archive and of its members by name, each with its header, all checked.

    With `maps` members that are not compressed may be of any size.
    """
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else check_regular(source)
        with zipfile.ZipFile(file) as archive:
            found = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
            wanted = list(found if names is None else names)
            if missing := sorted(set(wanted) - found.keys()):
                known = sorted(found)
                more = f' and {len(known) - SHOWN} more' if len(known) > SHOWN else ''
                raise ArchiveError(f'has no array {missing[0]!r}, only {known[:SHOWN]}{more}')
            unpacked = (found[name] for name in wanted if not (maps and _is_stored(found[name])))
            if words := too_large(unpacked):
                raise ArchiveError(f'cannot be read as an npz file: {words}')
            return take(
                archive, {name: (found[name], _header(archive, found[name], name)) for name in wanted}
            )
    except (ArchiveError, FileNotFoundError):
        raise
    except Exception as error:  # zipfile, zlib, numpy and its parser of headers raise a dozen kinds
        raise ArchiveError(f'cannot be read as an npz file ({error or type(error).__name__})') from error


def _is_stored(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED


def too_large(members: Iterable[zipfile.ZipInfo]) -> str:
    """Why members of an archive are not unpacked, together or one by one; '' if they may be."""
    members = list(members)
    return next(filter(None, map(_bomb, [members, *([one] for one in members)])), '')


def _bomb(members: list[zipfile.ZipInfo]) -> str:
    size, packed = (sum(getattr(one, name) for one in members) for name in ('file_size', 'compress_size'))
    if size <= LARGEST and (size <= SUSPECT or size <= COMPRESSION * packed):
        return ''
    what = f'{len(members)} arrays' if len(members) > 1 else f'array {members[0].filename!r}'
    return (
        f'{what} would take {size} bytes, compressed to {packed}, where {LARGEST} and {COMPRESSION} to 1 are '
        'the limits'
    )


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype, from the start of an array's bytes."""
    version: Any = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ArchiveError(f'cannot be read as an npz file: an array has format {version}')
    return readers[version](stream)


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Header:
    """What an array says of itself, if it is of numbers and of this size."""
    with archive.open(info) as stream:
        shape, _, dtype = _read_header(stream)
        if dtype.hasobject:
            raise ArchiveError(
                f'holds Python objects as {name!r}, which could run any code: they are not read'
            )
        held = info.file_size - stream.tell()
        if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != held:
            raise ArchiveError(
                f'cannot be read as an npz file: array {name!r} says {dtype} {shape} and has {held} bytes'
            )
    return Header(shape, dtype)


def _mapped(path: str | os.PathLike, info: zipfile.ZipInfo) -> np.ndarray:
    """An uncompressed member, whose header has been checked."""
    with open(path, 'rb') as file:
        file.seek(info.header_offset + 26)  # of the local header, where the lengths of two fields are
        file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)
        shape, columns_first, dtype = _read_header(file)
        return np.memmap(path, dtype, 'r', file.tell(), shape, 'F' if columns_first else 'C')


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    with archive.open(info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ArchiveError(f'cannot be read as an npz file: bytes follow array {name!r}')
        return array
