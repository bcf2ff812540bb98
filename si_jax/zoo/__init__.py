"""Trained networks: those that come with the package, yours, and any workdir of train.py.

A zoo is a folder: `manifest.json`, and for each network a folder with its weights and its result. One comes
with the package; `SI_JAX_ZOO=FOLDER` adds another. docs/zoo.md says what stands in them.

`entries` reads manifests, `weights` the files of weights, and `load` gives a network from wherever it lies.
`verifying` checks that a network is what its manifest says, and `adding` puts a new one into a zoo.
"""
