"""PyTorch models in and out.

A module becomes a JAX classifier in steps: `torch_trace` records its ATen operations (PyTorch's own, as
`aten::conv2d`), `torch_graph` turns that graph into one JAX function with the operations of `aten`, and
`linear_head` finds its last layer. `torch_files` and `torch_weights` read weights of the named
architectures, `loading` ties both ways together, and `export` writes a trained network as a PyTorch module.

Nothing here imports torch before it is needed: it is an optional extra, `pip install "si_jax[torch]"`.
"""
