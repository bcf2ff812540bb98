"""AT-SI on SVHN: Table 7 of Xu et al.

Adversarial training (Madry et al., 2018): cross-entropy on the adversarial image. The attack ascends
CE(15 cos) in place of the cross-entropy of the logits, and the objective gets 0.2 times the margin
cross-entropy of the adversarial cosines (s = 15, m = 0.2). The train split alone (73,257 images,
without `extra`); digits are cropped but not flipped.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 92.34 | 60.05 | 57.08 | 57.11 | 51.19 |

    python train.py --config=configs/atsi_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['atsi_svhn']
