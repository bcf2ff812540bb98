"""TRADES with the SI regulariser alone on CIFAR-10: an arm that Table 6 of Xu et al. lacks.

TRADES-SI changes two things at once, the attack and the objective. The attack ascends the KL as in
TRADES; the objective gets 0.2 times the margin cross-entropy of the adversarial cosines (s = 15, m =
0.2). The paper has no numbers for it.

    python train.py --config=configs/tradesreg_cifar10.py
    python train.py --config=configs/tradesreg_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradesreg_cifar10']
