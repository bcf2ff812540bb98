"""TRADES-SI on SVHN: Table 7 of Xu et al.

TRADES (Zhang et al., 2019): natural cross-entropy and 6 times KL(natural || adversarial). The attack
ascends CE(15 cos) with the labels in place of the KL, and the objective gets 0.2 times the margin
cross-entropy of the adversarial cosines (s = 15, m = 0.2). The train split alone (73,257 images,
without `extra`); digits are cropped but not flipped.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 89.66 | 62.68 | 57.93 | 58.87 | 52.13 |

    python train.py --config=configs/tradessi_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradessi_svhn']
