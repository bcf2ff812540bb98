"""Images and labels: where they come from, how they are split, batched and augmented.

train = data.load('cifar10', 'train')                                  # uint8, in the original order
train, validation = data.split_validation(train, 1000, split_seed=0)
order = data.epoch_order(seed=0, epoch=3, n=len(train.labels))
indices, mask = data.epoch_batches(order, batch_size=128)              # the last partial batch is kept
images = data.augment(train.images[indices[0]], keys, crop=train.crop, flip=train.flip)
images = data.to_unit(images, train.scale)                             # [0, 1]

A data set is a `Source` of `dataset`, a row that says what it holds and reads it. `sources` has the table of
them, adds those that a user registers, and makes others of a folder or a name with `npz`, `folders`,
`corrupted` and `tfds`. `raw` reads the files of the authors of CIFAR and SVHN, `preprocessing` brings images
to one size. `batches` is about order, `augment` about pixels. Nothing here knows of networks or of training.
"""

from si_jax.data.augment import augment, box, random_box, to_unit, to_unit_on_host
from si_jax.data.autoaugment import autoaugment
from si_jax.data.batches import balanced_order, epoch_batches, epoch_order, split_validation
from si_jax.data.dataset import Arrays, Dataset, Loader, Source
from si_jax.data.sources import (
    BUILT_IN,
    SOURCES,
    canonical,
    describe,
    facts,
    load,
    register,
    remember,
    remembered,
)
from si_jax.data.stream import chosen

__all__ = [
    'BUILT_IN',
    'SOURCES',
    'Arrays',
    'Dataset',
    'Loader',
    'Source',
    'augment',
    'autoaugment',
    'balanced_order',
    'box',
    'canonical',
    'chosen',
    'describe',
    'epoch_batches',
    'epoch_order',
    'facts',
    'load',
    'random_box',
    'register',
    'remember',
    'remembered',
    'split_validation',
    'to_unit',
    'to_unit_on_host',
]
