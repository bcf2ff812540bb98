"""E-AT on CIFAR-10: a trained network made robust in Linf, L2 and L1 by a few epochs more.

Croce and Hein (2022): each batch is attacked in Linf (eps 8/255) or in L1 (eps 12), and what withstands
both withstands L2 (eps 0.5) too. The norm is drawn in proportion to the share of images that fell in it so
far in the run. The attack is APGD in ten steps from the original image, in L1 with 5 % of the pixels in
its first step, and its point of highest loss is trained on. Recipe as in fra31/robust-finetuning, train.py:
20 epochs in batches of 128, a rate of 0.01, a tenth of it after each third of the epochs, weight decay
5e-4. No images are held out, and the last weights are the result.

Training goes on from a network that is robust in any norm: `--config.init_from` is a folder of a run,
`zoo:NAME` or a file of weights, and the architecture behind the colon is that network's. The threat
models are `threat.norm` and `threat.eps` with those of `--config.defense.others=l1:12`; on ImageNet the
authors take Linf 4/255 and L1 255.

With SI (`:,si`) APGD climbs CE(15 cos), and the objective gets 0.2 times the margin cross-entropy of the
adversarial cosines (s = 15, m = 0.2). This combination is ours: no numbers were published.

What it gives is measured in all three norms at once, by `evaluate.py --threats=linf:8/255,l2:0.5,l1:12`.
No accuracy was measured here. `python -m si_jax.cli.plan` expects 2.9 minutes of training on an H100:
24 forward passes an image, where AT takes 23.

    python train.py --config=configs/eat_cifar10.py --config.init_from=FOLDER
    python train.py --config=configs/eat_cifar10.py:resnet18,si --config.init_from=FOLDER
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['eat_cifar10']
