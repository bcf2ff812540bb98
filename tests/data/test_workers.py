"""Batches that worker processes read: the same whatever their number, from any batch on."""

import functools

import numpy as np
import pytest

from si_jax import data
from si_jax.data import workers
from si_jax.data.stream import Joined
from si_jax.errors import InputError
from si_jax.training.feed import Batches, read_batch
from si_jax.training.setup import Order
from tests.helpers.own_data import write_folder


def reader(folder):
    """Batches of 4 of 6 images of a folder and of 5 that are mapped from a file."""
    first = data.load(f'folder:{folder}', 'train', lazy=True)
    np.save(folder / 'more.npy', np.arange(5 * 192, dtype=np.uint8).reshape(5, 8, 8, 3))
    images = Joined([first.images, np.load(folder / 'more.npy', mmap_mode='r')])
    order = Order(0, 4, np.zeros(11, np.int32), False, 3, None)
    return functools.partial(read_batch, images, Batches(order, 3, 1), slice(1, 4))


def test_workers_read_what_this_process_would_from_any_batch_on_and_their_errors_are_its_own(tmp_path):
    pytest.importorskip('grain', reason=f'needs {workers.PACKAGE}')
    write_folder(tmp_path, sizes=((8, 8),), each=2)
    read = reader(tmp_path)
    expected = [read(number) for number in range(8)]  # of three passes
    assert expected[5].shape == (3, 8, 8, 3) and len({one.tobytes() for one in expected}) == 8
    path = tmp_path / 'train' / 'dog' / '1.png'
    path.write_bytes(path.read_bytes()[:-40])
    for number in range(8):
        try:
            read(number)
        except InputError:
            break
    assert number < 4
    path.unlink()
    write_folder(tmp_path / 'again', sizes=((8, 8),), each=2)
    (tmp_path / 'again' / 'train' / 'dog' / '1.png').rename(path)
    batches = workers.Workers(read, 2)
    try:
        for number in (4, 5, 6, 7):
            np.testing.assert_array_equal(batches(number), expected[number])
        assert batches.next == 8
    finally:
        batches.close()


def test_without_grain_the_error_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    workers.check(0)
    with pytest.raises(
        InputError, match=r"data\.workers=2 needs .*pip install 'grain>=.*--config\.data\.workers=0"
    ):
        workers.check(2)
    with pytest.raises(InputError, match=r'data\.workers=-1 is negative'):
        workers.check(-1)
