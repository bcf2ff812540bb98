"""|W_k|, |z|, the gap of the logits and the true-class cosine over the epochs of a run.

Sections 4.3 and 5.5.2 of the paper say that training lets the weights grow without limit, and that the SI
regulariser avoids it by raising the cosine. No figure of the paper shows it; a run writes what it takes to
`metrics.jsonl`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict

from si_jax.errors import InputError
from si_jax.paper.figures import style
from si_jax.paper.figures.inputs import of_config, read_configs, unlike
from si_jax.reports.labels import QUANTITIES, labels_of
from si_jax.training.metrics import read_metrics

PANELS = ('weight_norm', 'feature_norm', 'median_gap', 'true_cosine')


def measure(workdirs: str) -> dict[str, Any]:
    """What the runs measured on natural held-out images after their epochs.

    Runs that differ in nothing but their seed are one curve, their mean, with the single runs beside it.

    Args:
        workdirs: Folders of runs.

    Raises:
        InputError: A run wrote no such measurements, two runs are the same, or runs of one method were not
            measured at the same epochs.
    """
    configs = read_configs(workdirs)
    groups = _groups(configs)
    firsts = {folders[0]: _without_seed(configs[folders[0]]) for folders in groups}
    labels = labels_of(firsts)
    curves = []
    for folders in groups:
        runs = {folder: read_run(folder) for folder in folders}
        epochs = next(iter(runs.values()))['epoch']
        for folder, run in runs.items():
            if run['epoch'] != epochs:
                raise InputError(
                    f'{folders[0]} was measured after epochs {_span(epochs)}, {folder} after '
                    f'{_span(run["epoch"])}: finish both with train.py, or leave one out'
                )
        curves.append(
            {
                'label': labels[folders[0]],
                'workdirs': folders,
                'seeds': [configs[folder].seed for folder in folders],
                'epoch': epochs,
                **{name: [run[name] for run in runs.values()] for name in QUANTITIES},
            }
        )
    config = next(iter(configs.values()))
    return {
        'dataset': {
            'name': config.data.name,
            'split': 'held-out part of train',
            'examples': config.data.validation,
        },
        'threat_model': {'norm': config.threat.norm, 'eps': config.threat.eps},
        'models': [{'workdir': folder} | of_config(row) for folder, row in configs.items()],
        'curves': curves,
    }


def read_run(workdir: str) -> dict[str, list[Any]]:
    """The epochs at which a run measured its held-out images, and what it measured.

    Raises:
        InputError: It measured nothing.
    """
    path = Path(workdir) / 'metrics.jsonl'
    try:
        lines = [line for line in read_metrics(path) if f'validation/{PANELS[0]}' in line]
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error}): train the run with train.py first') from error
    if not lines:
        raise InputError(
            f'{path} holds no validation/{PANELS[0]}: train with --config.data.validation=1000 (200 on the '
            'digits), so that norms are measured on held-out images after each epoch'
        )
    for name in QUANTITIES:
        if missing := [line['epoch'] for line in lines if line.get(f'validation/{name}') is None]:
            raise InputError(f'{path} has no validation/{name} after epoch {missing[0]}: train the run anew')
    rows = {name: [line[f'validation/{name}'] for line in lines] for name in QUANTITIES}
    return {'epoch': [line['epoch'] for line in lines], **rows}


def _without_seed(config: ConfigDict) -> ConfigDict:
    return ConfigDict({**config.to_dict(), 'seed': None})


def _groups(configs: dict[str, ConfigDict]) -> list[list[str]]:
    """Workdirs of runs that differ in nothing but their seed."""
    groups: list[list[str]] = []
    for folder, config in configs.items():
        group = next((row for row in groups if unlike(configs[row[0]], config) == ['seed']), None)
        if group is None:
            groups.append(group := [])
        group.append(folder)
    return groups


def _span(epochs: list[int]) -> str:
    return f'{epochs[0]:g} to {epochs[-1]:g} ({len(epochs)} of them)'


def draw(numbers: dict[str, Any]) -> Picture:
    """A panel for each quantity over the epochs: the mean of the seeds thick, each seed thin."""
    seeds = max(len(curve['seeds']) for curve in numbers['curves'])
    title = 'Norms, gap and cosine during training' + (
        f', mean and single runs of {seeds} seeds' if seeds > 1 else ''
    )
    subtitle = style.measured_on(numbers, 'natural held-out images')
    picture = style.new(9, 6.2, title, subtitle)
    for axis, name in zip(picture.subplots(2, 2, sharex=True).flat, PANELS, strict=True):
        for number, curve in enumerate(numbers['curves']):
            epochs, values = curve['epoch'], np.asarray(curve[name])
            for run in values if len(values) > 1 else ():
                style.curve(axis, epochs, run, number, linewidth=0.6, alpha=0.6)
            marks = {'marker': style.look(number).marker, 'markevery': max(1, len(epochs) // 10)}
            mean = values.mean(axis=0)
            style.curve(axis, epochs, mean, number, linewidth=2, label=curve['label'], **marks)
        style.finish(axis, QUANTITIES[name])
        if name != 'true_cosine':
            axis.set_ylim(bottom=0)
    for axis in picture.axes[2:]:
        axis.set_xlabel('epoch')
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture.axes[0].legend(fontsize=8)
    return picture
