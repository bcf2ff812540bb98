"""Extra images: the law of their draws, the files that are read, and those that are not."""

import io
import pathlib
import pickle
import re

import numpy as np
import pytest
import scipy.stats

from si_jax import data
from si_jax.data import extra
from si_jax.errors import InputError
from si_jax.storage import npz

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'training.md'


def arrays(count, classes=10, first=0):
    """Images of 8 x 8 whose pixel says their number and another their label."""
    numbers = np.arange(first, first + count)
    pixels = np.zeros((count, 8, 8, 1), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = numbers // 16, numbers % 16
    pixels[:, 1, 0, 0] = numbers % classes
    return pixels, numbers % classes


def section(path='', **changes):
    given = {'extra': str(path), 'extra_share': 0.7, 'extra_draws': 'uniform', 'balanced': False}
    return given | changes


def save(path, count=40, names=('image', 'label'), writer=np.savez):
    writer(path, **dict(zip(names, arrays(count), strict=True)))
    return path


DIGITS = data.SOURCES['digits'].dataset('digits', *arrays(30))


def loaded(path, batch_size=10, **changes):
    found = extra.load(section(path, **changes), batch_size, DIGITS)
    assert found is not None
    return found


def test_the_share_of_a_batch_is_that_of_the_source():
    """154 real and 358 extra images of 512, and every part of the batch has its share of them."""
    found = extra.Extra(None, np.zeros(1000), int(0.7 * 512), 'uniform', (), '')
    batches = found.batches(3, 49_000, steps=98, batch_size=512, seed=0)
    assert batches.shape == (98, 512) and batches.dtype == np.int32
    assert ((batches >= 49_000).sum(1) == 358).all()
    assert set((batches.reshape(98, 8, 64) >= 49_000).sum(2).ravel()) <= {44, 45}
    assert extra.steps_of_epoch(50_000, 512) == 98


def test_draws_with_replacement_are_uniform_and_follow_from_seed_and_epoch():
    found = extra.Extra(None, np.zeros(50), 35, 'uniform', (), '')
    sizes = {'steps': 40, 'batch_size': 50}
    drawn = [found.batches(number, 100, seed=0, **sizes) for number in range(3)]
    counts = np.bincount(_extra(drawn), minlength=50)
    assert counts.sum() == 3 * 40 * 35
    assert 0.001 < scipy.stats.chisquare(counts).pvalue < 0.999
    # One draw says nothing of the next.
    pairs = np.bincount(_extra(drawn)[::2] // 10 * 5 + _extra(drawn)[1::2] // 10, minlength=25)
    assert 0.001 < scipy.stats.chisquare(pairs).pvalue < 0.999
    np.testing.assert_array_equal(drawn[1], found.batches(1, 100, seed=0, **sizes))
    assert np.any(drawn[0] != drawn[1]) and np.any(drawn[0] != found.batches(0, 100, seed=1, **sizes))


def _extra(batches, n=100):
    rows = np.concatenate(batches).ravel()
    return rows[rows >= n] - n


def test_in_passes_every_image_comes_once_before_any_comes_again():
    found = extra.Extra(None, np.zeros(60), 14, 'passes', (), '')
    epochs = [found.batches(number, 45, steps=7, batch_size=20, seed=0) for number in range(5)]
    rows = np.concatenate(epochs).ravel()
    for part, count in ((rows[rows >= 45] - 45, 60), (rows[rows < 45], 45)):
        passes = part[: len(part) // count * count].reshape(-1, count)
        assert len(passes) > 3
        for one in passes:
            np.testing.assert_array_equal(np.sort(one), np.arange(count))
        assert np.any(passes[0] != passes[1])


@pytest.mark.parametrize('names', extra.NAMES)
@pytest.mark.parametrize('writer', [np.savez, np.savez_compressed])
def test_labels_belong_to_images_and_the_digest_to_what_the_file_says(tmp_path, names, writer):
    found = loaded(save(tmp_path / 'one.npz', names=names, writer=writer))
    assert isinstance(found.images.parts[0], np.memmap) == (writer is np.savez)
    assert found.each_batch == 7 and found.labels.dtype == np.int32
    indices = np.array([31, 2, 2, 39])
    np.testing.assert_array_equal(found.images[indices], arrays(40)[0][indices])
    np.testing.assert_array_equal(found.images[indices][:, 1, 0, 0], found.labels[indices])
    assert found.digest == loaded(save(tmp_path / 'two.npz')).digest
    images, labels = arrays(40)
    images[7, 3, 3, 0] = 1
    np.savez(tmp_path / 'other.npz', image=images, label=labels)
    assert found.digest != loaded(tmp_path / 'other.npz').digest
    np.savez(tmp_path / 'other.npz', image=arrays(40)[0], label=np.roll(labels, 1))
    assert found.digest != loaded(tmp_path / 'other.npz').digest


def test_several_files_are_one_set(tmp_path):
    for number in range(2):
        images, labels = arrays(20, first=20 * number)
        np.savez(tmp_path / f'{number}.npz', image=images, label=labels)
    given = f'{tmp_path}/0.npz, {tmp_path}/1.npz'
    found = loaded(given)
    assert len(found.images) == 40 == extra.count(section(given))
    np.testing.assert_array_equal(found.images.whole(), arrays(40)[0])
    np.testing.assert_array_equal(found.labels, arrays(40)[1])
    assert '40 from ' in found.words(10) and '7 of the 10 of a batch' in found.words(10)


def test_without_a_file_or_with_a_share_of_nothing_there_are_none(tmp_path):
    for one in (section(), section(tmp_path / 'absent.npz', extra_share=0.0)):
        extra.check(one, 10)
        assert extra.load(one, 10, DIGITS) is None and extra.count(one) == 0
    assert extra.count(section(extra.REQUIRED)) == 0  # for the planner


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'extra_share': 1.0}, r'data.extra_share=1 is not in \[0, 1\)'),
        ({'extra_share': -0.1}, 'data.extra_share=-0.1 is not in'),
        ({'extra_share': 0.05}, 'is less than one image: give --config.data.extra_share=0.1 or more'),
        ({'extra_draws': 'once'}, "'once'.*uniform"),
        ({'balanced': True}, '--config.data.balanced=False'),
        ({'extra': 'absent.npz'}, 'data.extra=absent.npz is no file: give --config.data.extra=FILE.npz'),
        ({'extra': extra.REQUIRED}, 'this recipe .* give --config.data.extra=FILE.npz'),
    ],
)
def test_wrong_settings_are_refused_before_data_are_read(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        extra.check(section(save(tmp_path / 'one.npz')) | changes, 10)


def test_the_smallest_share_that_is_advised_is_taken(tmp_path):
    extra.check(section(save(tmp_path / 'one.npz'), extra_share=0.1), 10)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda image, label: {'x': image, 'y': label},
            r"has the arrays \['x', 'y'\].*np.savez\(path, image=x",
        ),
        (lambda image, label: {'image': image[:, :6], 'label': label}, r'not \(N, 8, 8, 1\)'),
        (lambda image, label: {'image': image / 16, 'label': label}, 'images are float64, not uint8'),
        (lambda image, label: {'image': image + 10, 'label': label}, 'where white is 16'),
        (
            lambda image, label: {'image': image, 'label': label + 1},
            r'label 10 of image 9 is not in \[0, 9\]',
        ),
        (
            lambda image, label: {'image': image, 'label': label % 7},
            'images of 7 of the 10 classes of digits',
        ),
        (lambda image, label: {'image': image, 'label': label[:-1]}, 'one label an image'),
        (lambda image, label: {'image': image.astype(object), 'label': label}, 'Python objects'),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, change, message):
    np.savez(tmp_path / 'one.npz', **change(*arrays(40)))
    with pytest.raises(InputError, match=message):
        loaded(tmp_path / 'one.npz')


