"""RFGSM-AT-SI on CIFAR-10: Table 8 of Xu et al.

Fast adversarial training (Wong et al., 2020): one step of size 1.25 eps from a uniform start, both
forward passes in training mode. Recipe and network are those of locuslab/fast_adversarial in float32:
30 epochs (its default is 15, `--config.epochs=15`), learning rate 0 to 0.2 to 0 and momentum 0.9 to 0.8
to 0.9; a run ends if accuracy under PGD-5 falls by more than 0.2 in an epoch
(`--config.overfitting.drop=0` for no guard). The step ascends CE(15 cos) in place of the cross-entropy
of the logits, and the objective gets 0.2 times the margin cross-entropy of the adversarial cosines (s =
15, m = 0.2).

The paper's accuracies in % (Linf, eps 8/255, 20 steps):

| architecture | natural | PGD | PGD-CW | SI-PGD |
|---|---|---|---|---|
| preact_resnet18 | 82.85 | 50.75 | 49.69 | 49.42 |

    python train.py --config=configs/rfgsmsi_cifar10.py
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['rfgsmsi_cifar10']
