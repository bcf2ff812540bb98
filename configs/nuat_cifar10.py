"""NuAT on CIFAR-10: the nuclear norm of a batch's difference of logits, with one attack step.

Sriramanan et al. (2021): natural cross-entropy, and lambda times the nuclear norm (the sum of the
singular values) of the matrix of all logit differences of the batch, over its number of images. lambda
is 0 in the first epoch and rises by 0.04 after each, to 3.96 in the last. The attack starts at half of
eps of +-1 noise and makes one step of size eps; on every second batch it climbs the nuclear term too.
Recipe and network are those of val-iisc/NuAT, CIFAR10/NuAT_cifar10.py: 100 epochs in batches of 64,
learning rate 0 to 0.1 in 25 epochs, then to 0, and momentum 0.9 to 0.8 to 0.9. That code divides by 64
in the last, smaller batch of an epoch too. A run ends if accuracy under PGD-5 falls by more than 0.2 in
an epoch (`--config.overfitting.drop=0` for no guard). Evaluated are the averaged weights of NuAT-WA:
parameters and statistics, with a decay of 0.9998 in each step (`--config.average.kind=''` for NuAT
without them).

With SI (`:,si`) the norm is that of 15 (cos - cos'), the attack climbs CE(15 cos), and the objective
gets 0.2 times the margin cross-entropy of the adversarial cosines (s = 15, m = 0.2). This combination
is ours. Scaled cosines have another scale than logits, so choose the weight anew:
`--config.defense.weights.nuclear=4`.

Published by that repository, in % (Linf, eps 8/255; AutoAttack in its first version): 49.24 for NuAT,
and for NuAT-WA 82.21 natural and 50.75. None was measured here. `python -m si_jax.cli.plan` expects 5.3
minutes of training on an H100: 9 forward passes an image.

    python train.py --config=configs/nuat_cifar10.py
    python train.py --config=configs/nuat_cifar10.py:resnet18,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['nuat_cifar10']
