"""Weights from the Hugging Face Hub: `hf:OWNER/NAME@REVISION`, wherever a file of weights is named.

    hf:owner/name@REVISION                         its model.safetensors
    hf:owner/name@REVISION/folder/weights.npz      another file
    hf:owner/name@REVISION/FILE#sha256=DIGEST      and only with these bytes

A file is downloaded once, into `si_jax/hub` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`), and
its SHA-256 is written beside it. Later uses compare with that: without a network, and with an error if the
bytes are others. `HF_ENDPOINT` names another server, such as a mirror. Only public files can be named; of a
private repository download the file yourself, and give its path.
"""

import hashlib
import http.client
import os
import re
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from si_jax.errors import InputError
from si_jax.storage.files import write_atomic

PREFIX = 'hf:'
DEFAULT_FILE = 'model.safetensors'
ENDPOINT = 'https://huggingface.co'
PART = 2**20  # bytes that are read at once
PATIENCE = 60  # seconds without a byte
_PART = r'[A-Za-z0-9][\w.-]*'  # of a name or path: none begins with a dot, so none leads out of a folder
_NAME = re.compile(
    rf'hf:(?P<repository>{_PART}/{_PART})@(?P<revision>{_PART})(?:/(?P<file>{_PART}(?:/{_PART})*))?'
    r'(?:#sha256=(?P<sha256>[0-9a-f]{64}))?',
    re.ASCII,
)


class Address(NamedTuple):
    """What a name says."""

    repository: str  # OWNER/NAME
    revision: str  # a commit, tag or branch
    file: str  # its path in the repository
    sha256: str  # '' where the name has none


def is_address(name: str | os.PathLike) -> bool:
    """Whether a name is one of the hub."""
    return str(name).startswith(PREFIX)


def parse(name: str) -> Address:
    """What a name says.

    Raises:
        InputError: It is not of the form above.
    """
    if (found := _NAME.fullmatch(name)) is None:
        raise InputError(
            f'{name!r} is not of the form hf:OWNER/NAME@REVISION/FILE#sha256=DIGEST, of which /FILE '
            f'({DEFAULT_FILE}) and the digest may be left out: REVISION is a commit, a tag or a branch such '
            'as main, and the digest 64 small hexadecimal digits'
        )
    fields = found.groupdict(default='')
    return Address(**fields | {'file': fields['file'] or DEFAULT_FILE})


def local(name: str | os.PathLike) -> Path:
    """The path of a file: that of the downloaded one for a name of the hub, downloaded if it was not yet.

    Raises:
        InputError: The name is wrong; there is no such file, or no way to its server; or its bytes are not
            those of the digest, be it that of the name, that of the server or that of the first download.
    """
    if not is_address(name):
        return Path(name)
    address = parse(str(name))
    place = _home() / address.repository.replace('/', '--') / address.revision / address.file
    pin = place.with_name(f'{place.name}.sha256')
    pinned = pin.read_text(encoding='utf-8').strip() if pin.is_file() else ''
    wanted = address.sha256 or pinned
    if address.sha256 and pinned and address.sha256 != pinned:
        remedy = f'give the one that you trust, or remove {pin.parent} to download it again'
        raise InputError(f'{name}: the file that was downloaded before has the SHA-256 {pinned}: {remedy}')
    if not place.is_file() or not pinned:
        place.parent.mkdir(parents=True, exist_ok=True)
        found = _download(address, place, wanted, str(name))
        write_atomic(pin, f'{found}\n')
        return place
    with open(place, 'rb') as file:
        found = hashlib.file_digest(file, 'sha256').hexdigest()
    _check(str(name), found, wanted, f'{place} was changed: remove it to download it again')
    return place


def _home() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'si_jax' / 'hub'


def _download(address: Address, place: Path, wanted: str, name: str) -> str:
    """Downloads a file to a place; returns its SHA-256, which is the wanted one if that is not ''."""
    server = (os.environ.get('HF_ENDPOINT') or ENDPOINT).rstrip('/')
    url = f'{server}/{address.repository}/resolve/{address.revision}/{address.file}'
    temporary = place.with_name(f'.{place.name}.{secrets.token_hex(8)}.tmp')
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer, open(temporary, 'xb') as file:
            while part := answer.read(PART):
                digest.update(part)
                size += file.write(part)
            length = answer.headers.get('Content-Length')
            if length is not None and int(length) != size:
                raise http.client.IncompleteRead(b'', int(length) - size)
            file.flush()
            os.fsync(file.fileno())
        remedy = 'give the digest of the file that you want, or another revision'
        _check(name, digest.hexdigest(), wanted, remedy)
        os.replace(temporary, place)
    except urllib.error.HTTPError as error:
        raise InputError(
            f'{name}: {server} has no such file for everyone ({url}: {error.code} {error.reason}): check '
            'owner, name, revision and file; of a private repository download the file, and give its path'
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f'{name} cannot be downloaded from {url} ({error}): try again, set HF_ENDPOINT to a server that '
            f'can be reached, or give the path of a file'
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def _check(name: str, found: str, wanted: str, remedy: str) -> None:
    if wanted and found != wanted:
        raise InputError(f'{name} has the SHA-256 {found}, and should have {wanted}: {remedy}')
