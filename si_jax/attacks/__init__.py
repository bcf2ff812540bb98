"""Attacks: maximise a loss inside a threat model."""

from si_jax.attacks.ascent import Ascent, Rule, ascend
from si_jax.attacks.catalogue import ATTACKS, PRESETS, SEARCHES, parse, stages
from si_jax.attacks.gradient import Attack, run

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
