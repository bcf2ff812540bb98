"""The losses of the PGD family and of APGD at equal cost: which break most, and which what no other does.

    python -m benchmarks.losses --shared=../shared --output=results/losses.json
    python -m benchmarks.losses --workdir=runs/at_cifar10/HASH --data_dir=FOLDER --output=results/losses.json

The first form measures published networks, the second one that train.py trained; what the output file holds
of other networks stays. All attacks of a group spend as many forward and backward passes on an image that
withstands them: 20 in the PGD family, 101 in APGD; APGD-T, for comparison, spends 909 and runs with one seed.
`--page` prints the tables of docs/attacks.md.
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from si_jax import Result, data, evaluate, load_model
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json

NETWORKS = ('cnn_a_adv4', 'kw_base', 'resnet4b')
STEPS = 20
FAMILY = ('pgd', 'cw', 'dlr', 'sipgd', 'pgd-gap', 'pgd-mifpe', 'pgd-pm', 'pgd-cal', 'pgd-hybrid')
# Two runs, one for each term of the margin, of half the steps.
TWICE = ('pgd-md',)
APGD = ('apgd-ce', 'apgd-dlr', 'apgd-cal', 'apgd-si')
STRONGEST = ('apgd-t',)
TITLES = {'pgd': '20 passes', 'apgd': '101 passes', 'for comparison': '909 passes'}
GROUPS = {'pgd': (*FAMILY, *TWICE), 'apgd': APGD, 'for comparison': STRONGEST}


def measure(classifier: Any, images: Any, labels: Any, eps: float, seeds: int) -> dict[str, Any]:
    """All losses on one network.

    Args:
        classifier: images -> Outputs.
        images: [N, H, W, C] in [0, 1].
        labels: [N].
        eps: Radius in Linf.
        seeds: Number of seeds, 0, 1, ...

    Returns:
        By attack the accuracies in % by seed, and how many images it alone of its group breaks with seed 0.
    """
    by_seed: list[list[Result]] = []
    for seed in range(seeds):
        common = {'eps': eps, 'seed': seed}
        once = (*FAMILY, *APGD, *(STRONGEST if seed == 0 else ()))
        by_seed.append(
            [
                evaluate(classifier, images, labels, attacks=once, steps=STEPS, **common),
                evaluate(classifier, images, labels, attacks=TWICE, steps=STEPS // 2, restarts=2, **common),
            ]
        )
    correct = [dict(pair for result in results for pair in result.correct.items()) for results in by_seed]
    clean = by_seed[0][0].correct['clean']
    attacks: dict[str, Any] = {}
    for group, names in GROUPS.items():
        broken = {name: clean & ~correct[0][name] for name in names}
        times = np.sum(list(broken.values()), axis=0)
        for name in names:
            runs = [round(100 * float(flags[name].mean()), 4) for flags in correct if name in flags]
            alone = int(np.sum(broken[name] & (times == 1)))
            attacks[name] = {'group': group, 'runs': runs, 'mean': float(np.mean(runs)), 'only': alone}
    return {
        'eps': eps,
        'images': len(images),
        'clean': round(100 * float(clean.mean()), 4),
        'median_gap': by_seed[0][0].calibration['median_gap'],  # type: ignore[index]
        'seeds': seeds,
        'attacks': attacks,
    }


def module_of(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(shared: Path, name: str, images: int) -> tuple[Any, Any, Any, float]:
    """A network of the reference material with its images, labels and eps."""
    nets = module_of(shared / 'reference' / 'nets.py')
    network, _ = nets.load(shared / 'checkpoints' / f'{name}.npz', name)
    test = np.load(shared / 'data' / 'cifar10_test.npz')
    pixels = (test['images'][:images] / 255).astype(np.float32)
    return network, pixels, test['labels'][:images].astype(np.int32), nets.EPS[name] / 255


def page(networks: dict[str, Any]) -> str:
    """The tables in Markdown: mean accuracy in % over the seeds, and in brackets the images of `only`.

    The heads say how many images and seeds.
    """
    lines = []
    heads = [f'{name}, {one["images"]} × {one["seeds"]}' for name, one in networks.items()]
    for group, names in GROUPS.items():
        lines += [f'| {TITLES[group]} | ' + ' | '.join(heads) + ' |', '|---' * (len(networks) + 1) + '|']
        for name in names:
            cells = []
            for network in networks.values():
                entry = network['attacks'][name]
                alone = f' ({entry["only"]})' if len(names) > 1 else ''
                cells.append(f'{entry["mean"]:.2f}{alone}')
            lines.append(f'| `{name}` | ' + ' | '.join(cells) + ' |')
        lines.append('')
    return '\n'.join(lines).rstrip()


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--shared', help='folder with checkpoints, data and reference')
    flags.add_argument('--networks', default=','.join(NETWORKS), help='of that folder, with commas between')
    flags.add_argument('--workdir', help='of a run of train.py')
    flags.add_argument('--data_dir', help='npz folder with its data set, or that of tensorflow-datasets')
    flags.add_argument('--images', type=int, default=1000)
    flags.add_argument('--seeds', type=int, default=3)
    flags.add_argument('--output', required=True, help='JSON file')
    flags.add_argument('--page', action='store_true', help='only print the tables')
    given = flags.parse_args()
    output = Path(given.output)
    networks = json.loads(output.read_text())['networks'] if output.exists() else {}
    if given.page:
        print(page(networks))
        return 0
    compilation_cache.enable()
    if given.workdir:
        model = load_model(given.workdir, 'last')
        config = model.config
        test = data.remembered(config.data, 'test', given.data_dir)
        pixels = (test.images[: given.images] / test.scale).astype(np.float32)
        name = f'{config.model.arch}, width {config.model.width}'
        work = {name: (model, pixels, test.labels[: given.images], config.threat.eps)}
        trained = config.to_dict()
        del trained['data']['dir']
        about: dict[str, Any] = {name: {'config': trained, 'step': model.step}}
    else:
        work = {name: published(Path(given.shared), name, given.images) for name in given.networks.split(',')}
        about = {name: {} for name in work}
    for name, problem in work.items():
        found = measure(*problem, seeds=given.seeds)
        networks[name] = found | about[name] | {'environment': environment()}
        settings = {'norm': 'linf', 'steps': STEPS, 'step_size': 'eps / 4', 'groups': GROUPS}
        write_json(output, {'settings': settings, 'networks': networks})
        print(f'{name}: ' + ', '.join(f'{key} {one["mean"]:.2f}' for key, one in found['attacks'].items()))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
