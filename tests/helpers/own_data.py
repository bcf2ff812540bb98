"""Small data sets on the disk, in every form that is read."""

import pathlib
import struct

import numpy as np
from PIL import Image


def python2_batch(rows, labels) -> bytes:
    """A batch of CIFAR-10 as its authors' Python 2 pickled it: its bytes are written out here."""

    def text(value: bytes) -> bytes:
        return b'U' + bytes([len(value)]) + value

    def integer(value: int) -> bytes:
        return b'J' + struct.pack('<i', value)

    dtype = b'cnumpy\ndtype\n' + text(b'u1') + b'K\x00K\x01\x87R'
    dtype += b'(K\x03' + text(b'|') + b'NNN' + integer(-1) + integer(-1) + b'K\x00tb'
    array = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + text(b'b') + b'\x87R'
    shape = integer(len(rows)) + integer(rows.shape[1]) + b'\x86'
    content = b'T' + struct.pack('<i', rows.nbytes) + rows.tobytes()
    array += b'(K\x01' + shape + dtype + b'\x89' + content + b'tb'
    pairs = text(b'batch_label') + text(b'testing batch 1 of 1') + text(b'data') + array
    pairs += text(b'labels') + b'](' + b''.join(b'K' + bytes([label]) for label in labels) + b'e'
    pairs += text(b'filenames') + b'](' + text(b'domestic_cat_s_000907.png') * len(labels) + b'e'
    return b'\x80\x02}(' + pairs + b'u.'


def write_cifar10(folder: pathlib.Path, each: int = 12):
    """`cifar-10-batches-py` with so many random images a file; returns all images and labels, in order."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6 * each, 32, 32, 3), np.uint8), np.arange(6 * each) % 10
    place = folder / 'cifar-10-batches-py'
    place.mkdir()
    for part, name in enumerate([*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch']):
        chosen = slice(part * each, (part + 1) * each)
        rows = images[chosen].transpose(0, 3, 1, 2).reshape(each, -1)
        (place / name).write_bytes(python2_batch(rows, labels[chosen].tolist()))
    return images, labels


def write_folder(folder: pathlib.Path, sizes=((64, 64),), mode='RGB', each: int = 8):
    """`train` and `test` of three classes with random images of these sizes in turn."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for name in ('cat', 'dog', 'newt'):
            (folder / split / name).mkdir(parents=True)
            for number in range(each):
                height, width = sizes[number % len(sizes)]
                shape = (height, width, 3) if mode == 'RGB' else (height, width)
                image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
                image.save(folder / split / name / f'{number}.png')
    return folder


def write_npz(folder: pathlib.Path, shape=(28, 28, 1), classes: int = 3, each: int = 24):
    """`train.npz` and `test.npz` of random images, every class in turn."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split in ('train', 'test'):
        images = rng.integers(0, 256, (each, *shape), np.uint8)
        np.savez(folder / f'{split}.npz', images=images, labels=np.arange(each) % classes)
    return folder


OWN = """
import numpy as np
from si_jax import data

class Rings:
    def __init__(self, split, folder):
        self.first = {'train': 0, 'test': 1000}[split]

    def __len__(self):
        return 24

    def __getitem__(self, index):
        rng = np.random.default_rng(self.first + index)
        return rng.integers(0, 17, (28, 28, 1), np.uint8), index % 3

data.register('rings', data.Source(Rings, (28, 28, 1), classes=('one', 'two', 'three'), scale=16))
"""
