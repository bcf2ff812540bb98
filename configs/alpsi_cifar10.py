"""ALP-SI on CIFAR-10: Table 6 of Xu et al.

Adversarial logit pairing (Kannan et al., 2018): the mean of natural and adversarial cross-entropy, and
3 times the mean squared difference of their logits. The attack ascends CE(15 cos) in place of the
cross-entropy of the logits, and the objective gets 0.2 times the margin cross-entropy of the
adversarial cosines (s = 15, m = 0.2). The paper does not state alpha and writes a norm of the
difference: alpha = 0.5 and the mean square are those of ShawnXYang/AT_HE.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 85.70 | 57.64 | 53.06 | 52.66 | 49.30 |
| wrn_34_10 | 86.04 | 59.65 | 55.74 | 55.57 | 52.73 |

    python train.py --config=configs/alpsi_cifar10.py
    python train.py --config=configs/alpsi_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alpsi_cifar10']
