"""What runs wrote while they trained, epoch by epoch."""

import math
from typing import Any, NamedTuple

from si_jax.reports.charts import Series
from si_jax.reports.collect import Network
from si_jax.reports.labels import QUANTITIES


class Panel(NamedTuple):
    """A chart of one metric."""

    metric: str  # its name in metrics.jsonl
    title: str  # what it is
    share: bool  # whether it is a fraction of images
    log: bool  # whether its axis is logarithmic
    series: list[Series]  # a curve for each run that has it


# Metric -> title; what a reader asks first comes first.
METRICS = {
    'validation/natural_accuracy': 'natural accuracy, held-out images',
    'validation/pgd_accuracy': 'accuracy under PGD, held-out images',
    'validation/calibrated_pgd_accuracy': 'accuracy under calibrated PGD, held-out images',
    'train/loss': 'training loss (each method has its own)',
    'learning_rate': 'learning rate',
    'validation/median_gap': QUANTITIES['median_gap'],
    'validation/weight_norm': 'mean norm of the weight vectors of the last layer',
    'validation/feature_norm': 'mean norm of the features',
    'validation/true_cosine': QUANTITIES['true_cosine'],
}


def panels(networks: list[Network]) -> list[Panel]:
    """A panel for each metric that one of the runs has."""
    found = []
    for metric, title in METRICS.items():
        series = [
            Series(network.number, network.label, _points(network, metric))
            for network in networks
            if network.run
        ]
        series = [one for one in series if any(value is not None for _, value in one.points)]
        if not series:
            continue
        values = [value for one in series for _, value in one.points if value is not None]
        log = metric == 'learning_rate' and min(values) > 0 and max(values) > 20 * min(values)
        found.append(Panel(metric, title, metric.endswith('accuracy'), log, series))
    return found


def _points(network: Network, metric: str) -> list[tuple[float, float | None]]:
    assert network.run is not None
    lines = [line for line in network.run.lines if metric in line and _number(line.get('epoch')) is not None]
    return [(float(line['epoch']), _number(line[metric])) for line in lines]


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


class Epochs(NamedTuple):
    """The metrics of a run as a table: titles, and (epoch, values) by row."""

    titles: list[str]
    rows: list[tuple[float, list[float | None]]]


def epochs(network: Network) -> Epochs | None:
    """All that the charts show of a run, as numbers; None if it wrote nothing."""
    if network.run is None:
        return None
    columns = {metric: dict(_points(network, metric)) for metric in METRICS}
    columns = {metric: points for metric, points in columns.items() if points}
    if not columns:
        return None
    times = sorted({at for points in columns.values() for at in points})
    rows = [(at, [points.get(at) for points in columns.values()]) for at in times]
    return Epochs([METRICS[metric] for metric in columns], rows)


def remarks(network: Network) -> list[str]:
    """What a reader must know of a training: that it has not ended, or did not go well."""
    run = network.run
    if run is None:
        return []
    found = []
    if run.unfinished:
        command = ' '.join(map(str, network.trained_with.get('command', ()))) or 'its training command'
        found.append(f'{run.path} has not come to its end, {run.unfinished}: go on with {command}')
    if run.guarded:
        found.append(f'{run.path} was ended by the guard against catastrophic overfitting')
    elif run.lines and run.lines[-1].get('ended'):
        found.append(f'{run.path} was ended before its last epoch by --config.{run.lines[-1]["ended"]}')
    elif run.collapsed:
        found.append(f'{run.path}: the accuracy under PGD collapsed between two epochs')
    bad = [line for line in run.lines if isinstance(line.get('non_finite'), dict)]
    if bad:
        names = ', '.join(sorted({str(name) for line in bad for name in line['non_finite']}))
        found.append(
            f'{run.path / "metrics.jsonl"}: {names} not finite, first after epoch {bad[0].get("epoch")}'
        )
    return found
