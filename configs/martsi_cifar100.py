"""MART-SI on CIFAR-100: Table 6 of Xu et al.

The defense and its weights are described in configs/martsi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 56.53 | 35.25 | 29.50 | 31.02 | 26.77 |
| wrn_34_10 | 58.90 | 36.47 | 30.98 | 32.92 | 28.36 |

    python train.py --config=configs/martsi_cifar100.py
    python train.py --config=configs/martsi_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['martsi_cifar100']
