"""TRADES-HE on SVHN: Table 10 of Xu et al.

The defense and its weights are described in configs/tradeshe_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack). PGD this far above SI-PGD fits
attacks on the cosines themselves, which are so flat that PGD overestimates:

| architecture | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|
| resnet18 | 67.32 | 56.55 | 57.53 | 51.90 |

    python train.py --config=configs/tradeshe_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradeshe_svhn']
