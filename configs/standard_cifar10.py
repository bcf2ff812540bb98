"""Training without an attack on CIFAR-10: a helper network for several runs of `hat_cifar10`.

It has next to no robustness. Recipe: imrahulr/hat, train.py: 50 epochs in batches of 128, a rate that goes
from 0.0084 to 0.21 in a quarter of them and then to 0, Nesterov, weight decay 5e-4, and a momentum that goes
from 0.95 to 0.85 and back, as torch's OneCycleLR has it whatever the command says.

    python train.py --config=configs/standard_cifar10.py --workdir=runs/helper
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['standard_cifar10']
