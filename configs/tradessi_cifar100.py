"""TRADES-SI on CIFAR-100: Table 6 of Xu et al.

The defense and its weights are described in configs/tradessi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 60.17 | 33.54 | 28.19 | 29.66 | 25.86 |
| wrn_34_10 | 62.39 | 35.07 | 30.89 | 31.90 | 28.54 |

    python train.py --config=configs/tradessi_cifar100.py
    python train.py --config=configs/tradessi_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradessi_cifar100']
