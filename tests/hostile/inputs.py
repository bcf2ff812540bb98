"""Malformed inputs, made from valid ones by hypothesis: bytes, archives, JSON and words."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

# What a pickle, an expression or a command in any of the inputs would do if it were run.
MARKER = Path('/tmp/si_jax-hostile-input-was-executed')
COMMAND = f'touch {MARKER}'


class Exploit:
    def __reduce__(self):
        import os

        return os.system, (COMMAND,)


WORDS = (
    '', ' ', '.', '..', '../../etc/passwd', '/etc/passwd', 'a/../../b', '~root', 'C:\\x', '\0', 'x\0y', '\n',
    '\ud800', '\u202e', 'é' * 300, '-rf', '--help', '${HOME}', f'$({COMMAND})', f'`{COMMAND}`', f';{COMMAND}',
    f'__import__("os").system("{COMMAND}")', f'!!python/object/apply:os.system ["{COMMAND}"]', '{{7*7}}',
    '%s%n', 'nan', 'inf', '-inf', '1e999', '-1', '0', '9' * 5000, '0x10', '1_000', 'None', 'True', '[]', '{}',
    '(' * 200,
    '[' * 2000, 'null', 'best/../1', '1/../../x', '../1', 'é', '٣',
)  # fmt: skip
words = st.sampled_from(WORDS) | st.text(max_size=30)
numbers = st.sampled_from((
    0, -1, -(2**31), 2**31, 2**63, 10**30, 0.0, -0.0, 1e-320, 1e308, float('inf'), float('-inf'),
    float('nan'), True,
))  # fmt: skip
leaves = st.none() | st.booleans() | numbers | words
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)


def changed_bytes(draw: Any, content: bytes) -> bytes:
    """Some bytes flipped, cut out, repeated, put in or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        place, length = draw(st.integers(0, max(0, len(content) - 1))), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(('flip', 'cut', 'repeat', 'insert', 'truncate')))
        if kind == 'flip' and content:
            content = (
                content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
            )
        elif kind == 'cut':
            content = content[:place] + content[place + length :]
        elif kind == 'repeat':
            content = content[: place + length] + content[place:]
        elif kind == 'insert':
            content = content[:place] + draw(st.binary(min_size=1, max_size=64)) + content[place:]
        else:
            content = content[:place]
    return content


# A value of each kind that a field may be and must not: none of them may end in a traceback.
KINDS = (
    None, True, -1, 0, 2**63, 10**400, 1e308, float('inf'), float('nan'), '', 'x\ny', '\0', '\ud800', [],
    [[1]], {}, {'a': [None]},
)  # fmt: skip


def paths(content: Any) -> Iterator[tuple]:
    """The way to each value in JSON, of lists to the first alone."""
    yield ()
    items = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in items:
        for path in paths(value) if isinstance(value, dict | list) else ((),):
            yield (key, *path)


