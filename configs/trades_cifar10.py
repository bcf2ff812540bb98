"""TRADES on CIFAR-10: Table 6 of Xu et al.

TRADES (Zhang et al., 2019): natural cross-entropy and 6 times KL(natural || adversarial).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 84.15 | 55.23 | 52.67 | 52.24 | 50.06 |
| wrn_34_10 | 86.36 | 58.04 | 56.32 | 56.27 | 52.35 |

    python train.py --config=configs/trades_cifar10.py
    python train.py --config=configs/trades_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['trades_cifar10']
