"""A data set of your own, registered in the file of a config: trained on and evaluated like any other.

    python -m examples.own_data                       # a short run, then PGD and SI-PGD
    python train.py --config=examples/own_data.py     # the whole one; this file is a config like any other
    python evaluate.py --workdir=FOLDER               # which finds this file and the set again
    python evaluate.py --model=my_model.py:build --dataset=examples/own_data.py:shapes

The images are drawn here: circles, squares and crosses, light on dark, somewhere in 16 x 16 pixels. Yours may
come from anywhere. A reader is called with the split and the folder of --config.data.dir, and
returns an object of two methods, or two arrays at once.
"""

import argparse

import absl.logging
import numpy as np

import si_jax
from si_jax import data
from si_jax.training import recipes
from si_jax.training.loop import run

CLASSES = ('circle', 'square', 'cross')
SIDE = 16


class Shapes:
    """A split: how many images there are, and the one of a number with its label."""

    def __init__(self, split, folder):
        del folder  # of files; nothing is read here
        self.first, self.count = {'train': (0, 960), 'test': (10_000, 120)}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        """uint8 [height, width, channels] and an integer: the same ones whenever they are asked for."""
        rng = np.random.default_rng(self.first + index)
        label = index % len(CLASSES)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        y, x = rows - rng.uniform(6, 10), columns - rng.uniform(6, 10)
        inside = (
            np.hypot(y, x) < 4,
            np.maximum(abs(y), abs(x)) < 3.5,
            (np.minimum(abs(y), abs(x)) < 1.2) & (np.maximum(abs(y), abs(x)) < 4.5),
        )[label]
        light, dark = rng.integers(140, 256), rng.integers(0, 60)
        image = np.where(inside, light, dark) + rng.normal(0, 12, inside.shape)
        return np.clip(image, 0, 255).astype(np.uint8)[:, :, None], label


# crop and flip are what training does to the images unless a config says otherwise (`augment.crop`).
data.register('shapes', data.Source(Shapes, shape=(SIDE, SIDE, 1), classes=CLASSES, crop=2, flip=True))


def get_config():
    """What train.py reads: adversarial training on these images, with a small network."""
    config = recipes.paper('at', dataset='shapes', arch='small_cnn')
    config.epochs, config.batch_size = 20, 32
    config.data.validation = 160
    config.threat.eps = 0.1
    config.schedule.peak = 0.03
    return config


def main(workdir='runs/own_data', epochs=10, examples=120, steps=20):
    """Trains, attacks the first `examples` test images, and returns the result."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    config = get_config()
    config.epochs = config.evaluation.every_epochs = epochs
    config.attack.steps = config.evaluation.steps = min(steps, 5)
    run(config, workdir)  # run again, it goes on from its last checkpoint, or is finished
    test = data.load('shapes', 'test')
    return si_jax.evaluate(
        si_jax.load_model(workdir, 'last'),
        np.float32(test.images[:examples]) / test.scale,
        test.labels[:examples],
        attacks='pgd,sipgd',
        eps=config.threat.eps,
        steps=steps,
    )


if __name__ == '__main__':
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--workdir', default='runs/own_data', help='of the run (default: %(default)s)')
    print(main(flags.parse_args().workdir).table())
