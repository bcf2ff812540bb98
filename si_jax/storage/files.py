"""Writing small files so that a reader sees the old content or the new one, never half of it."""

import errno
import glob
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What the system says where a disk, a quota or a limit on the size of files (ulimit -f) has no room.
NO_ROOM = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
LARGEST_JSON = 2**28  # bytes; those that commands write have some thousand


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces a file in one step, and returns once the content is on the disk.

    It is written under a name beside it that cannot be guessed.

    Args:
        path: The file. Its folder must exist.
        content: Text (written as UTF-8) or bytes.

    Raises:
        OSError: The content could not be written. The old file is then still there, whole.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.tmp')
    # Made here or not at all: a file or a link that somebody put there is not written to.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(descriptor, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # of a write, which knows no names
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike, name: str = '') -> None:
    """Removes what writers left in a folder that were killed in `write_atomic`.

    Call it only where no other process writes these files.

    Args:
        folder: The folder; it may be missing.
        name: Only what was to become files of this name, with whatever ending; '' for all.
    """
    for path in Path(folder).glob(f'.{glob.escape(name)}.*.tmp' if name else '.*.tmp'):
        if is_leftover(path):
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file is what a writer left that was killed in `write_atomic`."""
    return bool(re.fullmatch(r'\..+\.[0-9a-f]{16}\.tmp', path.name)) and path.is_file()


def check_regular(path: str | os.PathLike) -> Path:
    """The path of a file that may be opened: a pipe or a device might never end.

    Raises:
        OSError: It cannot be found, or is a folder.
        ValueError: It is a pipe or a device.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ValueError('it is a pipe or a device, and no file')
    return path


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds that may come from anywhere.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON that `parse_json` takes, too large, or no file but a pipe or a device.
    """
    path = check_regular(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f'it has {size} bytes, more than {LARGEST_JSON}')
    return parse_json(path.read_bytes())


def parse_json(content: bytes) -> Any:
    """What JSON says, with numbers that can be computed with and text that can be written.

    Raises:
        ValueError: It is no JSON, nested too deep, or holds NaN, an infinite number, a whole number of more
            than 64 bits, or half of a surrogate pair.
    """
    try:
        value = json.loads(content, parse_constant=_number, parse_float=_number, parse_int=_number)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError('it is nested too deep') from None
    except UnicodeEncodeError as error:
        raise ValueError(f'it holds text that cannot be written, {error.object[error.start]!r}') from None
    return value


def _number(text: str) -> int | float:
    """The number that JSON writes so."""
    if text.lstrip('-').isdecimal():
        if len(text) <= 20 and -(2**63) <= int(text) < 2**64:
            return int(text)
    elif math.isfinite(value := float(text)):
        return value
    raise ValueError(f'it holds {text[:30]}, which is no number of 64 bits')


def check_fields(content: Any, kinds: Mapping[tuple[str, ...], type]) -> None:
    """Checks what a JSON file holds.

    Args:
        content: From `read_json`.
        kinds: For each path of names, of which kind the value must be; float includes whole numbers.

    Raises:
        ValueError: A field is missing or of another kind; the first one is named.
    """
    for path, kind in kinds.items():
        value = content
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                raise ValueError(f'{name!r} is missing')
            value = value[name]
        wanted = (float, int) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f'{".".join(path)} is {str(value)[:50]!r}')


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replaces a file by `value` as indented JSON, in one step.

    Raises:
        TypeError: `value` is not made of JSON's types. Nothing is written.
        ValueError: `value` holds NaN or infinity, which JSON has no word for. Nothing is written.
        OSError: As in `write_atomic`.
    """
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def no_room(error: BaseException | None) -> int:
    """The code of `NO_ROOM` that an error or one behind it speaks of, or 0. TensorStore's have no errno."""
    while error is not None:
        for code, words in NO_ROOM.items():
            if (isinstance(error, OSError) and error.errno == code) or words in str(error):
                return code
        error = error.__cause__ or error.__context__
    return 0
