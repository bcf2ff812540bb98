"""TRADES with a calibrated label-CE attack on CIFAR-10: an arm that Table 6 of Xu et al. lacks.

TRADES-SI changes two things at once, the attack and the objective. The attack ascends the cross-entropy
of a times the logits with the labels in place of the KL, where a = 2 / (median gap of the two highest
natural logits of the batch), a constant to every gradient: as blind to the scale of the logits as
SI-PGD, without cosines. The objective is that of TRADES. The paper has no numbers for it.

    python train.py --config=configs/tradescal_cifar10.py
    python train.py --config=configs/tradescal_cifar10.py:wrn_34_10
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradescal_cifar10']
