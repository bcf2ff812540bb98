"""HAT, helper-based adversarial training, on CIFAR-10.

Rade and Moosavi-Dezfooli (2022): TRADES with KL weighted by 2.5, and 0.5 times the cross-entropy of
points beyond the adversarial images, x + 2 (x' - x), not clipped. Their labels are the classes that a
helper network, trained without an attack, finds in x'. TRADES makes margins larger than robustness asks
for, at the price of natural accuracy; these points stop that. The run trains the helper first, by this recipe
without an attack. It can be given, too: as a workdir, a network of the zoo or a file of weights
(`init_from` reads the same kinds); of a workdir the last checkpoint is taken.

Recipe and threat are those of imrahulr/hat, train.py and core/utils/hat.py: start at x + 0.001 N(0, 1),
10 steps, passes of x, x' and the points, 50 epochs in batches of 128, a rate that goes from 0.0084 to
0.21 in a quarter of them and then to 0, Nesterov, weight decay 5e-4. The 2 is that command line's
default; 3.5 is only the default of the function.

With SI (`:,si`) the attack climbs CE(15 cos), and the objective gets 0.2 times the margin cross-entropy
of the adversarial cosines (s = 15, m = 0.2). This combination is ours.

Published by that repository, in % (natural, AutoAttack): 84.90 and 49.08. None was measured here.
`python -m si_jax.cli.plan` expects 9.2 minutes of training on an H100: 31 forward passes an image, one
of them the helper's, whose own training takes 53 seconds more.

    python train.py --config=configs/hat_cifar10.py
    python train.py --config=configs/hat_cifar10.py:resnet18,si

One helper for several runs:

    python train.py --config=configs/standard_cifar10.py --workdir=runs/helper
    python train.py --config=configs/hat_cifar10.py --config.defense.helper=runs/helper
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['hat_cifar10']
