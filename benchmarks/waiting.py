"""The share of its time that training waits for its next batch, with the data on the device and streamed.

    python -m benchmarks.waiting --output=results/waiting.json

7 of 10 images of each batch are extra ones, mapped from their file. Every step waits for its result, so that
nothing hides a wait. Standard training of a small network is the worst case: its steps are the shortest.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax.runtime import compilation_cache
from si_jax.runtime.devices import place_rows, replicate
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json
from si_jax.training import recipes
from si_jax.training.setup import Setup, compile_train_step, feed_of, initial_carry, initial_state, setup

IMAGES, EXTRA, WIDTH = 5_000, 50_000, 4


def rows(quick: bool) -> list[dict[str, Any]]:
    """One row for each method."""
    rng, found = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for file, count, names in (
            ('cifar10_train', IMAGES, ('images', 'labels')),
            ('extra', EXTRA, ('image', 'label')),
        ):
            pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays = dict(zip(names, (pixels, np.arange(count) % 10), strict=True))
            np.savez(Path(folder) / f'{file}.npz', **arrays)
        for method in ('standard', 'at'):
            config = recipes.paper(method, dataset='cifar10', arch='small_cnn')
            config.model.width = WIDTH
            config.data.update(dir=folder, extra=f'{folder}/extra.npz')
            shares = {}
            for name, stream in (('resident', 'never'), ('streamed', 'always')):
                config.data.stream = stream
                shares[name] = waiting(setup(config), 10 if quick else 100)
            found.append(
                {
                    'what': f'steps wait for data, share of the time, {method}, small_cnn of width {WIDTH}',
                    'share': shares,
                    'figures': {name: f'{100 * share:.2f} %' for name, share in shares.items()},
                }
            )
    return found


def waiting(ready: Setup, steps: int) -> float:
    """The share of the time of so many steps that is spent before each of them, waiting for its batch."""
    step, waited = compile_train_step(ready), 0.0
    state, carry = replicate(initial_state(ready)), place_rows(initial_carry(ready))
    with contextlib.closing(feed_of(ready)) as feed:
        state, carry, _ = jax.block_until_ready(step(state, carry, *feed(0)))
        began = time.perf_counter()
        for number in range(1, 1 + steps):
            asked = time.perf_counter()
            given = feed(number)
            waited += time.perf_counter() - asked
            state, carry, _ = jax.block_until_ready(step(state, carry, *given))
        return waited / (time.perf_counter() - began)


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--quick', action='store_true', help='few steps')
    flags.add_argument('--output', help='JSON file')
    given = flags.parse_args()
    compilation_cache.enable()
    found = rows(given.quick)
    for row in found:
        print(f'{row["what"]}: {", ".join(f"{name} {share}" for name, share in row["figures"].items())}')
    if given.output:
        made_with = {key: value for key, value in environment().items() if key != 'command'}
        write_json(Path(given.output), {'rows': found, 'environment': made_with})
    return 0


if __name__ == '__main__':
    sys.exit(main())
