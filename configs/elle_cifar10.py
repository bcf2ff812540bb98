r"""ELLE on CIFAR-10: FGSM training with a loss that is kept straight inside the ball.

Abad Rocamora et al. (2024): one step of size eps from the image, and 1000 times the squared difference
between the loss at a random point of a random segment of the ball and what a straight line between the
losses at its ends gives there. It takes forward passes alone, where GradAlign needs a second
derivative. Recipe and network are those of LIONS-EPFL/ELLE in float32: 30 epochs, learning rate 0 to
0.2 to 0 and momentum 0.9 to 0.8 to 0.9. That code clips no image to [0, 1], as
`--config.defense.bounds=none` says. It makes two updates with each gradient, which looks like an
oversight; here it is one, so its numbers are not this recipe's. A run ends if accuracy under PGD-5
falls by more than 0.2 in an epoch (`--config.overfitting.drop=0` for no guard).

The weight is that of eps up to 8/255. That code takes 5000 for 10/255 to 20/255, and 10000 from 22/255
on: `--config.defense.weights.nonlinearity=5000`. In ELLE-A the weight is 4000 after a batch that stands
out (beyond the mean and two standard deviations of all before it), and falls by 1 % a batch.

With SI (`:,si`) the step climbs CE(15 cos), the straight line is that of CE(15 cos), and the objective
gets 0.2 times the margin cross-entropy of the adversarial cosines (s = 15, m = 0.2). This combination
is ours. CE(15 cos) has another scale than the cross-entropy of logits, so choose the weight anew.

The repository publishes no accuracies, and none was measured here. `python -m si_jax.cli.plan` expects
2.8 minutes of training on an H100: 16 forward passes an image.

    python train.py --config=configs/elle_cifar10.py
    python train.py --config=configs/elle_cifar10.py:preact_resnet18,si
    python train.py --config=configs/elle_cifar10.py --config.defense.name=ellea \
        --config.defense.weights.nonlinearity=4000
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['elle_cifar10']
