"""What is not an attack: the data pipeline alone, compile times, peak memory."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import peers
from benchmarks.pgd import attack_and_arguments
from benchmarks.turns import in_turns
from si_jax import data, defenses
from si_jax.cost import planning
from si_jax.training import recipes
from si_jax.training.setup import compile_train_step
from si_jax.training.timing import arguments, synthetic

ROOT = Path(__file__).resolve().parent.parent


def data_rows(quick: bool) -> list[dict[str, Any]]:
    """Row (d): batches of 128 gathered from resident bytes, cropped, flipped and scaled, against PyTorch."""
    batch, count = 128, 5_000
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    order = rng.permutation(count)[:batch].astype(np.int32)
    resident, stored = jnp.asarray(images), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    @jax.jit
    def ours(images: jax.Array, indices: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        return data.to_unit(data.augment(images[indices], keys, crop=4, flip=True), 255, jnp.float32)

    def theirs() -> torch.Tensor:
        rows = peers.F.pad(stored[torch.from_numpy(order).long()].float() / 255, (4, 4, 4, 4))
        cut = [
            image[:, top : top + 32, left : left + 32]
            for image, (top, left) in zip(rows, torch.randint(0, 9, (batch, 2)).tolist(), strict=True)
        ]
        flipped = torch.rand(batch, 1, 1, 1) < 0.5
        found = torch.stack(cut)
        return torch.where(flipped, found.flip(3), found).contiguous(memory_format=torch.channels_last)

    key = jax.random.key(0)
    programs = {'si_jax': lambda: jax.block_until_ready(ours(resident, order, key)), 'PyTorch': theirs}
    return [in_turns('data pipeline alone, batch 128', programs, batch, 5 if quick else 15)]


COMPILING = """
import time
from configs import narrow, quickstart, tradessi_cifar10
from si_jax.runtime import compilation_cache
from si_jax.training.timing import synthetic, arguments
from si_jax.training.setup import compile_train_step
from si_jax.defenses import from_config
compilation_cache.enable()
config = {config}
ready = synthetic(config, config.attack.steps, from_config(config.defense))
call = arguments(ready)
began = time.perf_counter()
compile_train_step(ready).lower(*call).compile()
print(time.perf_counter() - began)
"""


STEPS = {
    'configs/quickstart.py': 'quickstart.get_config()',
    'configs/narrow.py': 'narrow.get_config()',
    'TRADES-SI, ResNet-18': 'tradessi_cifar10.get_config()',
    'TRADES-SI, WRN-28-10': "tradessi_cifar10.get_config('wrn_28_10')",
}


def compile_rows(quick: bool) -> list[dict[str, Any]]:
    """Row (e): a training step traced and compiled in a process of its own, without and with a cache."""
    rows = []
    for what, config in list(STEPS.items())[: 1 if quick else None]:
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {'SI_JAX_COMPILATION_CACHE': cache, 'PYTHONPATH': str(ROOT)}
            environment.pop('JAX_COMPILATION_CACHE_DIR', None)
            command = [sys.executable, '-c', COMPILING.format(config=config)]
            seconds = [
                float(
                    subprocess.run(
                        command, env=environment, capture_output=True, text=True, check=True
                    ).stdout
                )
                for _ in range(2)
            ]
        figures = {'cold': f'{seconds[0]:.1f} s', 'from the cache': f'{seconds[1]:.1f} s'}
        what = f'training step compiled: {what}'
        rows.append(
            {'what': what, 'seconds': dict(zip(('cold', 'warm'), seconds, strict=True)), 'figures': figures}
        )
    return rows


def memory_rows(quick: bool) -> list[dict[str, Any]]:
    """Row (f): what XLA reserves for PGD, and for a training step beside the planner's formula."""
    rows, width = [], 8 if quick else None
    for steps in (1, 10, 100):
        attack, given = attack_and_arguments('resnet18', width, 32, steps)
        temporary = attack.lower(*given).compile().memory_analysis().temp_size_in_bytes
        rows.append(
            {
                'what': f'memory of PGD-{steps} on 32 images, ResNet-18{" of width 8" if quick else ""}',
                'bytes': temporary,
                'figures': {'temporary': f'{temporary / 1e6:.1f} MB'},
            }
        )
    for method in ('at', 'tradessi'):
        name = method.removesuffix('si')
        config = recipes.paper(name, si=method.endswith('si'), dataset='cifar10', arch='resnet18')
        config.model.width, config.batch_size = width or 0, 32
        ready = synthetic(config, config.attack.steps, defenses.from_config(config.defense))
        reserved = compile_train_step(ready).lower(*arguments(ready)).compile().memory_analysis()
        measured = reserved.argument_size_in_bytes + reserved.output_size_in_bytes
        measured += reserved.temp_size_in_bytes - reserved.alias_size_in_bytes
        described = planning.describe(config, images=config.data.validation + config.batch_size)
        machine = planning.Machine('CPU', 1.0, 1.0, float('inf'), None, False)
        predicted = planning.memory(described, machine, 1).total
        network = 'ResNet-18 of width 8' if quick else 'ResNet-18'
        rows.append(
            {
                'what': f'memory of a training step of {method} on 32 images, {network}',
                'bytes': {
                    'predicted': predicted,
                    'measured': measured,
                    'saved by donation': reserved.alias_size_in_bytes,
                },
                'figures': {
                    'formula': f'{predicted / 1e6:.0f} MB',
                    'XLA': f'{measured / 1e6:.0f} MB',
                    'ratio': f'{predicted / measured:.2f}',
                    'saved by donation': f'{reserved.alias_size_in_bytes / 1e6:.0f} MB',
                },
            }
        )
    return rows
