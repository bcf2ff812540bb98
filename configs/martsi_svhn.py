"""MART-SI on SVHN: Table 7 of Xu et al.

The defense and its weights are described in configs/martsi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 90.09 | 64.32 | 58.01 | 58.57 | 51.96 |

    python train.py --config=configs/martsi_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['martsi_svhn']
