"""Host memory and flags of an evaluation at ImageNet's size: ResNet-50 on synthetic images, 224 x 224 x 3.

    python -m benchmarks.imagenet --output=results/imagenet.json

Each number of images at once is measured in a process of its own, by the peak of its resident memory.
Weights and images are random. The mean logits are taken off, so that the network tells the images apart,
and the labels are what it says. Exit status: 1 if a flag differs between the processes, if every image
withstands or falls, or if the number of images at once that the evaluation chooses by itself needs more
memory than the bytes of the images and 2 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import evaluate, models
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

BOUND = 2**31  # bytes beside the images
SIDE = 224


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--images', type=int, default=64)
    flags.add_argument('--attacks', default='pgd,apgd-ce(steps=10)', help='default: %(default)s')
    flags.add_argument('--steps', type=int, default=10, help='of the PGD family; default: %(default)s')
    flags.add_argument('--at_once', default='0,2', help='0: by the memory; default: %(default)s')
    flags.add_argument('--output', help='JSON file')
    flags.add_argument('--alone', type=int, help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.alone is not None:
        print(json.dumps(measured(given, given.alone)))
        return 0
    rows = []
    for size in given.at_once.split(','):
        done = subprocess.run(
            [sys.executable, '-m', 'benchmarks.imagenet', *sys.argv[1:], f'--alone={size}'],
            stdout=subprocess.PIPE,
            check=True,
        )
        rows.append(json.loads(done.stdout))
        shown = {key: value for key, value in rows[-1].items() if key != 'flags'}
        print(shown, flush=True)
    differ = sum(row['flags'] != rows[0]['flags'] for row in rows)
    trivial = sum(sum(flags) in (0, given.images) for flags in rows[0]['flags'].values()) - 1  # not `clean`
    above = sum(row['peak_bytes'] > row['bytes_of_images'] + BOUND for row in rows if not row['at_once'])
    if given.output:
        made_with = {key: value for key, value in environment().items() if key != 'command'}
        settings = {name: value for name, value in vars(given).items() if name not in ('output', 'alone')}
        write_json(given.output, {'settings': settings, 'rows': rows, 'environment': made_with})
    print(f'{differ} of {len(rows)} differ in a flag, {above} need more than the images and 2 GiB')
    if trivial:
        print('every image withstands an attack, or every image falls: the flags say nothing')
    return int(differ + above + trivial > 0)


def measured(given: argparse.Namespace, at_once: int) -> dict[str, Any]:
    """An evaluation in this process: its flags, its seconds, and the peak of this process's memory."""
    model = models.create('resnet50', num_classes=1000, variant='imagenet', normalise='imagenet')
    shape = (1, SIDE, SIDE, 3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape, jnp.float32))
    # Squares of 32 pixels: of noise in single pixels a network sees the mean alone.
    squares = np.random.default_rng(0).integers(0, 256, (given.images, SIDE // 32, SIDE // 32, 3), np.uint8)
    images = squares.repeat(32, axis=1).repeat(32, axis=2)
    forward = jax.jit(lambda weights, x: model.apply(weights, x / 255.0).logits)
    logits = np.concatenate([forward(variables, np.float32(image[None])) for image in images])
    variables['params']['linear']['bias'] -= logits.mean(axis=0)
    labels = np.argmax(logits - logits.mean(axis=0), axis=1)
    result = evaluate(
        (model, variables),
        images,
        labels,
        attacks=given.attacks,
        eps=0.05 / 255,
        steps=given.steps if 'pgd' in given.attacks.split(',') else None,
        batch_size=at_once or None,
        scale=255,
    )
    return {
        'at_once': at_once,
        'bytes_of_images': images.nbytes,
        'peak_bytes': 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        'seconds': round(result.timing['seconds'], 1),
        'accuracy': result.accuracy,
        'flags': {name: flags.tolist() for name, flags in result.correct.items()},
    }


if __name__ == '__main__':
    sys.exit(main())
