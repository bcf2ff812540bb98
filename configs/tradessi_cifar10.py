"""TRADES-SI on CIFAR-10: Table 6 of Xu et al.

TRADES (Zhang et al., 2019): natural cross-entropy and 6 times KL(natural || adversarial). The attack
ascends CE(15 cos) with the labels in place of the KL, and the objective gets 0.2 times the margin
cross-entropy of the adversarial cosines (s = 15, m = 0.2).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 84.05 | 58.73 | 53.56 | 54.77 | 50.60 |
| wrn_34_10 | 86.53 | 60.14 | 56.40 | 57.51 | 53.22 |

    python train.py --config=configs/tradessi_cifar10.py
    python train.py --config=configs/tradessi_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradessi_cifar10']
