"""AT-SI on CIFAR-100: Table 6 of Xu et al.

Adversarial training (Madry et al., 2018): cross-entropy on the adversarial image. The attack ascends
CE(15 cos) in place of the cross-entropy of the logits, and the objective gets 0.2 times the margin
cross-entropy of the adversarial cosines (s = 15, m = 0.2).

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
