"""Evaluation: the accuracy of a classifier on clean images and under attacks, checked and verified.

`evaluate` runs from a classifier and images to a `Result`: it compiles the network, checks that it is fit
to be attacked, runs each attack, and classifies every final image once more before it counts. Each kind of
attack has a module: `pgd` for the PGD family, `cascade` for searches that follow each other, `custom` for a
function of the caller, `transfer` for images made on another model. `result` writes a result and reads it
back, and `compare` sets two of them against each other, image by image.
"""

from si_jax.evaluation.classifier import BlackBox, Randomised
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.result import Result

__all__ = ['BlackBox', 'Randomised', 'Result', 'evaluate']
