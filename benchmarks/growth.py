"""How time grows with the batch, the number of steps, restarts and simulated devices, on a small network."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import si_jax
from benchmarks.pgd import compiled
from benchmarks.turns import in_turns
from si_jax import models

ROOT = Path(__file__).resolve().parent.parent
ARCH = 'small_cnn'


def evaluated(images: int, restarts: int) -> dict[str, float]:
    """Seconds of PGD-10 through `si_jax.evaluate`, compilation included."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(images, 32, 32, 3)).astype(np.float32)
    model = models.create(ARCH, num_classes=10)
    variables = model.init(jax.random.key(0), x[:1])
    result = si_jax.evaluate(
        lambda x: model.apply(variables, x),
        x,
        rng.integers(0, 10, images),
        attacks='pgd',
        steps=10,
        restarts=restarts,
    )
    return result.timing['parts']['pgd']


DEVICES = """
import time
import jax
from benchmarks.growth import evaluated
evaluated(256, 1)
print(evaluated(256, 4))
"""


def on_devices(count: int) -> float:
    """Seconds of four restarts in a process with so many simulated devices."""
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}',
        'NPROC': str(2 * count),
    }
    command = [sys.executable, '-c', DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Row (g)."""
    found: list[dict[str, Any]] = []
    turns = 3 if quick else 5
    for batch in (32, 128, 1024) if quick else (32, 64, 128, 256, 512, 1024):
        program = {'si_jax': compiled(ARCH, None, batch, 10)}
        found.append(in_turns(f'growth: PGD-10, {ARCH}, batch {batch}', program, batch, turns))
    for steps in (1, 10, 100):
        program = {'si_jax': compiled(ARCH, None, 64, steps)}
        what = f'growth: PGD-{steps}, {ARCH}, batch 64'
        found.append(in_turns(what, program, 64 * steps, turns, 'images x steps/s'))
    for restarts in (1, 3, 10):
        began = time.perf_counter()
        attack = evaluated(256, restarts)
        figures = {'attack': f'{attack:.2f} s', 'whole call': f'{time.perf_counter() - began:.2f} s'}
        what = f'growth: evaluate, PGD-10 on 256 images, {restarts} restarts'
        found.append({'what': what, 'seconds': attack, 'figures': figures})
    for count in (1, 8) if quick else (1, 2, 4, 8):
        seconds = on_devices(count)
        what = f'growth: evaluate, 4 restarts of PGD-10 on 256 images, {count} simulated devices'
        found.append({'what': what, 'seconds': seconds, 'figures': {'attack': f'{seconds:.2f} s'}})
    return found
