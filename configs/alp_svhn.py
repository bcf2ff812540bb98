"""ALP on SVHN: Table 7 of Xu et al.

The defense and its weights are described in configs/alp_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 91.79 | 61.42 | 57.38 | 56.88 | 51.68 |

    python train.py --config=configs/alp_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alp_svhn']
