"""Evaluation: clean and robust accuracy of a classifier, checked and verified."""

from si_jax.evaluation.classifier import Randomised
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.result import Result

__all__ = ['Randomised', 'Result', 'evaluate']
