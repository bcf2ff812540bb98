import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from si_jax import data
from si_jax.errors import InputError


def make(n=50):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return data.Dataset('digits', images, np.arange(n, dtype=np.int32) % 10, 10, 16, 0, False)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(n=st.integers(1, 200), batch_size=st.integers(1, 64), seed=st.integers(0, 2**40))
def test_batches_hold_every_image_once(n, batch_size, seed):
    order = data.epoch_order(seed, 2, n)
    indices, mask = data.epoch_batches(order, batch_size)
    assert indices.shape == mask.shape == (-(-n // batch_size), batch_size)
    assert indices.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(np.sort(indices[mask]), np.arange(n))
    np.testing.assert_array_equal(indices[mask], order)
    assert (indices[~mask] == 0).all() and mask[:-1].all()


def test_last_partial_batch_is_padded():
    indices, mask = data.epoch_batches(np.array([4, 2, 0, 3, 1], np.int32), 3)
    np.testing.assert_array_equal(indices, [[4, 2, 0], [3, 1, 0]])
    np.testing.assert_array_equal(mask, [[True, True, True], [True, True, False]])


def test_order_is_fixed_for_all_platforms():
    np.testing.assert_array_equal(data.epoch_order(0, 0, 8), [7, 6, 3, 2, 4, 1, 5, 0])
    np.testing.assert_array_equal(data.epoch_order(7, 3, 8), [2, 1, 7, 6, 5, 4, 3, 0])
    assert data.epoch_order(0, 0, 8).dtype == np.int32


def test_order_changes_with_seed_and_epoch():
    orders = {tuple(data.epoch_order(seed, epoch, 30)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_order_is_uniform():
    # 6 orders of 3 images, 1,000 expected each; 4 standard deviations are 115.
    orders = [tuple(data.epoch_order(0, epoch, 3)) for epoch in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6 and min(counts) > 885 and max(counts) < 1115


@pytest.mark.parametrize('count', [0, 1, 20, 49])
def test_split_parts_are_disjoint_and_keep_the_order(count):
    whole = make()
    train, validation = data.split_validation(whole, count, 0)
    assert len(validation.labels) == count and len(train.labels) == 50 - count
    rows = [part.images[:, 0, 0, 0] for part in (train, validation)]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(50))
    for part, row in zip((train, validation), rows, strict=True):
        assert (np.diff(row.astype(int)) > 0).all()
        np.testing.assert_array_equal(part.labels, whole.labels[row])
        assert part[3:] == whole[3:] and part.name == whole.name


def test_split_is_fixed_by_its_seed():
    splits = [data.split_validation(make(), 5, seed)[1].images[:, 0, 0, 0].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert splits[0] == [7, 10, 13, 24, 43]
    # A stream of its own: the images held out are not the first of an epoch's order.
    assert splits[0] != sorted(data.epoch_order(0, 0, 50)[:5])


@pytest.mark.parametrize(
    'count, message',
    [
        (-1, r'validation=-1 is not in \[0, 49\]'),
        (50, r'validation=50 is not in \[0, 49\]: digits has 50 images'),
        (2.5, 'validation=2.5 is not a whole number'),
    ],
)
def test_bad_count_is_an_error(count, message):
    with pytest.raises(InputError, match=message):
        data.split_validation(make(), count, 0)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: data.split_validation(make(), 5, -3), 'split_seed=-3 is negative'),
        (lambda: data.epoch_order(-1, 0, 5), 'seed=-1 is negative'),
        (lambda: data.epoch_order(0, -1, 5), 'epoch=-1 is negative'),
        (lambda: data.epoch_order('a', 0, 5), "seed='a' is not a whole number"),
        (lambda: data.epoch_batches(np.arange(5), 0), 'batch_size=0 is below 1'),
    ],
)
def test_bad_seeds_and_sizes_are_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_balanced_order_has_every_class_equally_often():
    labels = np.repeat([0, 1, 3], [90, 8, 2]).astype(np.int32)  # class 2 has no image
    orders = [data.balanced_order(0, epoch, labels) for epoch in range(3)]
    for order in orders:
        assert order.shape == (100,) and order.dtype == np.int32
        counts = np.bincount(labels[order], minlength=4)
        assert sorted(counts) == [0, 33, 33, 34] and counts[2] == 0
        assert set(order[labels[order] == 3]) == {98, 99}  # of a rare class all come, again and again
        assert len(set(order[labels[order] == 0])) >= 33  # of a frequent one each at most once
        assert len(set(labels[order][:20])) == 3  # mixed
    assert not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[1], data.balanced_order(0, 1, labels))
    assert len({tuple(np.bincount(labels[order])) for order in orders}) == 3  # who gets one more takes turns
