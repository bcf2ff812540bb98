"""RFGSM-AT on CIFAR-10: Table 8 of Xu et al.

Fast adversarial training (Wong et al., 2020): one step of size 1.25 eps from a uniform start, both
forward passes in training mode. Recipe and network are those of locuslab/fast_adversarial in float32:
30 epochs (its default is 15, `--config.epochs=15`), learning rate 0 to 0.2 to 0 and momentum 0.9 to 0.8
to 0.9; a run ends if accuracy under PGD-5 falls by more than 0.2 in an epoch
(`--config.overfitting.drop=0` for no guard).

The paper's accuracies in % (Linf, eps 8/255, 20 steps):

| architecture | natural | PGD | PGD-CW | SI-PGD |
|---|---|---|---|---|
| preact_resnet18 | 83.80 | 49.41 | 48.92 | 48.85 |

    python train.py --config=configs/rfgsm_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['rfgsm_cifar10']
