"""MART-SI on CIFAR-10: Table 6 of Xu et al.

MART (Wang et al., 2020): boosted cross-entropy on the adversarial image, and 6 times KL(natural ||
adversarial) weighted by 1 - p_y. The attack ascends CE(15 cos) in place of the cross-entropy of the
logits, and the objective gets 0.2 times the margin cross-entropy of the adversarial cosines (s = 15, m
= 0.2). The paper's lambda and weight decay differ from those of MART's own ResNet-18 run (5 and
3.5e-3).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 81.46 | 61.02 | 52.49 | 53.90 | 49.09 |
| wrn_34_10 | 85.30 | 62.31 | 56.17 | 57.07 | 52.01 |

    python train.py --config=configs/martsi_cifar10.py
    python train.py --config=configs/martsi_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['martsi_cifar10']
