"""AT on CIFAR-100: Table 6 of Xu et al.

Adversarial training (Madry et al., 2018): cross-entropy on the adversarial image.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 60.48 | 31.11 | 29.44 | 29.37 | 25.57 |
| wrn_34_10 | 59.48 | 32.34 | 30.01 | 29.63 | 26.84 |

    python train.py --config=configs/at_cifar100.py
    python train.py --config=configs/at_cifar100.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['at_cifar100']
