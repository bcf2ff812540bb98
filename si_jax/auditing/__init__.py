"""Auditing: whether the robust accuracy that an attack measures on a classifier may be trusted.

`runner` takes the arguments of an evaluation and makes the checks of `work` one after another. What they
measure comes from `traces` (losses along an attack), `gradients`, `curves` (over radii and steps), `others`
(an attack without gradients, images of other networks) and `binarization` (images planted to be found).
`verdicts` says what each measurement means; `report` and `plots` show it, and `headings` says under which
points of an auditor's catalogue a check is evidence.
"""

from si_jax.auditing.report import Audit
from si_jax.auditing.runner import audit

__all__ = ['Audit', 'audit']
