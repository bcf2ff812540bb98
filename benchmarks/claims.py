"""What the paper claims of SI, on the study's networks: `python -m benchmarks.claims` fills docs/figures.md.

From the figures and attacks in results/figures-cifar10 and the runs in results/study.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.marks import filled
from si_jax.storage.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'results' / 'figures-cifar10'
STUDY = ROOT / 'results' / 'study'
PAGE = ROOT / 'docs' / 'figures.md'
ATTACKS = ('pgd', 'sipgd', 'pgd-cal', 'pgd-gap', 'apgd-cal')
RESULT = 'last-pgd-cw-sipgd-fast-*.json'
ARMS = {
    'trades': 'TRADES',
    'tradessi': 'TRADES-SI',
    'tradesreg': 'TRADES + SI regulariser',
    'nfgsm': 'N-FGSM',
    'nfgsmsi': 'N-FGSM-SI',
}


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f'{name}.json').read_text())
    return content


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f'| {" | ".join(cells)} |' for cells in (head, *rows)]
    return '\n'.join([lines[0], f'|{"---|" * len(head)}', *lines[1:]])


def claims() -> str:
    """What the figures show of TRADES and TRADES-SI."""
    factors = _read('figure1')
    curves = factors['curves']
    ones, largest = factors['factors'].index(1.0), len(factors['factors']) - 1
    surfaces, weights, cosines = (_read(f'figure{number}') for number in (3, 4, 5))
    ends = {curve['label']: curve for curve in _read('norms')['curves']}
    of_both = [ends['TRADES'], ends['TRADES-SI']]

    def percent(values: Sequence[float]) -> list[str]:
        return [f'{100 * value:.1f} %' for value in values]

    def rise(surface: dict[str, Any], place: int) -> float:
        loss = np.asarray(surface['loss'])
        return float((loss[:, place] - loss[:, loss.shape[1] // 2]).mean())

    rows = [
        ('1: PGD-20, logits as they are', *percent([one['accuracy']['pgd'][ones] for one in curves])),
        ('1: PGD-20, logits times 1,000', *percent([one['accuracy']['pgd'][largest] for one in curves])),
        ('1: PGD-20 at its best factor', *percent([one['best_pgd']['accuracy'] for one in curves])),
        ('1: SI-PGD, at any factor', *percent([one['accuracy']['sipgd'][ones] for one in curves])),
        ('1: calibrated PGD, at any factor', *percent([one['accuracy']['pgd-cal'][ones] for one in curves])),
        (
            '3: largest second difference of a loss surface, as a share of its range',
            *(f'{100 * max(one["relative_second_difference"]):.2f} %' for one in surfaces['surfaces']),
        ),
        (
            '4: rise of the loss one filter length to either side',
            *(f'{rise(one, 0):.2f}, {rise(one, -1):.2f} nats' for one in weights['surfaces']),
        ),
        (
            '5: cosine of the true class after PGD-10, mean',
            *(f'{one["mean"]["true"]:.2f}' for one in cosines['histograms']),
        ),
        (
            '5: highest cosine of another class',
            *(f'{one["mean"]["other"]:.2f}' for one in cosines['histograms']),
        ),
        (
            '5: cosines and logits decide alike',
            *percent([one['decision_agreement'] for one in cosines['histograms']]),
        ),
        ('norms: length of the weights, \\|W_k\\|', *(f'{one["weight_norm"][0][-1]:.2f}' for one in of_both)),
        ('norms: length of the features, \\|z\\|', *(f'{one["feature_norm"][0][-1]:.2f}' for one in of_both)),
        (
            'norms: cosine of the true class, no attack',
            *(f'{one["true_cosine"][0][-1]:.2f}' for one in of_both),
        ),
        ('norms: gap of the two largest logits', *(f'{one["median_gap"][0][-1]:.2f}' for one in of_both)),
    ]
    return _grid(('figure and quantity', 'TRADES', 'TRADES-SI'), rows)


def attacks() -> str:
    """Robust accuracy of two networks of the zoo under SI-PGD and under attacks that see no scale either."""
    rows = []
    for arm in ('trades', 'tradessi'):
        result = _read(f'attacks-{arm}')
        cells = [result['attacks'][name] for name in ATTACKS]
        rows.append((ARMS[arm], *(f'{100 * one["accuracy"]:.1f}' for one in cells)))
    return _grid(('network', *(f'`{name}`' for name in ATTACKS)), rows)


def cosines() -> str:
    """How far each network of the study can be judged by its cosines."""
    rows = []
    for arm, label in ARMS.items():
        for folder in sorted(STUDY.glob(f'evidence-{arm}/seed*')):
            (path,) = folder.glob(f'evaluation/{RESULT}')
            si = json.loads(path.read_text())['si']
            rows.append(
                (
                    label,
                    folder.name.removeprefix('seed'),
                    f'{100 * si["agreement"]:.1f} %',
                    f'{si["scaled_gap"]:.2f}',
                    f'{si["weight_norm_spread"]:.2f}',
                    f'{si["logit_gap"]:.2f}',
                    f'{si["mean_true_cosine"]:.2f}',
                )
            )
    head = ('network', 'seed', 'agreement', '15 x gap of cosines', 'spread of \\|W_k\\|', 'gap of logits',
            'cosine of the true class')  # fmt: skip
    return _grid(head, rows)


def tables() -> dict[str, str]:
    """The tables by the names of their marks."""
    return {'claims': claims(), 'attacks': attacks(), 'cosines': cosines()}


if __name__ == '__main__':
    write_atomic(PAGE, filled(PAGE.read_text(), tables()))
