"""One file a run: `<defense>[si|he]_<data set>.py`, a docstring and the recipe of that name.

The tables are those of Xu et al., "Scale-Invariant Adversarial Attack for Evaluating and Enhancing
Adversarial Defenses". Any architecture of `si_jax.models` can follow the file name after a colon (in
`digits`, `narrow` and `evidence` it is a defense that follows):

    python train.py --config=configs/tradessi_cifar10.py:wrn_34_10

Without one it is ResNet-18, and for methods with a repository of their own the network of that one. A
docstring with a table has a row for each architecture that the paper has.

SVHN is its train split alone (73,257 images, without `extra`); its digits are cropped but not flipped.
"""
