"""ALP-SI on SVHN: Table 7 of Xu et al.

The defense and its weights are described in configs/alpsi_cifar10.py.

The paper's accuracies in % (Linf, eps 8/255, 20 steps; AA is AutoAttack):

| architecture | natural | PGD | PGD-CW | SI-PGD | AA |
|---|---|---|---|---|---|
| resnet18 | 90.02 | 61.43 | 57.49 | 58.49 | 52.56 |

    python train.py --config=configs/alpsi_svhn.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['alpsi_svhn']
