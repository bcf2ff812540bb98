"""Auditing: whether the robust accuracy that an attack measures on a classifier may be trusted."""

from si_jax.auditing.report import Audit
from si_jax.auditing.runner import audit

__all__ = ['Audit', 'audit']
