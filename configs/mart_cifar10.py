"""MART on CIFAR-10: Table 6 of Xu et al.

MART (Wang et al., 2020): boosted cross-entropy on the adversarial image, and 6 times KL(natural ||
adversarial) weighted by 1 - p_y. The paper's lambda and weight decay differ from those of MART's own
ResNet-18 run (5 and 3.5e-3).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 80.99 | 57.11 | 52.38 | 52.27 | 48.71 |
| wrn_34_10 | 84.41 | 59.93 | 55.55 | 55.74 | 52.23 |

    python train.py --config=configs/mart_cifar10.py
    python train.py --config=configs/mart_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['mart_cifar10']
