"""TRADES with generated images on CIFAR-10: the WRN-28-10 recipe of Wang et al. (2023) for 1M of them.

Seven of ten images of a batch come from a file of images that a diffusion model made, with the classes
that it was asked for. Recipe and threat are those of wzekai99/DM-Improves-AT, train-wa.py: 400 epochs of
98 batches of 512 (154 real, 358 generated), cross-entropy with 0.1 of label smoothing and 5 times KL, 10
steps of 2/255 on the statistics of the batch, SiLU, momentum 0.01 of the running statistics (1 in the
first step), weight decay 5e-4 but for batch normalisation, Nesterov, a rate that rises to 0.2 in 10 epochs
and falls to 0, moved once an epoch (and the momentum with it, 0.95 to 0.85 to 0.95, as torch's OneCycleLR
has it whatever the command says). Evaluated are averaged weights, decay 0.995.

Here real images come in passes that go on from epoch to epoch, where that code begins a new one with each;
the 1,024 held-out images are drawn from the training set, where it takes the first; and the best checkpoint
is chosen under calibrated PGD-20, where it takes PGD-40 on the margin.

Without `data.extra` the recipe is refused: give the 1m.npz of that repository, or any npz with arrays
`image` and `label`. More images (`--config.data.extra=20m_part1.npz,20m_part2.npz`) were trained on for
longer.

With SI (`:,si`) attack and objective are those of TRADES-SI; labels in the regulariser stay as they are.
This combination is ours: no numbers were published.

Published, in % (natural, AutoAttack; RobustBench): 91.12 and 63.35 with 1M images, 92.44 and 67.31 with 20M
and a longer run. None was measured here. `python -m si_jax.cli.plan` expects 10.3 hours of training on
an H100: 27 forward passes an image.

    python train.py --config=configs/wang2023_cifar10.py --config.data.extra=1m.npz
    python train.py --config=configs/wang2023_cifar10.py:wrn_28_10,si --config.data.extra=1m.npz
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['wang2023_cifar10']
