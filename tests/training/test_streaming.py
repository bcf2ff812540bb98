"""Training on images that stay in their files: read in time, the same whoever reads them."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from si_jax.data import workers
from si_jax.data.stream import Lazy
from si_jax.errors import InputError
from si_jax.training import recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.setup import data_facts, feed_of, setup
from tests.helpers.own_data import write_cifar10, write_folder, write_npz


def config(name, **changes):
    made = recipes.paper('standard', dataset=name, arch='small_cnn')
    made.update_from_flattened_dict(
        {'data.validation': 0, 'batch_size': 8, 'model.width': 1, 'logging.tensorboard': False, 'epochs': 2,
         'checkpoint.every_steps': 1, 'checkpoint.keep_last': 20, 'schedule.peak': 0.1} | changes
    )  # fmt: skip
    return made


STREAMED = {'data.stream': 'always'}


@pytest.fixture(scope='module')
def resident(tmp_path_factory):
    """A folder of images, a run on them that has them on the devices, and its state."""
    place = tmp_path_factory.mktemp('resident')
    name = f'folder:{write_folder(place / "images", sizes=((8, 8),), each=4)}'
    return name, place / 'run', jax.device_get(run(config(name), str(place / 'run')))


@pytest.mark.parametrize('count', [0, 1])
def test_a_folder_is_streamed_as_it_is_trained_on_in_memory_after_a_kill_too(resident, tmp_path, count):
    if count:
        pytest.importorskip('grain', reason=f'needs {workers.PACKAGE}')
    name, place, state = resident
    assert int(state.step) == 4
    shutil.copytree(place, tmp_path / 'run')
    Checkpoints(tmp_path / 'run' / 'checkpoints').remove(4 - count)  # the second in the middle of an epoch
    again = run(config(name, **STREAMED, **{'data.workers': count}), str(tmp_path / 'run'))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), state)


def test_images_stay_in_their_files_only_where_they_are_streamed(tmp_path):
    name = f'npz:{write_npz(tmp_path / "arrays")}'
    streamed, resident = setup(config(name, **STREAMED)), setup(config(name))
    assert isinstance(streamed.train.images, Lazy) and isinstance(resident.train.images, np.ndarray)
    assert data_facts(streamed) == data_facts(resident)
    with np.load(tmp_path / 'arrays' / 'train.npz') as stored:
        np.testing.assert_array_equal(resident.train.images, stored['images'])
        np.testing.assert_array_equal(streamed.train.images[5], stored['images'][5])
    held_out = setup(config(name, **STREAMED, **{'data.validation': 4}))
    assert isinstance(held_out.validation.images, np.ndarray) and held_out.train.images.shape[0] == 20


@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_a_streamed_image_whose_end_is_missing_is_named_before_training(tmp_path, ending, monkeypatch):
    folder = write_folder(tmp_path / 'images', sizes=((8, 8),), each=4)
    paths = [folder / 'train' / name for name in (f'dog/1.{ending}', f'newt/2.{ending}')]
    for path in paths:
        path.with_suffix('.png').rename(tmp_path / 'one.png')
        Image.open(tmp_path / 'one.png').save(path)
    made = config(f'folder:{folder}', **STREAMED)
    with monkeypatch.context() as patch:
        patch.setattr('PIL.ImageFile.ImageFile.load', None)  # whole images are not decoded for it
        feed = feed_of(setup(made))
    whole = paths[0].read_bytes()
    for path in paths:
        path.write_bytes(path.read_bytes()[:-40])  # whose head is whole
    with pytest.raises(InputError, match=r'dog/1\..* and 1 more of 12 images cannot be read .*: replace it'):
        setup(made)
    # Broken while it is trained on, it is named when it is due.
    with pytest.raises(InputError, match=rf'(dog/1|newt/2)\.{ending} .*cannot be read as an image: replace'):
        feed(0), feed(1)
    feed.close()
    paths[1].unlink()
    paths[0].write_bytes(whole + b'more')  # which no decoder minds
    assert len(setup(made).train.labels) == 11


def test_workers_are_refused_where_they_have_nothing_to_read(tmp_path, monkeypatch):
    monkeypatch.setattr('si_jax.data.workers.check', lambda count: None)
    name = f'npz:{write_npz(tmp_path / "arrays")}'
    with pytest.raises(InputError, match=r'workers=2 .* fit the device: .*--config\.data\.stream=always'):
        setup(config(name, **{'data.workers': 2, 'data.stream': 'never'}))
    write_cifar10(tmp_path)
    with pytest.raises(InputError, match=r'copy images that are in memory.*--config\.data\.workers=0'):
        setup(config('cifar10', **STREAMED, **{'data.workers': 2, 'data.dir': str(tmp_path)}))
