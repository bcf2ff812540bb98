"""GradAlign on CIFAR-10: Table 8 of Xu et al.

FGSM training with gradient alignment (Andriushchenko and Flammarion, 2020): one step of size eps from
the image, and 0.2 times 1 - cos of the angle between the gradients at the image and at a random point
of the ball. Recipe and network are those of tml-epfl/understanding-fast-adv-training in float32, except
that the last, partial batch of an epoch is kept.

The paper's accuracies in % (Linf, eps 8/255, 20 steps):

| architecture | natural | PGD | PGD-CW | SI-PGD |
|---|---|---|---|---|
| preact_resnet18 | 80.14 | 49.42 | 48.23 | 48.12 |

    python train.py --config=configs/gradalign_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['gradalign_cifar10']
