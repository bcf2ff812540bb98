"""CIFAR-10 as lossless WebP mosaics: 1.7 kB an image, for a machine that little can be sent to.

    python -m benchmarks.mosaics pack ../shared/data mosaics        # 60 files, 101 MB
    python -m benchmarks.mosaics unpack mosaics images              # npz files, for --config.data.dir=images

A mosaic holds a thousand images, 40 in a row, and its labels lie beside it. `unpack` takes what is there, so
that a part can be sent first.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from si_jax import data

ROWS, COLUMNS, SIDE = 25, 40, 32
EACH = ROWS * COLUMNS


def pack(data_dir: str | Path, folder: str | Path) -> list[Path]:
    """Writes the mosaics of both splits and returns their paths, test images first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for split in ('test', 'train'):
        of = data.load('cifar10', split, data_dir)
        for number in range(len(of.labels) // EACH):
            rows = slice(number * EACH, (number + 1) * EACH)
            path = folder / f'{split}_{number:02d}.webp'
            Image.fromarray(tiled(of.images[rows])).save(path, lossless=True, quality=100, method=4)
            np.save(path.with_suffix('.npy'), of.labels[rows].astype(np.uint8))
            paths.append(path)
    return paths


def unpack(folder: str | Path, output: str | Path) -> dict[str, int]:
    """Writes `cifar10_train.npz` and `cifar10_test.npz` from the mosaics that are there; their counts."""
    output, counts = Path(output), {}
    output.mkdir(parents=True, exist_ok=True)
    for split in ('train', 'test'):
        paths = sorted(Path(folder).glob(f'{split}_*.webp'))
        if paths:
            images = np.concatenate([untiled(np.asarray(Image.open(path))) for path in paths])
            labels = np.concatenate([np.load(path.with_suffix('.npy')) for path in paths])
            np.savez(output / f'cifar10_{split}.npz', images=images, labels=labels.astype(np.int32))
        counts[split] = EACH * len(paths)
    return counts


def tiled(images: np.ndarray) -> np.ndarray:
    """[1000, 32, 32, 3] as one image [800, 1280, 3]."""
    grid = images.reshape(ROWS, COLUMNS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(ROWS * SIDE, COLUMNS * SIDE, 3)


def untiled(mosaic: np.ndarray) -> np.ndarray:
    """[800, 1280, 3] as its images [1000, 32, 32, 3]."""
    grid = mosaic.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(EACH, SIDE, SIDE, 3)


if __name__ == '__main__':
    if len(sys.argv) != 4 or sys.argv[1] not in ('pack', 'unpack'):
        sys.exit(__doc__)
    print({'pack': pack, 'unpack': unpack}[sys.argv[1]](*sys.argv[2:]))
