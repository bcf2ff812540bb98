"""Which images evaluate.py takes: the first, random ones, those of a list; and class maps."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import InputError, data
from si_jax.cli import evaluate
from si_jax.cli.selection import select
from si_jax.data import Dataset

IMAGES = np.arange(12, dtype=np.uint8)[:, None, None, None]
LABELS = np.arange(12, dtype=np.int32) % 3
TEST = Dataset('small', IMAGES, LABELS, 3, 255, 0, False)


# A data set whose images and classes have names, as those of a folder have.
CLASSES = 'cat', 'dog', 'eel'
NAMED = TEST._replace(
    name='named', classes=CLASSES, names=tuple(f'{CLASSES[i % 3]}/{i}.png' for i in range(12))
)


def chosen(test=TEST, **asked):
    return select(test, **asked)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_the_first_are_as_before():
    for count, expected in ((None, 12), (5, 5)):
        found = chosen(num_examples=count)
        assert_array_equal(found.images, IMAGES[:expected])
        assert found.indices is None and found.about == {}
    assert np.shares_memory(found.images, IMAGES)


def test_random_ones_are_in_order_and_have_a_seed_of_their_own():
    found = [chosen(num_examples=6, sample='random', sample_seed=seed) for seed in (0, 0, 1)]
    numbers = [one.indices.tolist() for one in found]
    assert numbers[0] == numbers[1] != numbers[2]
    assert numbers[0] == sorted(data.epoch_order(0, 0, 12)[:6].tolist()) and len(set(numbers[0])) == 6
    assert_array_equal(found[0].images, IMAGES[numbers[0]])
    assert_array_equal(found[0].labels, LABELS[numbers[0]])
    assert found[2].about == {'sample': 'random', 'sample_seed': 1}


def test_a_list_of_numbers_or_of_names(tmp_path):
    numbers = chosen(images=write(tmp_path / 'numbers.txt', '7\n\n 02 \n11\n'))
    assert numbers.indices.tolist() == [7, 2, 11]
    assert numbers.about['images']['file'].endswith('numbers.txt') and len(numbers.about['images']) == 2
    names = chosen(NAMED, images=write(tmp_path / 'names.txt', 'eel/8.png\ncat/3.png\n'))
    assert names.indices.tolist() == [8, 3] and names.labels.tolist() == [2, 0]
    few = chosen(images=write(tmp_path / 'all.txt', '9\n4\n1\n'), num_examples=2)
    assert few.indices.tolist() == [9, 4]
    drawn = chosen(images=str(tmp_path / 'all.txt'), num_examples=2, sample='random')
    assert set(drawn.indices.tolist()) < {9, 4, 1}


def test_a_class_map(tmp_path):
    by_number = write(tmp_path / 'numbers.json', '{"0": 281, "1": 5, "2": 7, "9": 1}')
    assert chosen(class_map=by_number, num_examples=3).labels.tolist() == [281, 5, 7]
    by_name = write(tmp_path / 'names.json', '{"cat": 3, "dog": 2, "2": 1}')
    found = chosen(NAMED, class_map=by_name, num_examples=3)
    assert found.labels.tolist() == [3, 2, 1] and 'class_map' in found.about


def test_what_is_not_there_is_refused_before_compute(tmp_path):
    def refused(words, test=TEST, **asked):
        with pytest.raises(InputError, match=words):
            chosen(test, **asked)

    missing = write(tmp_path / 'list.txt', '\n'.join(map(str, range(10, 40))))
    refused(r'28 of 30 images are not in small, which has 12: 12, 13, .* 21 and 18 more', images=missing)
    refused('1 of 1 images are not in named.*eel/1.png', NAMED, images=write(tmp_path / 'a', 'eel/1.png'))
    refused('no names: give their numbers, from 0 to 11', images=write(tmp_path / 'b', 'eel/8.png'))
    refused("names '2' 2 times", images=write(tmp_path / 'c', '2\n3\n02'))
    refused('names no image', images=write(tmp_path / 'd', '\n'))
    refused('cannot be read', images=str(tmp_path / 'gone.txt'))
    refused('more than the 12 images of small', num_examples=13)
    refused('more than the 2 images in', images=write(tmp_path / 'e', '2\n3'), num_examples=3)
    refused('sample=random needs a number of images', sample='random')
    refused("unknown sample 'some'", sample='some')
    refused('belongs to --sample=random', sample_seed=3)
    refused('must be an object of class to index', class_map=write(tmp_path / 'f', '{"0": "cat"}'))
    refused('cannot be read as JSON', class_map=write(tmp_path / 'g', '{'))
    refused('lacks 2 of 3 classes: 1, 2', class_map=write(tmp_path / 'h', '{"0": 1}'))


def test_the_command_evaluates_and_records_them(tmp_path):
    output = tmp_path / 'result.json'
    ask = ['--model=zoo:digits-at', '--attacks=fgsm', f'--output={output}']
    assert evaluate.main([*ask, '--num_examples=40', '--sample=random', '--sample_seed=2']) == 0
    about, flags = json.loads(output.read_text()), np.load(output.with_suffix('.npz'))
    numbers = np.sort(data.epoch_order(2, 0, 397)[:40])
    assert_array_equal(flags['indices'], numbers)
    assert about['dataset']['sample'] == 'random' and about['dataset']['examples'] == 40
    first = flags['fgsm']
    # The list of the same images is the same evaluation; its record is another.
    listed = write(tmp_path / 'list.txt', '\n'.join(map(str, numbers)))
    swapped = {str(label): (label + 1) % 10 for label in range(10)}
    assert evaluate.main([*ask, f'--images={listed}']) == 0
    assert_array_equal(np.load(output.with_suffix('.npz'))['fgsm'], first)
    assert 'sample' not in json.loads(output.read_text())['dataset']
    mapped = write(tmp_path / 'map.json', json.dumps(swapped))
    assert evaluate.main([*ask, f'--images={listed}', f'--class_map={mapped}']) == 0
    assert json.loads(output.read_text())['clean']['accuracy'] < 0.1
