"""FreeAT on CIFAR-10: Table 8 of Xu et al.

Free adversarial training (Shafahi et al., 2019): every batch is used 8 times; each time one backward
pass moves the parameters and a perturbation of the batch that is never reset. The paper states no
recipe of its own: this is that of section 5.1.1, whose 120 epochs are 15 passes over the data.

The paper's accuracies in % (Linf, eps 8/255, 20 steps):

| architecture | natural | PGD | PGD-CW | SI-PGD |
|---|---|---|---|---|
| resnet18 | 84.45 | 47.69 | 47.14 | 47.31 |

    python train.py --config=configs/freeat_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['freeat_cifar10']
