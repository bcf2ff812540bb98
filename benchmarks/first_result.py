"""How long a user waits from a command to its result, the first time and again.

Each command runs in a process of its own with an empty compilation cache (cold), and then with what that run
left in it (warm). From Python the cache is a setting of JAX's, which its variables make here. Beside the
whole wait stand the seconds until the program begins its work (Python and its imports), and those in which
JAX lowers and compiles programs or reads them from the cache.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WAITS = {
    "quickstart's evaluation": """
import evaluate
ready()
evaluate.main(['--model=zoo:digits-trades', '--attacks=pgd,sipgd', '--num_examples=100', '--output=r.json'])
""",
    'AutoAttack on 100 images': """
import evaluate
ready()
evaluate.main(['--model=zoo:digits-trades', '--attacks=autoattack', '--num_examples=100', '--output=r.json'])
""",
    'a PyTorch module, PGD and SI-PGD on 100 images': """
import torch, si_jax
from torch import nn
torch.manual_seed(0)
module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
images = torch.rand(100, 3, 8, 8)
labels = module(images).argmax(1)
ready()
si_jax.evaluate(module, images, labels, attacks=('pgd', 'sipgd'), eps=8 / 255)
""",
}
AROUND = """
import collections, contextlib, json, os, sys, time
began = float(sys.argv[1])
spent = collections.Counter()
def ready():
    import jax
    spent['start'] = time.time() - began
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: spent.update({{event.rpartition('/')[2]: seconds}})
    )
nothing = open(os.devnull, 'w')
with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
{program}
print(json.dumps(spent))
"""
COMPILING = ('jaxpr_to_mlir_module_duration', 'backend_compile_duration')


def run(program: str, cache: str) -> dict[str, float]:
    """Seconds of one process: the whole, until it was ready, and lowering and compiling."""
    environment = os.environ | {
        'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'PYTHONPATH': str(ROOT),
    }
    code = AROUND.format(program='\n'.join(f'    {line}' for line in program.strip().splitlines()))
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, '-c', code, str(began)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    whole, spent = time.time() - began, json.loads(done.stdout.splitlines()[-1])
    return {'whole': whole, 'start': spent['start'], 'compiling': sum(spent.get(key, 0) for key in COMPILING)}


def rows(quick: bool) -> list[dict[str, Any]]:
    """One row for each command."""
    found = []
    for what, program in list(WAITS.items())[: 1 if quick else None]:
        with tempfile.TemporaryDirectory() as cache:
            seconds = {name: run(program, cache) for name in ('cold', 'warm')}
        figures = {
            name: f'{one["whole"]:.1f} s, of which {one["start"]:.1f} s to start '
            f'and {one["compiling"]:.1f} s to compile'
            for name, one in seconds.items()
        }
        what = f'from the command to its result: {what}'
        found.append({'what': what, 'seconds': seconds, 'figures': figures})
    return found
