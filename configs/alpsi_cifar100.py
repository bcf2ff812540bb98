"""ALP-SI on CIFAR-100: Table 6 of Xu et al.

The defense and its weights are described in configs/alpsi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 61.49 | 32.46 | 28.38 | 28.62 | 25.51 |
| wrn_34_10 | 64.14 | 32.89 | 30.00 | 30.11 | 26.83 |

    python train.py --config=configs/alpsi_cifar100.py
    python train.py --config=configs/alpsi_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alpsi_cifar100']
