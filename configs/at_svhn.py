"""AT on SVHN: Table 7 of Xu et al.

Adversarial training (Madry et al., 2018): cross-entropy on the adversarial image.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 92.91 | 57.99 | 56.20 | 55.39 | 49.75 |

    python train.py --config=configs/at_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['at_svhn']
