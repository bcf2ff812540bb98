"""The multi-step defenses on a part of CIFAR-10 with a narrow ResNet-18: a study that a CPU can pay for.

Not one of the paper's: 8 filters in the first layer in place of 64, 10,000 images, one epoch of batches of
32, 5 attack steps in place of 10, and a learning rate for so few updates. Defenses and threat are those of
Table 6. The row follows the file name after a colon, as in configs/digits.py.

    python train.py --config=configs/narrow.py
    python train.py --config=configs/narrow.py:martsi --config.seed=1

It shows that every method trains on real images, nothing of how methods rank after 120 epochs.
"""

from ml_collections import ConfigDict

from configs.digits import ROWS
from si_jax.errors import unknown
from si_jax.training import recipes


def get_config(row: str = 'tradessi') -> ConfigDict:
    """The config of a row.

    Raises:
        si_jax.errors.InputError: There is no such row.
    """
    if row not in ROWS:
        raise unknown('row', row, ROWS)
    name, si = ROWS[row]
    config = recipes.paper(name, si=si, dataset='cifar10', arch='resnet18')
    config.model.width = 8
    config.data.limit = 10_000
    config.data.validation = 100
    config.epochs = 1
    config.batch_size = 32
    config.attack.steps = 5
    config.schedule.peak = 0.05
    return config
