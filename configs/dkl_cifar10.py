"""IKL, the improved KL divergence, on CIFAR-10.

Cui et al. (2023) take KL apart into a cross-entropy and weighted squares of what the attack does to the
differences of logits, and replace two things: the squares have a gradient through the natural logits too,
and their weights are mean probabilities of the image's class. Those are the means of softmax(logits / 4)
over the epoch before, equal ones in the first. They are part of the train state. The loss is CE + 20 x
squares + 4 x cross-entropy.

Recipe and threat are those of jiequancui/DKL, train_dkl_cifar10.py: the radius grows from 8/255/200 to
8/255, start at x + 0.001 N(0, 1), passes of x' and x, 200 epochs in batches of 128, a rate that falls
from 0.2 by a cosine with every epoch, weights perturbed by 0.5 % from the tenth epoch on (AWP). The
attack takes 5 steps of half the radius: that code means to begin with 2, but the last of its four tests
of the epoch always holds. Evaluated is the average over epochs with a weight of 0.9 of the average before
(swa.py). A class that an epoch has no image of keeps its means, where that code divides by zero. Its
network is a WRN-34-10.

With SI (`:,si`) the attack climbs CE(15 cos), and the objective gets 0.2 times the margin cross-entropy
of the adversarial cosines (s = 15, m = 0.2); IKL stays on logits. This combination is ours.

Published by that repository, in % (natural, AutoAttack): 85.31 and 57.13. None was measured here.
`python -m si_jax.cli.plan` expects 5.4 hours of training on an H100: 23 forward passes an image.

    python train.py --config=configs/dkl_cifar10.py
    python train.py --config=configs/dkl_cifar10.py:wrn_34_10,si
    python train.py --config=configs/dkl_cifar10.py:resnet18
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['dkl_cifar10']
