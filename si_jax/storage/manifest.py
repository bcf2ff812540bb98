"""A manifest: the digests of all files in a folder, which says that the folder is whole.

It is written last, so a folder without one was cut short. Its first line holds its own digest. A digest tells
accidents, not intentions: whoever writes a manifest can give it one, so what it says is checked before use.

`read` and `damage` are for any folder. `read_checkpoint` and `checkpoint_damage` also ask for what the
manifest of a checkpoint says beyond the digests: its step, its metric, its time and the shapes of its arrays.
"""

import datetime
import hashlib
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from si_jax.storage.files import check_regular, parse_json, write_atomic

NAME = 'manifest.json'
FORMAT = 1
LARGEST = 2**36  # numbers in one array of a checkpoint


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a folder whose other files are finished.

    Args:
        folder: All files in it, at any depth, are listed with size and SHA-256.
        content: What else the manifest says, in JSON's types.

    Raises:
        OSError: A file could not be read, or the manifest not be written. The folder has none then.
    """
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != NAME)
    digests = {path.relative_to(folder).as_posix(): [path.stat().st_size, _digest(path)] for path in files}
    write_atomic(folder / NAME, _serialise({'format': FORMAT, **content, 'files': digests}))


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None when there is none, or not byte for byte what was written."""
    try:
        written = check_regular(folder / NAME).read_bytes()
        content = parse_json(written)['manifest']
        return content if _serialise(content) == written and _is_one(content) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_one(content: Any) -> bool:
    """Whether it has a format and names files inside of the folder: a digest proves no good will."""
    if not isinstance(content, dict) or type(content.get('format')) is not int:
        return False
    files = content.get('files')
    if content['format'] != FORMAT or not isinstance(files, dict):
        return content['format'] != FORMAT
    for name, entry in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or '..' in path.parts or '\0' in name:
            return False
        if not isinstance(entry, list) or list(map(type, entry)) != [int, str]:
            return False
    return True


def damage(folder: Path) -> str | None:
    """What is wrong with a folder, None when every listed file is as it was when the manifest was written."""
    if not (folder / NAME).is_file():
        return f'it has no {NAME}, so writing it was cut short or still goes on'
    if (content := read(folder)) is None:
        return f'its {NAME} is damaged'
    if content['format'] != FORMAT:
        return f'it has format {content["format"]}, this version of si_jax reads format {FORMAT}'
    for name, (size, digest) in content['files'].items():
        file = folder / name
        try:
            if not file.is_file() and file.exists():
                return f'{name} is no file'
            if (found := file.stat().st_size) != size:
                return f'{name} has {found} bytes instead of {size}'
            if _digest(file) != digest:
                return f'the SHA-256 of {name} is not that of the file that was saved'
        except FileNotFoundError:
            return f'{name} is missing'
        except OSError as error:
            return f'{name} cannot be read ({error.strerror})'
    return None


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, None where there is none, or it cannot be one or is of another step."""
    content = read(folder)
    return content if content and _describes_checkpoint(content) and not _renamed(folder, content) else None


def checkpoint_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing."""
    if found := damage(folder):
        return found
    if not (content := read(folder)) or not _describes_checkpoint(content):
        return f'its {NAME} does not describe a checkpoint'
    return _renamed(folder, content)


def _renamed(folder: Path, content: dict[str, Any]) -> str | None:
    """What is wrong with the name of the folder of a checkpoint, None if nothing."""
    if folder.name.removesuffix('.replaced') == (step := str(content['step'])):
        return None
    return f'its {NAME} is of step {step}, so the folder was renamed or copied: call it {step} to use it'


def _describes_checkpoint(content: dict[str, Any]) -> bool:
    """Whether all that is read from a manifest is there, and arrays are numbers of a size that can be."""
    try:
        metric, arrays = content['metric'], content['arrays']
        if type(content['step']) is not int or not isinstance(content['metadata'], dict):
            return False
        if metric is not None and not (type(metric) in (int, float) and math.isfinite(metric)):
            return False
        if datetime.datetime.fromisoformat(content['time']).tzinfo is None:
            return False
        for shape, name in arrays.values():
            dtype = np.dtype(name)
            if str(dtype) != name or dtype.hasobject or dtype.names or dtype.itemsize > 16:
                return False
            if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) > LARGEST:
                return False
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return True


def _serialise(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, indent=1).encode()
    return b'{"sha256": "%s", "manifest":\n%s}\n' % (hashlib.sha256(body).hexdigest().encode(), body)


def _digest(file: Path) -> str:
    with open(file, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()
