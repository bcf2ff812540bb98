"""MART on SVHN: Table 7 of Xu et al.

The defense and its weights are described in configs/mart_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 91.84 | 62.45 | 56.50 | 55.54 | 49.64 |

    python train.py --config=configs/mart_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['mart_svhn']
