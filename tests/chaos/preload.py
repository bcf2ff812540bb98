"""What train.py and evaluate.py import, so that their forks have it (see `forks`)."""

import importlib

for _name in (
    'absl.app', 'matplotlib.pyplot', 'ml_collections.config_flags', 'scipy.stats', 'sklearn.datasets',
    'si_jax.auditing.command', 'si_jax.checkpoints', 'si_jax.compilation_cache', 'si_jax.evaluation.command',
    'si_jax.training.run',
):  # fmt: skip
    importlib.import_module(_name)
