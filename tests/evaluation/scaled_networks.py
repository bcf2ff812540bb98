"""Evaluates a published network whose logits are multiplied by factors, in a process of its own.

python -m tests.evaluation.scaled_networks SHARED NAME IMAGES OUTPUT.npz "[1, 1024]" "{...}"
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np

from tests.processes import optimised


def run(
    shared: pathlib.Path, name: str, images: int, output: pathlib.Path, factors: list, **settings
) -> dict:
    """By 'FACTOR/ATTACK' the accuracies [runs], and by 'FACTOR/ATTACK/images' the images if they are kept."""
    optimised('-m', __name__, shared, name, images, output, json.dumps(factors), json.dumps(settings))
    return dict(np.load(output))


def main(shared: str, name: str, images: str, output: str, factors: str, settings: str) -> None:
    from si_jax import evaluate

    folder, count = pathlib.Path(shared), int(images)
    spec = importlib.util.spec_from_file_location('nets', folder / 'reference' / 'nets.py')
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, _ = nets.load(folder / 'checkpoints' / f'{name}.npz', name)
    data = np.load(folder / 'data' / 'cifar10_test.npz')
    pixels = (data['images'][:count] / 255).astype(np.float32)
    found = {}
    for factor in json.loads(factors):
        result = evaluate(
            lambda x, factor=factor: factor * network(x)[0],
            pixels,
            data['labels'][:count],
            eps=nets.EPS[name] / 255,
            **json.loads(settings),
        )
        for attack, record in result.attacks.items():
            found[f'{factor}/{attack}'] = record.runs.mean(axis=1)
            if result.images is not None:
                found[f'{factor}/{attack}/images'] = result.images[attack]
    np.savez(output, **found)


if __name__ == '__main__':
    main(*sys.argv[1:])