def replaced(content: Any, path: tuple, value: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = replaced(content[path[0]], path[1:], value)
    return copy


def changed_json(draw: Any, content: Any) -> Any:
    """A copy in which one value or key, at any depth, is another, missing, or wrapped a thousand times."""
    path, here = [], content
    while isinstance(here, dict | list) and here and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        path.append(key)
        here = here[key]
    copy = json.loads(json.dumps(content))
    if not path:
        return draw(values)
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    kind = draw(st.sampled_from(('replace', 'replace', 'remove', 'rename', 'wrap')))
    if kind == 'remove':
        del parent[path[-1]]
    elif kind == 'rename' and isinstance(parent, dict):
        parent[draw(words)] = parent.pop(path[-1])
    elif kind == 'wrap':
        parent[path[-1]] = [[here]]
    else:
        parent[path[-1]] = draw(values)
    return copy


def header(
    descr: str, order: str, shape: str, version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """The head of a .npy file that says this, whether it is true or not."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    size = struct.pack('<H' if version == (1, 0) else '<I', len(text) if length is None else length)
    return b'\x93NUMPY' + bytes(version) + size + text


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


DESCRIPTIONS = (
    "'|u1'", "'<i8'", "'|O'", "'<f8'", "'|V1000000000'", "'<U99999999'", "[('a', '|u1'), ('b', '|O')]", "'x'",
    "''", "__import__('os')", '[' * 90 + ']' * 90, "('|u1', (3, 3))", "{'names': ['a']}", '3', "'<M8[ns]'",
)  # fmt: skip
SHAPES = (
    '(3, 32, 32, 3)', '(1000000000000000000,)', '(-1,)', '(-3, -32, 32, 3)', '(2**70,)', '(3.0, 32, 32, 3)',
    '()', '(0,)', '(4294967296, 4294967296)', '3', "('3',)", '(True, 32, 32, 3)', '(' * 120 + ')' * 120,
    '(3, 32, 32)',
)  # fmt: skip


def archive(draw: Any, arrays: dict[str, np.ndarray], whole: bytes) -> bytes:
    """An npz file that is not what it seems: of these arrays, or of the bytes of a whole one."""
    kind = draw(st.sampled_from((
        'bytes', 'bytes', 'header', 'header', 'pickle', 'objects', 'member', 'names', 'twice', 'encrypted',
        'method', 'sizes', 'text', 'nested',
    )))  # fmt: skip
    name = draw(st.sampled_from(sorted(arrays)))
    if kind == 'bytes':
        return changed_bytes(draw, whole)
    if kind == 'pickle':
        return pickle.dumps(Exploit())
    if kind == 'text':
        return draw(words).encode(errors='surrogatepass') + draw(st.binary(max_size=50))
    members = {key: npy(array) for key, array in arrays.items()}
    named = {key: f'{key}.npy' for key in members}
    if kind == 'header':
        version = draw(st.sampled_from(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9))))
        length = draw(
            st.sampled_from((None, None, 0, 10, 2**15, 2**16 - 1) if version == (1, 0) else (None, 2**32 - 1))
        )
        order = draw(st.sampled_from(('False', 'False', 'True', '3', 'None', "'x'")))
        head = header(
            draw(st.sampled_from(DESCRIPTIONS)), order, draw(st.sampled_from(SHAPES)), version, length
        )
        body = members[name][128:] if draw(st.booleans()) else pickle.dumps(Exploit())
        members[name] = head + body
    elif kind == 'objects':
        members[name] = npy(np.array([Exploit(), 1], dtype=object))
    elif kind == 'member':
        members[name] = changed_bytes(draw, members[name])
    elif kind == 'names':
        text = draw(words).encode(errors='ignore').decode()
        named[name] = draw(
            st.sampled_from((f'../../{name}.npy', f'/{name}.npy', text, f'{name}.npy/', name.upper()))
        )
    elif kind == 'nested':
        members[name] = whole
    stream = io.BytesIO()
    with zipfile.ZipFile(
        stream, 'w', draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    ) as zipped:
        for key, content in members.items():
            zipped.writestr(zipfile.ZipInfo(named[key] or 'empty'), content)
        if kind == 'twice':
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                zipped.writestr(f'{name}.npy', draw(st.binary(max_size=80)))
    content = stream.getvalue()
    if kind == 'encrypted':
        return _directory(content, 8, struct.pack('<H', 1))
    if kind == 'method':
        return _directory(
            content, 10, struct.pack('<H', draw(st.sampled_from((1, 6, 9, 12, 14, 93, 99, 65535))))
        )
    if kind == 'sizes':
        return _directory(
            content, draw(st.sampled_from((20, 24))), struct.pack('<I', draw(st.integers(0, 2**32 - 1)))
        )
    return content


def _directory(content: bytes, offset: int, new: bytes) -> bytes:
    """With a field of the first entry of the central directory changed."""
    place = content.index(b'PK\x01\x02') + offset
    return content[:place] + new + content[place + len(new) :]


def bomb(path: Path, shape: tuple[int, ...], megabytes: int) -> None:
    """An npz file whose `images` are zeros: a thousand to one."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        with zipped.open('images.npy', 'w', force_zip64=True) as stream:
            stream.write(header("'|u1'", 'False', repr(shape)))
            for _ in range(megabytes):
                stream.write(bytes(2**20))
        zipped.writestr('labels.npy', npy(np.zeros(3, np.uint8)))
    assert path.stat().st_size < 2**20 * megabytes / 100
