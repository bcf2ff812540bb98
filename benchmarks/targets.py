"""MALT's choice of targets beside AutoAttack's, at equal cost, on published networks.

    python -m benchmarks.targets --shared=../shared --output=results/targets.json

`apgd-t` with one target and with a few, chosen by the logits of the clean image and by MALT. With fewer than
nine targets a network of ten classes shows what the choice does: all nine are the same in both.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.losses import published
from si_jax import evaluate
from si_jax.attacks.registry import named
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

NETWORKS = ('cnn_a_adv4', 'kw_base')
NUMBERS = (1, 2)
CHOICES = {'logits': '', 'malt': ', choice=malt'}


def attack(number: int, choice: str) -> str:
    """The name of APGD-T with so many targets."""
    return named(f'apgd-t(n_targets={number}{CHOICES[choice]})').name


def measure(name: str, shared: Path, images: int) -> dict[str, Any]:
    """The accuracies in % on a network, by number of targets and choice."""
    network, pixels, labels, eps = published(shared, name, images)
    attacks = [attack(number, choice) for number in NUMBERS for choice in CHOICES]
    result = evaluate(network, pixels, labels, attacks=attacks, eps=eps)
    table = {one: round(100 * result.accuracy[one], 2) for one in attacks}
    return {'images': images, 'clean': round(100 * result.accuracy['clean'], 2), 'accuracy': table}


def page(networks: dict[str, Any]) -> str:
    """The table in Markdown."""
    heads = [f'{name}, {one["images"]} images' for name, one in networks.items()]
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
    flags.add_argument('--images', type=int, default=200)
    given = flags.parse_args(argv)
    compilation_cache.enable()
    networks = {name: measure(name, given.shared, given.images) for name in NETWORKS}
    write_json(given.output, {'networks': networks, 'environment': environment()})
    print(page(networks))


if __name__ == '__main__':
    main()