def test_a_truncated_file_is_named(tmp_path):
    path = save(tmp_path / 'one.npz')
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match='one.npz .*truncated'):
        loaded(path)


class Harm:
    def __reduce__(self):
        return print, ('harm',)


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_a_pickle_is_refused_and_the_lines_of_the_page_convert_it(tmp_path, protocol, monkeypatch, capsys):
    images, labels = arrays(40)
    content = {'data': images, 'extrapolated_targets': labels}
    path = tmp_path / 'ti_500K_pseudo_labeled.pickle'
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(InputError, match='is a pickle, which could run any code.*docs/training.md'):
        loaded(path)
    text = PAGE.read_text()
    lines = re.search(r'```python\n(import pickle.*?)```', text, re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    found = loaded(tmp_path / 'ti_500K_pseudo_labeled.npz')
    np.testing.assert_array_equal(found.images.whole(), images)
    path.write_bytes(pickle.dumps(content | {'more': Harm()}, protocol))
    with pytest.raises(pickle.UnpicklingError, match='print'):
        exec(lines, {})
    assert 'harm' not in capsys.readouterr().out


def test_what_is_mapped_is_what_is_read(tmp_path):
    """Of any order of axes, uncompressed; a header that claims more than the file has is refused."""
    path, array = tmp_path / 'one.npz', np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    np.savez(path, rows=array, columns=np.asfortranarray(array))
    found = npz.mapped(path, ('rows', 'columns'))
    for name in ('rows', 'columns'):
        assert isinstance(found[name], np.memmap) and not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)
    assert npz.checksums(path)['rows'] != npz.checksums(path)['columns']
    content = path.read_bytes().replace(b'(2, 3, 4)', b'(9, 3, 4)')
    path.write_bytes(content)
    with pytest.raises(npz.ArchiveError, match='Bad CRC-32|has 48 bytes'):
        npz.mapped(path, ('rows',))
    with pytest.raises(npz.ArchiveError):
        npz.read(io.BytesIO(content).getvalue())
