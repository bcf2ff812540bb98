"""Training that goes wrong without an error, found in the figures of its epochs while it happens.

Each symptom is a function of the lines of metrics.jsonl so far, the last of them of the epoch that has just
ended. So a resumed run finds what it would have found, and does not say twice what it has said.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from si_jax.evaluation import sanity
from si_jax.training.overfitting import COLLAPSE, blind, least_fall

Line = dict[str, Any]
LASTING = 3  # held-out figures in a row that are below the best: with a high rate one alone may be
PGD, CALIBRATED = 'validation/pgd_accuracy', 'validation/calibrated_pgd_accuracy'


class About(NamedTuple):
    """What a symptom is judged by, beside the figures.

    Attributes:
        epochs: Of the whole run.
        held_out: The number of held-out images.
        classes: How many classes the held-out images are of.
        peak: The highest learning rate.
        fixed_loss: Whether the loss is the same function in all epochs.
        patience: That of the config.
    """

    epochs: int
    held_out: int
    classes: int
    peak: float
    fixed_loss: bool = True
    patience: int = 0

    def settled(self, epoch: int) -> bool:
        """Whether a tenth of the run is over, and one epoch at least if it has more."""
        return epoch >= min(self.epochs, max(2, math.ceil(self.epochs / 10)))


def new_symptoms(lines: Sequence[Line], about: About) -> dict[str, str]:
    """The symptoms of the last line that no line before it has named: name to what to say."""
    said = {name for line in lines[:-1] for name in str(line.get('symptoms') or '').split(', ')}
    found = {name: symptom(lines, about) for name, symptom in SYMPTOMS.items() if name not in said}
    return {name: text for name, text in found.items() if text}


def _one_class(lines: Sequence[Line], about: About) -> str:
    line = lines[-1]
    if line.get('validation/predicted_classes') != 1 or about.classes < 2 or not about.settled(line['epoch']):
        return ''
    return (
        f'after epoch {line["epoch"]} each of the {about.held_out} held-out images gets class '
        f'{line["validation/most_predicted_class"]:.0f}, so the accuracies are the share of that class: '
        'the network has learned nothing yet, or has lost it. If it stays so, try a lower '
        f'--config.schedule.peak (now {about.peak:g}) in a new --workdir'
    )


def _loss_stays(lines: Sequence[Line], about: About) -> str:
    line, start = lines[-1], lines[0].get('train/start_loss')
    loss = line.get('train/loss')
    if start is None or loss is None or not about.fixed_loss or not about.settled(line['epoch']):
        return ''
    if loss < start:
        return ''
    return (
        f'the mean loss of epoch {line["epoch"]} is {loss:.4f}, not below the {start:.4f} of the first step. '
        f'In a new --workdir try another --config.schedule.peak (now {about.peak:g}): a lower one if the '
        'loss rose, a higher one if it does not move; and look at images and labels'
    )


def _collapse(lines: Sequence[Line], about: About) -> str:
    line, best = lines[-1], _best(lines, PGD)
    trained = line.get('train/adv_accuracy')
    if (
        best is not None
        and _overtrained(best, line)
        and line[PGD] <= best[PGD] / 2
        and least_fall(best[PGD], line[PGD], about.held_out) >= 0.1
    ):
        what = _fall(best, line, PGD, 'PGD', about)
    elif line.get(PGD) is not None and trained is not None and blind(trained, line[PGD], about.held_out):
        what = (
            f'PGD leaves {round(line[PGD] * about.held_out)} of {about.held_out} held-out images right after '
            f'epoch {line["epoch"]}, while accuracy under the training attack is {100 * trained:.1f}%'
        )
    else:
        return ''
    return (
        f'{what}: {COLLAPSE}. evaluate.py takes the best checkpoint. In a new --workdir, '
        '--config.overfitting.drop=0.2 ends such a run with the weights before; a recipe whose attack makes '
        'several steps, such as at or trades, avoids it'
    )


def _gap(lines: Sequence[Line], about: About) -> str:
    line, best = lines[-1], _best(lines, CALIBRATED)
    if best is None or not _overtrained(best, line):
        return ''
    since = [
        one[CALIBRATED] for one in lines if one['epoch'] > best['epoch'] and one.get(CALIBRATED) is not None
    ]
    sure = [least_fall(best[CALIBRATED], accuracy, about.held_out) > 0 for accuracy in since[-LASTING:]]
    if len(sure) < LASTING or not all(sure) or line[CALIBRATED] <= best[CALIBRATED] / 2:
        return ''  # a short dip, or what `_collapse` names
    ends = '; in a new --workdir, --config.patience=10 ends a run that is past its best'
    return (
        f'{_fall(best, line, CALIBRATED, "calibrated PGD", about)}: robust overfitting. evaluate.py takes '
        f'the best checkpoint{"" if about.patience else ends}'
    )


def _best(lines: Sequence[Line], name: str) -> Line | None:
    """The line with the highest of a figure, where the last line has it and comes later."""
    if lines[-1].get(name) is None:
        return None
    best = max((line for line in lines if line.get(name) is not None), key=lambda line: float(line[name]))
    return None if best is lines[-1] else best


def _overtrained(best: Line, line: Line) -> bool:
    """Whether training went on well since: accuracy under the training attack, or the natural one, rose."""
    for name in ('train/adv_accuracy', 'train/nat_accuracy'):
        if line.get(name) is not None and best.get(name) is not None:
            return bool(line[name] > best[name])
    return False


def _fall(best: Line, line: Line, name: str, attack: str, about: About) -> str:
    """What fell, with counts."""
    trained = 'train/adv_accuracy' if line.get('train/adv_accuracy') is not None else 'train/nat_accuracy'
    before, after = (round(one[name] * about.held_out) for one in (best, line))
    return (
        f'{attack} leaves {after} of {about.held_out} held-out images right after epoch {line["epoch"]}, and '
        f'{before} after epoch {best["epoch"]}, while training accuracy rose from '
        f'{100 * best[trained]:.1f}% to {100 * line[trained]:.1f}%'
    )


def _chance(lines: Sequence[Line], about: About) -> str:
    line, accuracy = lines[-1], lines[-1].get('validation/natural_accuracy')
    if accuracy is None or line['epoch'] < about.epochs or line.get('validation/predicted_classes') == 1:
        return ''
    right = round(accuracy * about.held_out)
    if not sanity.chance(right, about.held_out, about.classes):
        return ''
    return (
        f'the run ends with {right} of {about.held_out} held-out images right, no better than guessing one '
        f'of {about.classes} classes: the network has learned nothing. Look at data and labels, or try '
        f'a lower --config.schedule.peak (now {about.peak:g}) in a new --workdir'
    )


SYMPTOMS: dict[str, Callable[[Sequence[Line], About], str]] = {
    'one class': _one_class,
    'near chance': _chance,
    'loss not falling': _loss_stays,
    COLLAPSE: _collapse,
    'robust overfitting': _gap,
}
