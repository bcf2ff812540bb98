"""Your own defense as one row, trained and evaluated on handwritten digits.

    python -m examples.own_defense                       # a short run, then PGD and SI-PGD
    python train.py --config=examples/own_defense.py     # the whole one; this file is a config like any other

The row below is TRADES with the squared distance of the probabilities in place of the KL divergence. A
defense is what its attack climbs (`inner`) and the weighted terms that training lowers (`outer`);
checkpoints, resuming and several devices come from the library.
"""

import argparse

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np

import si_jax
from configs import quickstart
from si_jax import data, objectives
from si_jax.defenses import Defense, Term, register
from si_jax.objectives import Objective
from si_jax.training import recipes
from si_jax.training.loop import run


def squared_distance(adversarial, natural, labels, step):
    """Logits [B, K] of the adversarial and of the natural images -> [B]."""
    difference = jax.nn.softmax(adversarial) - jax.nn.softmax(natural)
    return jnp.sum(difference**2, axis=1)


# `uses` says whose scores a loss reads; what nothing reads is not computed.
DISTANCE = Objective(squared_distance, uses=frozenset({'adv', 'nat'}))

register(
    'squared',
    Defense(
        outer={'natural_ce': Term(1.0, objectives.natural_ce), 'distance': Term(6.0, DISTANCE)},
        inner=DISTANCE,
        passes=('nat', 'adv'),
        start='uniform',  # its gradient is zero at the image itself
    ),
)


def get_config():
    """What train.py reads: the recipe of the quickstart with this defense."""
    config = quickstart.get_config()
    config.defense = recipes.defense('squared')  # si=True would add the SI attack and regulariser
    return config


def main(workdir='runs/own_defense', epochs=15, limit=0, examples=397, steps=20):
    """Trains on `limit` images (0: all), attacks the first `examples` test images, and returns the result."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    config = get_config()
    config.epochs, config.data.limit = epochs, limit
    config.evaluation.every_epochs, config.evaluation.steps = epochs, steps  # on held-out images, once
    run(config, workdir)  # run again, it goes on from its last checkpoint, or is finished
    test = data.load('digits', 'test')
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
    flags.add_argument('--workdir', default='runs/own_defense', help='of the run (default: %(default)s)')
    print(main(flags.parse_args().workdir).table())
