"""The defenses: Table 1 of the paper as one table in code, the single-step methods of Table 8 among its rows.

A defense is an *inner* objective, which the attack inside training maximises, and an *outer* objective, a sum
of weighted terms that training minimises. SI is not a second code path: `with_si` replaces the inner
objective by cross-entropy on scaled cosines and adds one term to the outer one. Nor is hypersphere embedding:
`with_he` has every term computed from cosines.

`definition` says what a row is, `table` has the rows, `variants` what SI and others make of one, and
`choosing` finds and checks the defense of a run.
"""

from si_jax.defenses.choosing import check_soft_labels, from_config, register
from si_jax.defenses.definition import (
    BN_MODES,
    HELPED,
    PASSES,
    SEEN,
    SEGMENT,
    SMOOTHINGS,
    WITHSTOOD,
    Defense,
    Position,
    Term,
)
from si_jax.defenses.table import BUILT_IN, DEFENSES
from si_jax.defenses.variants import INNERS, SI_TERM, with_he, with_inner, with_si, with_smoothing
from si_jax.memories import Memory

__all__ = [
    'BN_MODES',
    'BUILT_IN',
    'DEFENSES',
    'HELPED',
    'INNERS',
    'PASSES',
    'SEEN',
    'SEGMENT',
    'SI_TERM',
    'SMOOTHINGS',
    'WITHSTOOD',
    'Defense',
    'Memory',
    'Position',
    'Term',
    'check_soft_labels',
    'from_config',
    'register',
    'with_he',
    'with_inner',
    'with_si',
    'with_smoothing',
]
