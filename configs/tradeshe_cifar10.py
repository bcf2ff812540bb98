"""TRADES-HE on CIFAR-10: Table 10 of Xu et al.

TRADES (Zhang et al., 2019) with hypersphere embedding (Pang et al., 2020): the logits are the cosines
between features and weights; natural cross-entropy of 15 cos with a margin of 0.2 on the true class,
and 6 times the KL divergence of 15 cos, which the attack ascends. The recipe is that of section 5.1.1,
and pixels are not normalised.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack). PGD this far above SI-PGD fits
attacks on the cosines themselves, which are so flat that PGD overestimates:

| architecture | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|
| resnet18 | 61.45 | 52.08 | 51.57 | 49.86 |

    python train.py --config=configs/tradeshe_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradeshe_cifar10']
