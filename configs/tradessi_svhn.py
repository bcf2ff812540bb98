"""TRADES-SI on SVHN: Table 7 of Xu et al.

The defense and its weights are described in configs/tradessi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 89.66 | 62.68 | 57.93 | 58.87 | 52.13 |

    python train.py --config=configs/tradessi_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradessi_svhn']
