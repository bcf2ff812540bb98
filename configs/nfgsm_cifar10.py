"""N-FGSM on CIFAR-10: adversarial training with one step from loud noise.

de Jorge et al. (2022): the attack starts at noise from U(-2 eps, 2 eps), makes one step of size eps,
and is cut to [0, 1] but not to the ball. Training minimises the cross-entropy there. Recipe and network
are those of pdejorge/N-FGSM in float32: 30 epochs, learning rate 0 to 0.2 to 0 and momentum 0.9 to 0.8
to 0.9. A run ends if accuracy under PGD-5 falls by more than 0.2 in an epoch
(`--config.overfitting.drop=0` for no guard). `--config.defense.start_radius` is the factor of the
noise; that code takes 4 for a WRN at eps 16/255.

With SI (`:,si`) the step climbs CE(15 cos), and the objective gets 0.2 times the margin cross-entropy
of the adversarial cosines (s = 15, m = 0.2). This combination is ours: no numbers were published.

The repository publishes no accuracies, and none was measured here. `python -m si_jax.cli.plan` expects
64 s of training on an H100: 6 forward passes an image.

    python train.py --config=configs/nfgsm_cifar10.py
    python train.py --config=configs/nfgsm_cifar10.py:preact_resnet18,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['nfgsm_cifar10']
