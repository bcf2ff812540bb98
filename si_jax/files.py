"""Writing small files so that a reader sees the old content or the new one, never half of it."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces a file in one step, and returns once the content is on the disk.

    Args:
        path: The file. Its folder must exist.
        content: Text (written as UTF-8) or bytes.

    Raises:
        OSError: The content could not be written. The old file is then still there, whole.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replaces a file by `value` as indented JSON, in one step.

    Raises:
        TypeError: `value` is not made of JSON's types. Nothing is written.
        ValueError: `value` holds NaN or infinity, which JSON has no word for. Nothing is written.
        OSError: As in `write_atomic`.
    """
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + '\n')
