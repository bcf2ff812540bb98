"""Attacks: maximise a loss inside a threat model."""

from si_jax.attacks.ascent import Ascent, Rule, ascend
from si_jax.attacks.pgd import Attack, run
from si_jax.attacks.registry import ATTACKS, PRESETS, SEARCHES, parse, stages

__all__ = [
    'ATTACKS',
    'PRESETS',
    'SEARCHES',
    'Ascent',
    'Attack',
    'Rule',
    'ascend',
    'parse',
    'run',
    'stages',
]
