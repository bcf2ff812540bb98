"""A published robust network and what defenses that hide their gradients do to it, for `evaluate.py --audit`.

    python evaluate.py --model=benchmarks/audited.py:cnn_a_adv4 --audit --dataset=cifar10 --data_dir=FOLDER
    python evaluate.py --model=benchmarks/audited.py:loud --audit --dataset=cifar10 --data_dir=FOLDER
    python evaluate.py --model=benchmarks/audited.py:quantised --audit --dataset=cifar10 --data_dir=FOLDER

The weights lie in the folder that SI_JAX_SHARED names, by default ../shared (see CONTRIBUTING.md).
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from si_jax import Outputs

LEVELS = 8  # of a pixel, after quantisation


def cnn_a_adv4() -> Callable[[jax.Array], Outputs]:
    """The network CNN-A-Adv-4 of Verified-Intelligence/alpha-beta-CROWN, trained for 8/255 on CIFAR-10."""
    shared = Path(os.environ.get('SI_JAX_SHARED', '../shared'))
    spec = importlib.util.spec_from_file_location('nets', shared / 'reference' / 'nets.py')
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, _ = nets.load(shared / 'checkpoints' / 'cnn_a_adv4.npz', 'cnn_a_adv4')
    return lambda images: Outputs(*network(images))


def loud() -> Callable[[jax.Array], Outputs]:
    """The same decisions from logits that are 1,000 times as large."""
    network = cnn_a_adv4()

    def louder(images: jax.Array) -> Outputs:
        logits, features, kernel = network(images)
        return Outputs(1000 * logits, features, kernel)

    return louder


def quantised() -> Callable[[jax.Array], Outputs]:
    """The same network behind pixels of few levels."""
    network = cnn_a_adv4()
    return lambda images: network(jnp.round(images * (LEVELS - 1)) / (LEVELS - 1))
