"""AT-SI on CIFAR-100: Table 6 of Xu et al.

The defense and its weights are described in configs/atsi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 57.52 | 31.94 | 28.72 | 29.68 | 25.30 |
| wrn_34_10 | 60.25 | 32.65 | 30.44 | 31.51 | 27.26 |

    python train.py --config=configs/atsi_cifar100.py
    python train.py --config=configs/atsi_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['atsi_cifar100']
