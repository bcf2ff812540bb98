"""PyTorch models in and out.

Nothing here imports torch before it is needed: it is an optional extra, `pip install "si_jax[torch]"`.
"""
