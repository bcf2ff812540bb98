"""MALT's choice of targets beside AutoAttack's, at equal cost, on published networks.

    python -m benchmarks.targets --shared=../shared --output=results/targets.json
    python -m benchmarks.targets --workdirs=runs/cifar100

`apgd-t` with one target, with two and with nine, chosen by the logits of the clean image and by MALT. On a
network of ten classes the nine are the same in both. Runs of si_jax are measured at their own radius, on
the first images of their test set that they classify correctly.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.losses import published
from si_jax import data, evaluate, load_model
from si_jax.attacks.registry import named
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

NETWORKS = ('cnn_a_adv4', 'kw_base')
NUMBERS = (1, 2, 9)
CHOICES = {'logits': '', 'malt': ', choice=malt'}


def attack(number: int, choice: str) -> str:
    """The name of APGD-T with so many targets."""
    return named(f'apgd-t(n_targets={number}{CHOICES[choice]})').name


def measure(network: Any, pixels: Any, labels: Any, eps: float) -> dict[str, Any]:
    """The accuracies in % on a network, by number of targets and choice."""
    attacks = [attack(number, choice) for number in NUMBERS for choice in CHOICES]
    result = evaluate(network, pixels, labels, attacks=attacks, eps=eps)
    return {
        'images': len(labels),
        'classes': result.dataset['classes'],
        'clean': round(100 * result.accuracy['clean'], 2),
        'accuracy': {one: round(100 * result.accuracy[one], 2) for one in attacks},
    }


def trained(workdir: str, count: int) -> tuple[Any, Any, Any, float]:
    """A network that si_jax trained, images that it classifies correctly, their labels and its eps."""
    model = load_model(workdir, 'last')
    test = data.load(model.config.data.name, 'test')
    pixels = (test.images[:] / np.float32(test.scale)).astype(np.float32)
    predicted = [
        np.argmax(model(part).logits, 1) for part in np.array_split(pixels, max(1, len(pixels) // 500))
    ]
    right = np.flatnonzero(np.concatenate(predicted) == test.labels)[:count]
    return model, pixels[right], test.labels[right], float(model.config.threat.eps)


def page(networks: dict[str, Any]) -> str:
    """The table in Markdown."""
    heads = [f'{name}, {one["images"]} images, {one["classes"]} classes' for name, one in networks.items()]
    lines = [f'| attack | {" | ".join(heads)} |', '|---' * (len(networks) + 1) + '|']
    for number in NUMBERS:
        for choice in CHOICES:
            name = attack(number, choice)
            cells = [f'{one["accuracy"][name]:.1f}' for one in networks.values()]
            lines.append(f'| `{name}` | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measures, and writes the file."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument('--shared', type=Path, default=Path('../shared'), help='the reference material')
    flags.add_argument('--output', type=Path, default=Path('results/targets.json'))
    flags.add_argument('--images', type=int, default=500)
    flags.add_argument('--workdirs', default='', help='runs of si_jax, with commas between')
    given = flags.parse_args(argv)
    compilation_cache.enable()
    of = {name: published(given.shared, name, given.images) for name in NETWORKS}
    for workdir in filter(None, given.workdirs.split(',')):
        of[Path(workdir).name] = trained(workdir, given.images)
    networks = {name: measure(*one) for name, one in of.items()}
    made_with = {key: value for key, value in environment().items() if key != 'command'}
    write_json(given.output, {'networks': networks, 'environment': made_with})
    print(page(networks))


if __name__ == '__main__':
    main()
