"""TRADES-HE on CIFAR-100: Table 10 of Xu et al.

The defense and its weights are described in configs/tradeshe_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack). PGD this far above SI-PGD fits
attacks on the cosines themselves, which are so flat that PGD overestimates:

| architecture | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|
| resnet18 | 31.70 | 25.51 | 29.34 | 23.93 |

    python train.py --config=configs/tradeshe_cifar100.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradeshe_cifar100']
