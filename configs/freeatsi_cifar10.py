"""FreeAT-SI on CIFAR-10: Table 8 of Xu et al.

Free adversarial training (Shafahi et al., 2019): every batch is used 8 times; each time one backward
pass moves the parameters and a perturbation of the batch that is never reset. The paper states no
recipe of its own: this is that of section 5.1.1, whose 120 epochs are 15 passes over the data. The
objective gets 0.2 times the margin cross-entropy of the adversarial cosines (s = 15, m = 0.2), and so
does what the perturbation climbs, by the same backward pass. `--config.defense.inner=si` has it climb
CE(15 cos) instead, by a second one.

The paper's accuracies in % (Linf, eps 8/255, 20 steps):

| architecture | natural | PGD | PGD-CW | SI-PGD |
|---|---|---|---|---|
| resnet18 | 84.22 | 48.37 | 46.97 | 46.56 |

    python train.py --config=configs/freeatsi_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['freeatsi_cifar10']
