"""MART on SVHN: Table 7 of Xu et al.

MART (Wang et al., 2020): boosted cross-entropy on the adversarial image, and 6 times KL(natural ||
adversarial) weighted by 1 - p_y. The paper's lambda and weight decay differ from those of MART's own
ResNet-18 run (5 and 3.5e-3). The train split alone (73,257 images, without `extra`); digits are cropped
but not flipped.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 91.84 | 62.45 | 56.50 | 55.54 | 49.64 |

    python train.py --config=configs/mart_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['mart_svhn']
