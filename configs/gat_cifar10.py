"""GAT on CIFAR-10: Table 8 of Xu et al.

Guided adversarial training (Sriramanan et al., 2020): natural cross-entropy and 10 times (40 times from
epoch 86 of 100) the squared distance of natural and adversarial probabilities; one step of size eps
from half of eps of Bernoulli noise ascends both on every second batch, and the cross-entropy alone on
the others. Recipe and network, with one more ReLU in each block, are those of val-iisc/GAMA-GAT.

The paper's accuracies in % (Linf, eps 8/255, 20 steps):

| architecture | natural | PGD | PGD-CW | SI-PGD |
|---|---|---|---|---|
| resnet18 | 80.49 | 54.47 | 50.47 | 51.89 |

    python train.py --config=configs/gat_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['gat_cifar10']
