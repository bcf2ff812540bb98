"""AT-SI on CIFAR-10: Table 6 of Xu et al.

Adversarial training (Madry et al., 2018): cross-entropy on the adversarial image. The attack ascends
CE(15 cos) in place of the cross-entropy of the logits, and the objective gets 0.2 times the margin
cross-entropy of the adversarial cosines (s = 15, m = 0.2).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 83.03 | 55.76 | 52.93 | 52.89 | 48.15 |
| wrn_34_10 | 85.69 | 57.01 | 55.37 | 55.58 | 51.48 |

    python train.py --config=configs/atsi_cifar10.py
    python train.py --config=configs/atsi_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['atsi_cifar10']
