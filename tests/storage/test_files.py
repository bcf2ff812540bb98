"""Files that are replaced in one step."""

import errno
import os

import pytest

from si_jax.storage.files import write_atomic, write_json


def test_replaces_text_bytes_and_json(tmp_path):
    file = tmp_path / 'file'
    for content, expected in (('Größe', 'Größe'.encode()), (b'\x00\xff', b'\x00\xff'), ('', b'')):
        write_atomic(file, content)
        assert file.read_bytes() == expected
    write_json(file, {'a': [1, None]})
    assert file.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('value, error', [({'a': float('nan')}, ValueError), ({'a': object()}, TypeError)])
def test_what_json_cannot_say_leaves_the_old_file(tmp_path, value, error):
    file = tmp_path / 'file'
    file.write_text('old')
    with pytest.raises(error):
        write_json(file, value)
    assert file.read_text() == 'old'


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    file.write_text('old')

    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_atomic(file, 'new')
    assert file.read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['file']
