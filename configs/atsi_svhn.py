"""AT-SI on SVHN: Table 7 of Xu et al.

The defense and its weights are described in configs/atsi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 92.34 | 60.05 | 57.08 | 57.11 | 51.19 |

    python train.py --config=configs/atsi_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['atsi_svhn']
