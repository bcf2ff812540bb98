"""TRADES with adversarial weight perturbation (AWP) on CIFAR-10.

Wu et al. (2020): the gradient of the update is taken where the weights, too, were moved to raise the
objective, each kernel by 0.5 % of its length, from the tenth epoch on. Recipe and threat are those of
csdongxian/AWP, trades_AWP/train_trades_cifar.py: start at x + 0.001 N(0, 1), passes of x', x and x, 200
epochs in batches of 128, learning rate 0.1, a tenth of it after 100 and after 150 epochs (there counted
from 1, so one epoch earlier), weight decay 5e-4. That code trains a WRN-34-10 (`:wrn_34_10`); here it
is a PreActResNet-18.

With SI (`:,si`) attack and objective are those of TRADES-SI, and the weights climb that whole
objective. This combination is ours: no numbers were published.

Published, in % (natural, AutoAttack): 85.36 and 56.17 with a WRN-34-10 by that repository; 81.99 and
51.45 with a ResNet-18 and averaged weights, 200 epochs, in the table of val-iisc/DAJAT. None was
measured here. `python -m si_jax.cli.plan` expects 40 minutes of training on an H100: 34 forward passes
an image.

    python train.py --config=configs/tradesawp_cifar10.py
    python train.py --config=configs/tradesawp_cifar10.py:wrn_34_10
    python train.py --config=configs/tradesawp_cifar10.py:preact_resnet18,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['tradesawp_cifar10']
