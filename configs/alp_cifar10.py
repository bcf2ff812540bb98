"""ALP on CIFAR-10: Table 6 of Xu et al.

Adversarial logit pairing (Kannan et al., 2018): the mean of natural and adversarial cross-entropy, and
3 times the mean squared difference of their logits. The paper does not state alpha and writes a norm of
the difference: alpha = 0.5 and the mean square are those of ShawnXYang/AT_HE.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 84.25 | 56.11 | 53.26 | 53.06 | 50.30 |
| wrn_34_10 | 87.31 | 57.54 | 55.73 | 55.42 | 52.49 |

    python train.py --config=configs/alp_cifar10.py
    python train.py --config=configs/alp_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alp_cifar10']
