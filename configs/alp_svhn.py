"""ALP on SVHN: Table 7 of Xu et al.

Adversarial logit pairing (Kannan et al., 2018): the mean of natural and adversarial cross-entropy, and
3 times the mean squared difference of their logits. The paper does not state alpha and writes a norm of
the difference: alpha = 0.5 and the mean square are those of ShawnXYang/AT_HE. The train split alone
(73,257 images, without `extra`); digits are cropped but not flipped.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 91.79 | 61.42 | 57.38 | 56.88 | 51.68 |

    python train.py --config=configs/alp_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alp_svhn']
