"""DAJAT on CIFAR-10: TRADES on each batch and on two copies of it after AutoAugment.

Addepalli et al. (2022): each copy is attacked too, and has the same loss, whose mean over the three is
taken. To it come 2 times the Jensen-Shannon divergence between the natural probabilities of the three.
The copies share a set of batch statistics and affine parameters of their own, so that strong augmentation
does not shift those that are evaluated; a network without batch normalisation is refused. AutoAugment is
its policy for CIFAR-10, before crop and mirroring, each copy with its own.

Recipe and threat are those of val-iisc/DAJAT, train_DAJAT.py: the radius grows from 8/255/200 to 8/255,
start at x + 0.001 N(0, 1), KL weighted by 11, 200 epochs in batches of 128, a rate that falls from 0.2 by
a cosine with every epoch, weights perturbed by 0.5 % from the tenth epoch on (AWP), where they climb the
loss of the images alone. The attack takes 5 steps of half the radius, as the released code does and the
published networks had: that code means to take 2, 3, 4 and 5 in the four quarters, but the last of its
four tests of the epoch always holds. Evaluated is the average of parameters and statistics, with a decay
of 0.9996 in each step of the last quarter. For a WRN-34-10 that code takes KL weighted by 10 and the
divergence by 3; `--config.defense.branches=1` is one copy.

With SI (`:,si`) the attack of each branch climbs CE(15 cos), and each gets 0.2 times the margin
cross-entropy of the adversarial cosines (s = 15, m = 0.2); the divergence stays on logits. This
combination is ours.

Published by that repository, in % (natural, AutoAttack): 85.71 and 52.48. None was measured here.
`python -m si_jax.cli.plan` expects 67 minutes of training on an H100: 57 forward passes an image.

    python train.py --config=configs/dajat_cifar10.py
    python train.py --config=configs/dajat_cifar10.py:resnet18,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['dajat_cifar10']
