"""TRADES with a label-CE attack on CIFAR-10: an arm that Table 6 of Xu et al. lacks.

TRADES-SI changes two things at once, the attack and the objective. The attack ascends the cross-entropy
of the logits with the labels in place of the KL; the objective is that of TRADES. The paper
has no numbers for it.

    python train.py --config=configs/tradesce_cifar10.py
    python train.py --config=configs/tradesce_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradesce_cifar10']
