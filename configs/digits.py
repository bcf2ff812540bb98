"""The multi-step defenses on the handwritten digits: a study that a CPU can pay for, not one of the paper's.

Network, threat (eps 0.2) and schedule are those of configs/quickstart.py, the weights those of the paper's
Table 6. The row follows the file name after a colon: at, trades, alp, mart, each with si behind it or not.

    python train.py --config=configs/digits.py
    python train.py --config=configs/digits.py:martsi --config.seed=1

The test images are 397 of 8 x 8 pixels, and the 95 % interval of an accuracy spans some 10 points: the study
shows whether a method trains and whether an attack works, not how methods rank on CIFAR-10.
"""

from ml_collections import ConfigDict

from configs import quickstart
from si_jax.errors import unknown
from si_jax.training import recipes

METHODS = ('at', 'trades', 'alp', 'mart')
ROWS = {f'{name}{"si" if si else ""}': (name, si) for name in METHODS for si in (False, True)}


def get_config(row: str = 'tradessi') -> ConfigDict:
    """The config of a row.

    Raises:
        si_jax.errors.InputError: There is no such row.
    """
    if row not in ROWS:
        raise unknown('row', row, ROWS)
    name, si = ROWS[row]
    config = quickstart.get_config()
    config.defense = recipes.defense(name, si=si)
    return config
