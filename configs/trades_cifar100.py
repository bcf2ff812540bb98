"""TRADES on CIFAR-100: Table 6 of Xu et al.

TRADES (Zhang et al., 2019): natural cross-entropy and 6 times KL(natural || adversarial).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 62.05 | 31.39 | 27.10 | 26.68 | 25.04 |
| wrn_34_10 | 63.74 | 33.85 | 30.62 | 30.16 | 27.24 |

    python train.py --config=configs/trades_cifar100.py
    python train.py --config=configs/trades_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['trades_cifar100']
