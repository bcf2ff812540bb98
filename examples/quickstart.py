"""Trains a robust and a plain network on handwritten digits, attacks both, and draws what happened.

    python -m examples.quickstart [--out=runs/quickstart]

The digits are the 8 x 8 pixel images that scikit-learn ships, so nothing is downloaded. Both networks are
the same; one is trained with TRADES-SI, the other without an attack. Then PGD, PGD-CW, PGD-DLR and SI-PGD
with 20 steps attack the 397 test images of each at eps = 0.2. The folder gets the two runs, a JSON file for
each result, the picture `quickstart.png` and a page that shows all of it, `report/index.html`.
"""

import argparse
import dataclasses
import os
import shlex
import time
from pathlib import Path

import absl.logging
import jax.numpy as jnp
import matplotlib
import numpy as np
from ml_collections import ConfigDict

import si_jax
from configs import quickstart
from si_jax import data
from si_jax import reports as page
from si_jax.evaluation.result import Result
from si_jax.training import recipes
from si_jax.training.loop import run

matplotlib.use('Agg')
from matplotlib import pyplot as plt

ATTACKS = {'pgd': 'PGD', 'cw': 'PGD-CW', 'dlr': 'PGD-DLR', 'sipgd': 'SI-PGD'}
TITLES = {'standard': 'plain training', 'tradessi': 'TRADES-SI'}


def configs() -> dict[str, ConfigDict]:
    """The two runs: the quickstart config, and the same without a defense."""
    robust, plain = quickstart.get_config(), quickstart.get_config()
    plain.defense = recipes.defense('standard')
    # Held-out accuracy every tenth epoch is enough to watch a run of a minute.
    for config in (robust, plain):
        config.evaluation.every_epochs = 10
    return {'standard': plain, 'tradessi': robust}


def main(out: str) -> dict[str, Result]:
    """Trains, evaluates, prints and draws; returns the results by name."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    began, folder = time.monotonic(), Path(out)
    test = data.load('digits', 'test')
    images, labels = np.asarray(data.to_unit(jnp.asarray(test.images), test.scale)), test.labels
    results = {}
    for name, config in configs().items():
        print(f'\n{TITLES[name]}: {config.epochs} epochs')
        run(config, str(folder / name))
        model = si_jax.load_model(folder / name, 'last')
        results[name] = si_jax.evaluate(
            model, images, labels, attacks=list(ATTACKS), eps=config.threat.eps, return_images=True
        )
        results[name] = dataclasses.replace(
            results[name],
            dataset={'name': 'digits', 'split': 'test', **results[name].dataset},
            model={'workdir': str(folder / name), 'checkpoint': 'last', 'step': model.step},
        )
        results[name].save(folder / f'{name}.json')
    print(f'\nAccuracy in % on {len(labels)} test images at eps = 0.2, with 95 % intervals:\n')
    print(table(results))
    again = f'python evaluate.py --workdir={shlex.quote(str(folder / "tradessi"))} --checkpoint=last'
    print(f'\nOf the last weights of each run. The same by hand: {again}')
    draw(results, images, labels, folder / 'quickstart.png')
    print(f'\nPicture: {folder / "quickstart.png"}')
    report, _ = page.write([str(folder / name) for name in results], str(folder / 'report'))
    print(f'Report: {report} (open it in a browser)')
    print(f'Measured in {time.monotonic() - began:.0f} s on {os.cpu_count()} cores.')
    return results


def table(results: dict[str, Result]) -> str:
    """Attacks down, networks across."""
    lines = [f'{"":<12}' + ''.join(f'{TITLES[name]:>24}' for name in results)]
    for attack, title in {'clean': 'natural', **ATTACKS, 'worst_case': 'worst case'}.items():
        cells = []
        for result in results.values():
            low, high = result.ci95[attack]
            cells.append(f'{100 * result.accuracy[attack]:10.1f} [{100 * low:.1f}, {100 * high:.1f}]')
        lines.append(f'{title:<12}' + ''.join(f'{cell:>24}' for cell in cells))
    return '\n'.join(lines)


def draw(results: dict[str, Result], images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Clean and adversarial digits with what each network says of them, and the accuracies beside them."""
    shown = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
    figure = plt.figure(figsize=(11, 3.5), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))  # type: ignore[misc]
    axes = left.subplots(3, 10)
    rows = {'clean': images} | {
        name: result.images['pgd'] for name, result in results.items() if result.images
    }
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, index in zip(row, shown, strict=True):
            axis.imshow(pictures[index, ..., 0], cmap='gray_r', vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if name in results:
                right_answer = results[name].correct['pgd'][index]
                for spine in axis.spines.values():
                    spine.set(color='#1b7837' if right_answer else '#b2182b', linewidth=2.5)
        title = {'clean': 'clean'} | {key: f'PGD-20 against\n{value}' for key, value in TITLES.items()}
        row[0].set_ylabel(title[name], rotation=0, ha='right', va='center', fontsize=10)
    left.suptitle('eps = 0.2; green frame: still classified correctly, red: fooled', fontsize=10)
    axis = right.subplots()
    names = ['clean', *ATTACKS]
    for offset, (name, result) in zip((-0.2, 0.2), results.items(), strict=True):
        heights = [100 * result.accuracy[attack] for attack in names]
        color = {'standard': '#9e9e9e', 'tradessi': '#2166ac'}[name]
        bars = axis.bar(np.arange(len(names)) + offset, heights, 0.4, label=TITLES[name], color=color)
        axis.bar_label(bars, fmt='%.0f', fontsize=8)
    axis.set_xticks(range(len(names)), ['natural', *ATTACKS.values()], fontsize=8)
    axis.set_ylabel('accuracy in %')
    axis.set_ylim(0, 112)
    axis.legend(loc='upper right', fontsize=8, frameon=False)
    axis.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == '__main__':
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        '--out', default='runs/quickstart', help='folder of the results (default: %(default)s)'
    )
    main(flags.parse_args().out)
