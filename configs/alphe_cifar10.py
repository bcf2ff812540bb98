"""ALP-HE on CIFAR-10, beside Table 10 of Xu et al., which has TRADES-HE only.

Adversarial logit pairing (Kannan et al., 2018) with hypersphere embedding (Pang et al., 2020): the
logits are the cosines between features and weights; the mean of natural and adversarial cross-entropy
of 15 cos with a margin of 0.2 on the true class, and 3 times the mean squared difference of the
cosines. The attack ascends CE(15 cos). The README of ShawnXYang/AT_HE has s = 20, m = 0.3 and 0.5 in
place of 3. The recipe is that of section 5.1.1, and pixels are not normalised.

The paper has no numbers for it. PGD on the cosines themselves, which are very flat, overestimates.

    python train.py --config=configs/alphe_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alphe_cifar10']
