"""The recipes: every run of `configs/` by name, what all of them share, and old configs completed.

`paper` is the recipe of sections 5.1.1 and 5.4 of Xu et al. A row of `RECIPES` names a defense, a data set
and an architecture, and has everything else from there, or from the defense's authors.
`recipe('tradessi_cifar10')` is the config of a row, and `configs/tradessi_cifar10.py` is its file. On the
command line the architecture follows the file, then `si` for the scale-invariant version of a row that is not
one, and any field can be set:

    python train.py --config=configs/tradessi_cifar10.py:wrn_34_10 --config.defense.weights.kl=5.0
    python train.py --config=configs/awp_cifar10.py:small_cnn,si
"""

from si_jax.training.recipes.authors import single_step as single_step
from si_jax.training.recipes.fields import SECTIONS as SECTIONS
from si_jax.training.recipes.fields import defense as defense
from si_jax.training.recipes.fields import paper as paper
from si_jax.training.recipes.stored import completed as completed
from si_jax.training.recipes.stored import plain as plain
from si_jax.training.recipes.studies import DIGITS_ROWS as DIGITS_ROWS
from si_jax.training.recipes.studies import NARROW_ROWS as NARROW_ROWS
from si_jax.training.recipes.table import RECIPES as RECIPES
from si_jax.training.recipes.table import recipe as recipe
