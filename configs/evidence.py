"""Defenses on all of CIFAR-10 with a narrow ResNet-18: the short runs of the study in docs/study.md.

8 filters in the first layer in place of 64, batches of 64, two epochs with 5 attack steps (N-FGSM: five
epochs), a cosine schedule from 0.1 with a warm-up of a tenth, averaged weights. Defenses and threat are those
of Table 6, or of N-FGSM's authors. The row follows the file name after a colon: trades, tradessi, tradesreg
(SI's regulariser alone), tradesatt (SI's attack alone), tradescal (calibrated attack), at, atsi, nfgsm or
nfgsmsi.

    python train.py --config=configs/evidence.py
    python train.py --config=configs/evidence.py:tradessi --config.seed=1

The planner measures how long a machine takes for a run:

    python -m si_jax.cli.plan --config=configs/evidence.py:trades --calibrate
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['evidence']
