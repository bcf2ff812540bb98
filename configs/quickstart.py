"""TRADES-SI on the handwritten digits that scikit-learn ships: 8 x 8 pixels, nothing to download.

Not an experiment of the paper. There are 1,400 training and 397 test images, and eps is 0.2: at 8/255 the
attacks are too weak to tell a robust net from a plain one.

    python train.py --config=configs/quickstart.py
    python evaluate.py --workdir=WORKDIR --attacks=pgd,cw,dlr,sipgd      # train.py prints the WORKDIR
"""

from si_jax.training.recipes import RECIPES

get_config = RECIPES['quickstart']
