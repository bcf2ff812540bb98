"""AT-HE on CIFAR-10, beside Table 10 of Xu et al., which has TRADES-HE only.

Adversarial training (Madry et al., 2018) with hypersphere embedding (Pang et al., 2020): the logits are
the cosines between features and weights; the attack ascends CE(15 cos), and training minimises it with
a margin of 0.2 on the true class. The recipe is that of section 5.1.1, and pixels are not normalised.

The paper has no numbers for it. PGD on the cosines themselves, which are very flat, overestimates.

    python train.py --config=configs/athe_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['athe_cifar10']
