"""AT-HE on SVHN, beside Table 10 of Xu et al., which has TRADES-HE only.

The defense and its weights are described in configs/athe_cifar10.py.

The paper has no numbers for it. PGD on the cosines themselves, which are very flat, overestimates.

    python train.py --config=configs/athe_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['athe_svhn']
