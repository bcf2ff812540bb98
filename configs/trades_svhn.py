"""TRADES on SVHN: Table 7 of Xu et al.

TRADES (Zhang et al., 2019): natural cross-entropy and 6 times KL(natural || adversarial).

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 90.42 | 61.28 | 57.39 | 56.90 | 50.82 |

    python train.py --config=configs/trades_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['trades_svhn']
