"""MART on CIFAR-100: Table 6 of Xu et al.

The defense and its weights are described in configs/mart_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 54.58 | 33.37 | 28.68 | 28.54 | 26.10 |
| wrn_34_10 | 55.28 | 34.59 | 30.92 | 30.84 | 28.21 |

    python train.py --config=configs/mart_cifar100.py
    python train.py --config=configs/mart_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['mart_cifar100']
