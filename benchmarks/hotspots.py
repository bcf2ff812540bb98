"""Where the time of PGD-10 goes on one core, and how near its convolutions are to that core's best."""

import collections
import glob
import gzip
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = (('small_cnn', None, 64), ('resnet18', 8, 64), ('resnet18', None, 8))
STEPS = 10
SIZE = 1024  # of the square matrices
SHAPED = r'%(\S+) = f32\[([\d,]+)\]'


def product_seconds(rows: int, inner: int, columns: int) -> float:
    """Of the product of matrices [rows, inner] and [inner, columns]: a convolution whose patches exist."""
    import jax
    import jax.numpy as jnp

    from si_jax.runtime import devices

    pair = jnp.ones((rows, inner), jnp.float32), jnp.ones((inner, columns), jnp.float32)
    program = jax.jit(jnp.matmul, compiler_options=devices.compiler_options()).lower(*pair).compile()
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        jax.block_until_ready(program(*pair))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def matrix_rate() -> float:
    """FLOP/s of a product of square matrices, on the cores that this process has."""
    return 2 * SIZE**3 / product_seconds(SIZE, SIZE, SIZE)


def measure(arch: str, width: int | None, batch: int) -> dict[str, Any]:
    """In a process that has one core, so that an operation's time is its own."""
    import jax

    from benchmarks.pgd import attack_and_arguments, title
    from si_jax import models
    from si_jax.cost import flops

    attack, given = attack_and_arguments(arch, width, batch, STEPS)
    compiled = attack.lower(*given).compile()
    text = compiled.as_text()
    convolutions = dict(re.findall(r'%(\S+) = \S+ convolution\(%\S+, %([^\s,)]+)\)', text))
    shapes = {name: tuple(map(int, dims.split(','))) for name, dims in re.findall(SHAPED, text)}
    jax.block_until_ready(compiled(*given))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready(compiled(*given))
        (trace,) = glob.glob(f'{folder}/plugins/profile/*/perfetto_trace.json.gz')
        with gzip.open(trace) as stream:
            events = [event for event in json.load(stream)['traceEvents'] if event.get('ph') == 'X']
    seconds = {'convolutions': 0.0, 'other products': 0.0}
    whole = max(event['dur'] for event in events if event['name'].startswith('ThunkExecutor::Execute')) / 1e6
    products: collections.Counter[tuple[int, int, int]] = collections.Counter()
    for event in events:
        name = event['name']
        if name in convolutions:
            seconds['convolutions'] += event['dur'] / 1e6
            *pixels, outputs = shapes[name]
            products[math.prod(pixels), math.prod(shapes[convolutions[name]][:3]), outputs] += 1
        elif name.startswith(('ynn_fusion', 'dot')):
            seconds['other products'] += event['dur'] / 1e6
    made = sum(2 * math.prod(sizes) * times for sizes, times in products.items())
    bare = sum(product_seconds(*sizes) * times for sizes, times in products.items())
    network = flops.network(models.create(arch, num_classes=10, width=width), (32, 32, 3))
    passes = 2 * STEPS * batch
    rate = passes * network.flops / sum(seconds.values())
    needed = passes * sum(layer.flops for layer in network.layers if layer.convolution)
    best = matrix_rate()
    return {
        'what': f'PGD-{STEPS} on one core, {title(arch, width)}, batch {batch}',
        'seconds': {'whole': whole, **seconds, 'convolutions without patches': bare},
        'flops_of_convolutions': {'needed': needed, 'made': made},
        'flops_a_second': {'needed': rate, 'matrix product': best},
        'figures': {
            **{f'in {name}': f'{each / whole:.0%} of the time' for name, each in seconds.items()},
            'FLOPs that are needed': f'{rate / 1e9:.0f} GFLOP/s in these',
            'a product of 1024 x 1024 matrices': f'{best / 1e9:.0f} GFLOP/s',
            'FLOPs in convolutions': f'{made / needed:.2f} times those needed',
            'their products without patches': f'{bare / seconds["convolutions"]:.0%} of their time',
        },
    }


def rows(quick: bool) -> list[dict[str, Any]]:
    """Each network in a process of its own."""
    found = []
    core = min(os.sched_getaffinity(0))
    for network in NETWORKS[: 2 if quick else 3]:
        code = (
            f'import json, os; os.sched_setaffinity(0, {{{core}}})\n'
            f'from benchmarks.hotspots import measure; print(json.dumps(measure(*{network!r})))'
        )
        done = subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found
