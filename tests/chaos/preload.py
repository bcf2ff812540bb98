"""What train.py and evaluate.py import, so that their forks have it (see `forks`)."""

import importlib

for _name in (
    'absl.app', 'matplotlib.pyplot', 'ml_collections.config_flags', 'scipy.stats', 'sklearn.datasets',
    'si_jax.cli.audit', 'si_jax.training.checkpoints', 'si_jax.runtime.compilation_cache',
    'si_jax.cli.evaluate',    'si_jax.training.loop',
):  # fmt: skip
    importlib.import_module(_name)
