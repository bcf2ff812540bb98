"""Evaluates a published network whose logits are multiplied by factors, in a process of its own.

python -m tests.helpers.scaled_networks SHARED NAME IMAGES OUTPUT.npz '{"1": "pgd", "1000": "pgd-gap"}'
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np

from tests.helpers.processes import optimised


def run(shared: pathlib.Path, name: str, images: int, output: pathlib.Path, attacks: dict) -> dict:
    """The accuracies by (factor, attack), from the names of the attacks by factor."""
    optimised('-m', __name__, shared, name, images, output, json.dumps(attacks))
    found = {tuple(key.split()): float(value) for key, value in np.load(output).items()}
    return {(float(factor), attack): accuracy for (factor, attack), accuracy in found.items()}


def main(shared: str, name: str, images: str, output: str, attacks: str) -> None:
    import jax.numpy as jnp

    from si_jax import evaluate

    folder, count = pathlib.Path(shared), int(images)
    spec = importlib.util.spec_from_file_location('nets', folder / 'reference' / 'nets.py')
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network, _ = nets.load(folder / 'checkpoints' / f'{name}.npz', name)
    data = np.load(folder / 'data' / 'cifar10_test.npz')
    pixels = (data['images'][:count] / 255).astype(np.float32)
    found = {}
    for factor, names in json.loads(attacks).items():
        size = jnp.float32(
            factor
        )  # an array is an argument of the compiled programs, so all factors share them
        result = evaluate(
            lambda x, size=size: size * network(x)[0],
            pixels,
            data['labels'][:count],
            attacks=names,
            eps=nets.EPS[name] / 255,
        )
        found |= {f'{factor} {attack}': result.accuracy[attack] for attack in result.attacks}
    np.savez(output, **found)


if __name__ == '__main__':
    main(*sys.argv[1:])
