"""The multi-step defenses on a part of CIFAR-10 with a narrow ResNet-18: a study that a CPU can pay for.

Not one of the paper's: 8 filters in the first layer in place of 64, 10,000 images, one epoch of batches of
32, 5 attack steps in place of 10, and a learning rate for so few updates. Defenses and threat are those of
Table 6. The row follows the file name after a colon, as in configs/digits.py.

    python train.py --config=configs/narrow.py
    python train.py --config=configs/narrow.py:martsi --config.seed=1

It shows that every method trains on real images, nothing of how methods rank after 120 epochs.
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['narrow']
