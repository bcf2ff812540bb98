"""Defenses on the handwritten digits: a study that a CPU can pay for, not one of the paper's.

Network, threat (eps 0.2) and schedule are those of configs/quickstart.py, the weights those of the paper's
Table 6, or of the method's authors. The row follows the file name after a colon: at, trades, alp, mart, nfgsm
or nuat, each with si behind it or not.

    python train.py --config=configs/digits.py
    python train.py --config=configs/digits.py:martsi --config.seed=1

The test images are 397 of 8 x 8 pixels, and the 95 % interval of an accuracy spans some 10 points: the study
shows whether a method trains and whether an attack works, not how methods rank on CIFAR-10.
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['digits']
