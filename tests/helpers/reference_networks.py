"""Evaluates a published network in a process of its own, and saves the result.

python -m tests.helpers.reference_networks SHARED NAME IMAGES OUTPUT.json '{"attacks": "pgd", ...}'
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np

from tests.helpers.processes import optimised


def run(
    shared: pathlib.Path, name: str, images: int, output: pathlib.Path, **settings
) -> tuple[dict, dict[str, np.ndarray]]:
    """The result in JSON's types, and the flags of each image."""
    optimised('-m', __name__, shared, name, images, output, json.dumps(settings))
    return json.loads(output.read_text()), dict(np.load(output.with_suffix('.npz')))


def main(shared: str, name: str, images: str, output: str, settings: str) -> None:
    from si_jax import evaluate

    folder, count = pathlib.Path(shared), int(images)
    spec = importlib.util.spec_from_file_location('nets', folder / 'reference' / 'nets.py')
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, _ = nets.load(folder / 'checkpoints' / f'{name}.npz', name)
    data = np.load(folder / 'data' / 'cifar10_test.npz')
    pixels = (data['images'][:count] / 255).astype(np.float32)
    given = {'eps': nets.EPS[name] / 255} | json.loads(settings)
    evaluate(network, pixels, data['labels'][:count], **given).save(output)


if __name__ == '__main__':
    main(*sys.argv[1:])
