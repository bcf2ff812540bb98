"""Trained networks with their recipe, digest and measured accuracies: `python -m si_jax.zoo`.

A zoo is a folder: `manifest.json`, and for each network a folder with its weights and its result. One comes
with the package; `SI_JAX_ZOO=FOLDER` adds another. docs/zoo.md says what stands in them.
"""
