"""AT on CIFAR-10: Table 6 of Xu et al.

Adversarial training (Madry et al., 2018): cross-entropy on the adversarial image.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 85.57 | 54.12 | 53.15 | 52.47 | 48.49 |
| wrn_34_10 | 85.60 | 55.84 | 54.78 | 54.76 | 51.02 |

    python train.py --config=configs/at_cifar10.py
    python train.py --config=configs/at_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['at_cifar10']
