"""A data set of your own, registered in the file of a config: trained on and evaluated like any other.

    python -m examples.own_data                       # a short run, then PGD
    python train.py --config=examples/own_data.py     # the whole one; this file is a config like any other
    python evaluate.py --workdir=FOLDER               # which finds this file and the set again
    python evaluate.py --model=my_model.py:build --dataset=examples/own_data.py:spots

The images are drawn here: a light spot on the left, in the middle or on the right. Yours may come from
anywhere. A reader is called with the split and the folder of --config.data.dir. It returns an object of two
methods, or two arrays at once.
"""

import argparse

import absl.logging
import numpy as np

import si_jax
from si_jax import data
from si_jax.training import recipes
from si_jax.training.loop import run

CLASSES = ('left', 'middle', 'right')
SIDE = 12


class Spots:
    """A split: how many images there are, and the one of a number with its label."""

    def __init__(self, split, folder):
        del folder  # of files; nothing is read here
        self.first, self.count = {'train': (0, 360), 'test': (10_000, 120)}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        """uint8 [height, width, channels] and an integer: the same ones whenever they are asked for."""
        rng = np.random.default_rng(self.first + index)
        label = index % len(CLASSES)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        spot = np.hypot(rows - rng.uniform(3, 8), columns - (1.5 + 4 * label + rng.uniform(-1, 1))) < 2.5
        image = np.where(spot, rng.integers(140, 256), rng.integers(0, 60)) + rng.normal(0, 12, spot.shape)
        return np.clip(image, 0, 255).astype(np.uint8)[:, :, None], label


# What training does to the images unless a config says otherwise (`augment.crop`, `augment.flip`): they are
# moved by a pixel, and not mirrored, as that would make a left one of a right one.
data.register('spots', data.Source(Spots, shape=(SIDE, SIDE, 1), classes=CLASSES, crop=1, flip=False))


def get_config():
    """What train.py reads: adversarial training on these images, with a small network."""
    config = recipes.paper('at', dataset='spots', arch='small_cnn')
    config.epochs, config.batch_size = 20, 32
    config.data.validation = 40
    config.threat.eps = 0.1
    config.attack.steps = config.evaluation.steps = 5
    config.schedule.peak = 0.05
    return config


def main(workdir='runs/own_data', epochs=10, examples=120, steps=20):
    """Trains, attacks the first `examples` test images, and returns the result."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    config = get_config()
    config.epochs = config.evaluation.every_epochs = epochs
    run(config, workdir)  # run again, it goes on from its last checkpoint, or is finished
    test = data.load('spots', 'test')
    return si_jax.evaluate(
        si_jax.load_model(workdir, 'last'),
        np.float32(test.images[:examples]) / test.scale,
        test.labels[:examples],
        attacks='pgd',
        eps=config.threat.eps,
        steps=steps,
    )


if __name__ == '__main__':
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--workdir', default='runs/own_data', help='of the run (default: %(default)s)')
    print(main(flags.parse_args().workdir).table())
