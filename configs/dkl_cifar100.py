"""IKL, the improved KL divergence, on CIFAR-100: `dkl_cifar10` with the settings of train_dkl_cifar100.py.

They are the same: weights 20 and 4, temperature 4, 200 epochs. That repository also runs a weight of 5
(`--config.defense.weights.pair_ce=5.0`).

With SI (`:,si`) as in `dkl_cifar10`; this combination is ours.

Published by that repository, in % (natural, AutoAttack): 65.76 and 31.91 with a WRN-34-10. None was measured
here. `python -m si_jax.cli.plan` expects 5.4 hours of training on an H100: 23 forward passes an image.

    python train.py --config=configs/dkl_cifar100.py
    python train.py --config=configs/dkl_cifar100.py:wrn_34_10,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['dkl_cifar100']
