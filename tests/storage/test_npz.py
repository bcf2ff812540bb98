"""npz files from anywhere: what is refused, and that it is refused before it is unpacked."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from si_jax.storage import npz
from tests.hostile import inputs


def zeros(path, count, megabytes, **more):
    """So many arrays of zeros, a thousand to one."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(count):
            with archive.open(f'a{number}.npy', 'w', force_zip64=True) as stream:
                stream.write(inputs.header("'|u1'", 'False', f'({megabytes * 2**20},)'))
                for _ in range(megabytes):
                    stream.write(bytes(2**20))
        for name, array in more.items():
            archive.writestr(f'{name}.npy', inputs.npy(array))
    return path


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_sum_of_what_is_unpacked_is_limited(tmp_path):
    """Each array is below the limit of one; all together are a bomb."""
    path = zeros(tmp_path / 'bomb.npz', 4, 40, small=np.arange(3))

    def refused():
        with pytest.raises(npz.ArchiveError, match='5 arrays would take .* bytes, compressed to .* limits'):
            npz.read(path)

    assert peak(refused) < 2**22
    # Only what is asked for counts.
    assert npz.read(path, ['small'])['small'].tolist() == [0, 1, 2]


def test_arrays_that_are_stored_as_they_are_may_be_large(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, 'SUSPECT', 2**10)
    monkeypatch.setattr(npz, 'COMPRESSION', 2)
    arrays = {f'a{i}': np.random.default_rng(i).integers(0, 256, 2000, np.uint8) for i in range(4)}
    np.savez_compressed(tmp_path / 'a.npz', **arrays)
    assert npz.read(tmp_path / 'a.npz').keys() == arrays.keys()
    monkeypatch.setattr(npz, 'LARGEST', 7000)
    with pytest.raises(npz.ArchiveError, match='4 arrays would take'):
        npz.read(tmp_path / 'a.npz')


def test_headers_are_read_before_any_array_is_unpacked(tmp_path):
    path = zeros(tmp_path / 'a.npz', 1, 20, objects=np.array([inputs.Exploit()], dtype=object))

    def refused():
        with pytest.raises(npz.ArchiveError, match='Python objects'):
            npz.read(path)

    assert peak(refused) < 2**22


def test_many_strange_names_are_not_all_listed(tmp_path):
    np.savez(tmp_path / 'a.npz', **{f'x\n{i}': np.zeros(1) for i in range(100)})
    with pytest.raises(npz.ArchiveError) as error:
        npz.read(tmp_path / 'a.npz', ['labels'])
    assert 'and 92 more' in str(error.value) and '\n' not in str(error.value)
