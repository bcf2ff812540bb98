"""TRADES-SI on the handwritten digits that scikit-learn ships: 8 x 8 pixels, nothing to download.

Not an experiment of the paper. There are 1,400 training and 397 test images, and eps is 0.2: at 8/255 the
attacks are too weak to tell a robust net from a plain one.

    python train.py --config=configs/quickstart.py
    python evaluate.py --workdir=WORKDIR --attacks=pgd,cw,dlr,sipgd      # train.py prints the WORKDIR
"""

from ml_collections import ConfigDict

from si_jax.training import recipes


def get_config(arch: str = 'small_cnn') -> ConfigDict:
    """TRADES-SI with the paper's weights on a small net; the learning rate suits a few hundred steps."""
    config = recipes.paper('trades', si=True, dataset='digits', arch=arch)
    config.epochs = 40
    config.batch_size = 32
    config.data.validation = 200
    config.threat.eps = 0.2
    config.schedule.peak = 0.03
    return config
