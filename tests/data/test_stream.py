"""Arrays joined without a copy, and when a set is streamed."""

import numpy as np
import pytest

from si_jax.data.stream import Joined, is_streamed
from si_jax.errors import InputError


def test_joined_arrays_are_indexed_as_one(tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, (12, 2, 2, 1), dtype=np.uint8)
    np.save(tmp_path / 'part.npy', whole[5:7])
    parts = [whole[:5], np.load(tmp_path / 'part.npy', mmap_mode='r'), whole[7:]]
    joined = Joined(parts)
    indices = np.array([11, 0, 6, 6, 4, 5, 7])
    np.testing.assert_array_equal(joined[indices], whole[indices])
    np.testing.assert_array_equal(joined.whole(), whole)
    assert len(joined) == 12 and joined.nbytes == whole.nbytes
    assert Joined([whole]).whole() is whole


@pytest.mark.parametrize(
    ('stream', 'size', 'streamed'),
    [('always', 0, True), ('never', 100, False), ('auto', 50, False), ('auto', 51, True)],
)
def test_a_set_is_streamed_where_it_takes_more_than_half_of_the_memory(stream, size, streamed):
    assert is_streamed(stream, size, 100) == streamed


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="'sometimes'"):
        is_streamed('sometimes', 1, 100)
    with pytest.raises(
        InputError, match='2.00 GB of images on a device with 1.00 GB.*--config.data.stream=auto'
    ):
        is_streamed('never', 2 * 10**9, 10**9)
