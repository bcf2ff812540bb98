"""ACAT on CIFAR-10: TRADES with two attack steps in a ball that grows with every epoch.

Addepalli et al. (2022) train without their augmented branches as a cheap baseline. Recipe and threat are
those of val-iisc/DAJAT, train_DAJAT.py with --num_auto=0 and --train_budget=low: the radius grows from
8/255/110 to 8/255, start at x + 0.001 N(0, 1), 2 steps of the radius, KL weighted by 11, 110 epochs in
batches of 128, a rate that falls from 0.2 by a cosine with every epoch, weights perturbed by 0.5 % from
the tenth epoch on (AWP). Evaluated is the average of parameters and statistics, with a decay of 0.9996 in
each step of the last quarter.

With SI (`:,si`) attack and objective are those of TRADES-SI. This combination is ours.

Published by that repository, in % (natural, AutoAttack): 82.41 and 49.80. None was measured here.
`python -m si_jax.cli.plan` expects 11 minutes of training on an H100: 17 forward passes an image.

    python train.py --config=configs/acat_cifar10.py
    python train.py --config=configs/acat_cifar10.py:resnet18,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['acat_cifar10']
