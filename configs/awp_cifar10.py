"""AT with adversarial weight perturbation (AWP) on CIFAR-10.

Wu et al. (2020): the gradient of the update is taken where the weights, too, were moved to raise the
loss, each kernel by 1 % of its length (`--config.awp.gamma=0` for none). Recipe and network are those
of csdongxian/AWP, AT_AWP/train_cifar10.py, in float32: PGD-10 with steps of 2/255 in training mode, 200
epochs in batches of 128, learning rate 0.1, a tenth of it after 100 and after 150 epochs, weight decay
5e-4. In that code the passes of the attack move the running statistics too, and the attack of each
epoch's first batch is in evaluation mode.

With SI (`:,si`) attack and objective are those of AT-SI, and the weights climb that whole objective.
This combination is ours: no numbers were published.

Published, in %: the log of that repository's run ends at 81.65 natural and 54.30 under PGD-20;
AutoAttack for WRN-34-10 is 85.36 natural and 53.97. None was measured here. `python -m si_jax.cli.plan`
expects 31 minutes of training on an H100: 26 forward passes an image, where AT takes 23.

    python train.py --config=configs/awp_cifar10.py
    python train.py --config=configs/awp_cifar10.py:preact_resnet18,si
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['awp_cifar10']
