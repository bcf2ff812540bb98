"""Whether flags depend on the batch size or on the number of devices: AutoAttack on a published network.

    python -m benchmarks.batching --shared=../shared --output=results/batching.json

On the CPU, in float32, with eight simulated devices. Exit status: 1 if more than one flag in 1,000 differs
from those of batches of 64 on one device.
"""

import argparse
import os
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.conformance import problem
from si_jax import evaluate
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

SETTINGS = ((64, 1), (250, 1), (1000, 1), (64, 8), (1000, 8))  # images at once, devices
FLAGS_THAT_MAY_DIFFER = 1e-3


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--shared', type=Path, default=Path(os.environ.get('SI_JAX_SHARED', '../shared')))
    flags.add_argument('--network', default='kw_base', help='default: %(default)s')
    flags.add_argument('--attacks', default='pgd,sipgd,autoattack', help='default: %(default)s')
    flags.add_argument('--images', type=int, default=1000)
    flags.add_argument('--output', help='JSON file')
    given = flags.parse_args()
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 8)

    network, images, labels, eps = problem(given.shared, given.network, given.images)
    rows, first, most = [], {}, 0
    for batch_size, devices in SETTINGS:
        result = evaluate(
            network,
            images,
            labels,
            attacks=given.attacks,
            eps=eps,
            batch_size=batch_size,
            devices=jax.local_devices()[:devices],
        )
        first = first or result.correct
        differ = {name: int(np.sum(flags != first[name])) for name, flags in result.correct.items()}
        most = max(most, *differ.values())
        rows.append(
            {
                'batch_size': batch_size,
                'devices': devices,
                'accuracy': result.accuracy,
                'flags_that_differ': differ,
                'seconds': result.timing['seconds'],
            }
        )
        print(f'{batch_size:>5} images at once, {devices} devices: {differ}', flush=True)
    if given.output:
        made_with = {key: value for key, value in environment().items() if key != 'command'}
        settings = {'network': given.network, 'attacks': given.attacks, 'images': given.images, 'eps': eps}
        write_json(given.output, {'settings': settings, 'rows': rows, 'environment': made_with})
    return int(most > FLAGS_THAT_MAY_DIFFER * given.images)


if __name__ == '__main__':
    sys.exit(main())
