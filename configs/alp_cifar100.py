"""ALP on CIFAR-100: Table 6 of Xu et al.

The defense and its weights are described in configs/alp_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 58.19 | 31.16 | 27.89 | 27.61 | 25.47 |
| wrn_34_10 | 63.18 | 32.13 | 29.54 | 29.18 | 27.02 |

    python train.py --config=configs/alp_cifar100.py
    python train.py --config=configs/alp_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alp_cifar100']
