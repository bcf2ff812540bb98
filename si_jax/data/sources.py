"""The data sets by name, and how one is loaded.

The digits come with scikit-learn; all others from a folder of npz files or from TensorFlow Datasets. All
give the images in their original order, which is what attack results are indexed by.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from si_jax.data import npz, tfds
from si_jax.errors import unknown

SPLITS = ('train', 'test')


class Source(NamedTuple):
    """What is known of a data set before it is read.

    Attributes:
        shape: (H, W, C) of an image.
        num_classes: Labels are 0 to num_classes - 1.
        train_images: Images of the training split.
        scale: Stored value of white: stored / scale is in [0, 1].
        crop: Padding of the random crop in training, 0 for none.
        flip: Whether training flips images left and right; digits must keep their side.
        tfds_name: Its name in TensorFlow Datasets, None if it comes with scikit-learn.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    train_images: int = 50_000
    scale: int = 255
    crop: int = 4
    flip: bool = True
    tfds_name: str | None = None

    def dataset(
        self, name: str, images: np.ndarray, labels: np.ndarray, files: tuple[str, ...] = ()
    ) -> 'Dataset':
        """These images as the data set `name`."""
        return Dataset(name, images, labels, self.num_classes, self.scale, self.crop, self.flip, files)


SOURCES = {
    'cifar10': Source(tfds_name='cifar10'),
    'cifar100': Source(num_classes=100, tfds_name='cifar100'),
    'svhn': Source(train_images=73_257, flip=False, tfds_name='svhn_cropped'),
    'digits': Source(shape=(8, 8, 1), train_images=1400, scale=16, crop=0, flip=False),
}

# In scikit-learn's order, the first 1,400 of the 1,797 digits are for training and the last 397 for testing;
# both hold the classes about equally often, and many writers of the test digits are not in training.
_DIGITS_SPLIT = {'train': slice(0, 1400), 'test': slice(1400, 1797)}


class Dataset(NamedTuple):
    """Images in the original order, on the host.

    Attributes:
        name: A name in `SOURCES`.
        images: uint8 [N, H, W, C], from 0 to `scale`.
        labels: int32 [N], from 0 to `num_classes` - 1.
        num_classes, scale, crop, flip: As in `Source`.
        files: Where they were read: the npz files in their order, or a folder or package that has them.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    scale: int
    crop: int
    flip: bool
    files: tuple[str, ...] = ()


def load(name: str, split: str, data_dir: str | pathlib.Path | None = None) -> Dataset:
    """Loads one split of a data set, in the original order.

    Args:
        name: cifar10, cifar100, svhn or digits.
        split: 'train' or 'test'.
        data_dir: A folder with `<name>_test.npz`, `<name>_train.npz` or `<name>_train_1.npz` is read as npz
            files (see `si_jax.data.npz`); any other is a data_dir of TensorFlow Datasets, whose default is
            used without one. The digits need none.

    Raises:
        InputError: An unknown name or split; a folder that is missing, or has no such data and cannot get it
            (with the command that makes it); a training file too many; a file that is truncated or holds the
            wrong arrays.
    """
    if name not in SOURCES:
        raise unknown('data set', name, SOURCES)
    if split not in SPLITS:
        raise unknown('split', split, SPLITS)
    source = SOURCES[name]
    if data_dir and npz.holds(data_dir, name):
        paths = npz.files(data_dir, name, split)
        files = tuple(map(str, paths))
        images, labels = npz.read(paths, source.shape, source.num_classes, source.scale)
    elif source.tfds_name is None:
        files, (images, labels) = ('scikit-learn',), _digits(split)
    else:
        files = (str(data_dir or f'TensorFlow Datasets, {source.tfds_name}'),)
        images, labels = tfds.read(name, source.tfds_name, split, data_dir or None)
    return source.dataset(name, images, labels, files)


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # heavy, and no other data set needs it

    digits = datasets.load_digits()
    rows = _DIGITS_SPLIT[split]
    return digits.images[rows, :, :, None].astype(np.uint8), digits.target[rows].astype(np.int32)
