"""Folders of images: what is read, in which order, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from si_jax import data
from si_jax.errors import InputError
from tests.helpers.own_data import write_folder


def refused(folder, words, split='train', preprocessing=''):
    with pytest.raises(InputError) as caught:
        data.load(f'folder:{folder}', split, preprocessing=preprocessing)
    assert all(word in str(caught.value) for word in words), caught.value
    return str(caught.value)


def test_classes_and_images_are_in_the_order_of_their_names(tmp_path):
    write_folder(tmp_path, each=3)
    (tmp_path / 'train' / '.DS_Store').touch()
    (tmp_path / 'train' / 'dog' / '1.png').rename(tmp_path / 'train' / 'dog' / '9.PNG')
    train = data.load(f'folder:{tmp_path}', 'train')
    assert train.images.shape == (9, 64, 64, 3) and train.images.dtype == np.uint8
    assert list(train.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2] and train.classes == ('cat', 'dog', 'newt')
    assert (train.num_classes, train.scale, train.crop, train.flip) == (3, 255, 0, False)
    with Image.open(tmp_path / 'train' / 'dog' / '9.PNG') as image:
        np.testing.assert_array_equal(train.images[5], image)
    (tmp_path / 'classes.txt').write_text('newt\ncat\ndog\n')
    again = data.load(f'folder:{tmp_path}', 'train')
    np.testing.assert_array_equal(again.images[:3], train.images[6:])
    assert again.classes == ('newt', 'cat', 'dog') and list(again.labels) == list(train.labels)
    source = data.describe(f'folder:{tmp_path}')
    assert (source.shape, source.num_classes, source.train_images) == ((64, 64, 3), 3, 9)


def test_grey_images_have_one_channel_and_jpegs_are_read(tmp_path):
    write_folder(tmp_path, sizes=((20, 30),), mode='L', each=2)
    Image.new('L', (30, 20), 77).save(tmp_path / 'test' / 'cat' / '9.jpeg')
    test = data.load(f'folder:{tmp_path}', 'test')
    assert test.images.shape == (7, 20, 30, 1) and abs(int(test.images[2].mean()) - 77) <= 1


def test_several_sizes_need_a_preprocessing(tmp_path):
    write_folder(tmp_path, sizes=((40, 60), (50, 50), (50, 50)), each=3)
    message = refused(tmp_path, ['train/cat/1.png (50 x 50 RGB)', 'and 5 more of 9 images', '40 x 60 RGB'])
    assert '--config.data.preprocessing=Res256Crop224' in message and '--preprocessing' in message
    Image.new('P', (60, 40)).save(tmp_path / 'train' / 'dog' / '2.png')
    found = data.load(f'folder:{tmp_path}', 'train', preprocessing='Res36Crop32')
    assert found.images.shape == (9, 32, 32, 3)
    with Image.open(tmp_path / 'train' / 'cat' / '0.png') as image:
        wanted = np.asarray(image.resize((54, 36), Image.Resampling.BILINEAR))[2:34, 11:43]
    np.testing.assert_array_equal(found.images[0], wanted)
    refused(tmp_path, ["unknown preprocessing 'Res'"], preprocessing='Res')


def test_broken_images_are_named_and_counted(tmp_path):
    write_folder(tmp_path, each=4)
    whole = (tmp_path / 'train' / 'cat' / '1.png').read_bytes()
    (tmp_path / 'train' / 'cat' / '1.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'train' / 'newt' / '3.png').write_text('no image')
    refused(tmp_path, ['cat/1.png (', 'and 1 more of 12 images', 'replace it'])
    assert len(data.load(f'folder:{tmp_path}', 'test').labels) == 12  # whose images are whole
    (tmp_path / 'train' / 'cat' / '0.png').write_bytes(b'')
    refused(tmp_path, ['cat/0.png cannot be read as an image'])


def test_modes_are_not_mixed(tmp_path):
    write_folder(tmp_path, each=2)
    Image.new('L', (64, 64)).save(tmp_path / 'train' / 'cat' / '1.png')
    refused(tmp_path, ['cat/1.png (64 x 64 L) is not 64 x 64 RGB'])
    Image.new('RGBA', (64, 64)).save(tmp_path / 'train' / 'cat' / '0.png')
    refused(tmp_path, ['cat/0.png is of the mode RGBA'])
    Image.new('I;16', (64, 64)).save(tmp_path / 'train' / 'cat' / '0.png')
    refused(tmp_path, ['more than 8 bits'], preprocessing='Crop64')


def test_classes_are_whole(tmp_path):
    refused(tmp_path / 'nowhere', ['has neither train/ nor test/'])
    write_folder(tmp_path, each=2)
    (tmp_path / 'train' / 'owl').mkdir()
    refused(tmp_path, ['train/owl is a class without an image'])
    (tmp_path / 'train' / 'owl').rename(tmp_path / 'test' / 'owl')
    Image.new('RGB', (64, 64)).save(tmp_path / 'test' / 'owl' / '0.png')
    refused(tmp_path, ['test has owl, which train/ lacks'])
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    refused(tmp_path, ['train has newt, which classes.txt does not name'])
    (tmp_path / 'classes.txt').write_text('cat\ndog\nnewt\nowl\n')
    refused(tmp_path, ['train has no folder owl, which classes.txt names'])
    (tmp_path / 'classes.txt').write_text('cat\ndog\n\nnewt\n')
    refused(tmp_path, ['classes.txt: class 2 has no name'])
    (tmp_path / 'classes.txt').write_text('cat\ndog\ndog\n')
    refused(tmp_path, ["names the class 'dog' twice"])
    (tmp_path / 'classes.txt').unlink()
    (tmp_path / 'train' / 'cat' / 'notes.txt').touch()
    refused(tmp_path, ['cat/notes.txt: no PNG or JPEG by its name'])
    (tmp_path / 'train' / 'cat' / 'notes.txt').rename(tmp_path / 'train' / 'notes.txt')
    refused(tmp_path, ['train/notes.txt lies in no class'])


def test_one_split_is_enough_for_itself(tmp_path):
    write_folder(tmp_path, each=2)
    (tmp_path / 'train').rename(tmp_path / 'elsewhere')
    assert data.load(f'folder:{tmp_path}', 'test').num_classes == 3
    refused(tmp_path, ['has no train/'])
