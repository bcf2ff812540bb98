"""The curves of an audit as one picture, from what its JSON file holds."""

from pathlib import Path
from typing import Any

import numpy as np

About = dict[str, Any]
COLOUR, OTHER = '#2166ac', '#b2182b'


def draw(audit: About, path: Path) -> None:
    """Writes the picture: accuracy over eps, steps and restarts, loss, gradients, and attacks beside it."""
    # Takes long to import, and only this needs it. No pyplot: it keeps a state of its own.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evidence = {name: check['evidence'] for name, check in audit['checks'].items()}
    figure = Figure(figsize=(11, 6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    for axis, panel in zip(axes.flat, (_eps, _steps, _restarts, _loss, _gradients, _others), strict=True):
        axis.spines[['top', 'right']].set_visible(False)
        panel(audit, evidence, axis)
        axis.title.set_fontsize(10)
    threat = audit['threat_model']
    word = {'pass': 'no check failed', 'warn': 'read the warnings', 'fail': 'do not trust the number'}
    word |= {'few': 'too few images to say'}
    figure.suptitle(
        f'Audit of {audit["attack"]["name"]}, {threat["norm"]} eps = {threat["eps"]:.4g}, '
        f'{audit["dataset"]["examples"]} images: {word[audit["verdict"]]}',
        fontsize=11,
    )
    figure.savefig(path, dpi=110)


def _accuracy(axis: Any, x: Any, y: Any, **style: Any) -> None:
    axis.plot(x, [100 * value for value in y], marker='o', markersize=4, **style)
    axis.set(ylim=(-3, 103), ylabel='accuracy in %')


def _eps(audit: About, evidence: About, axis: Any) -> None:
    found = evidence['eps']
    _accuracy(axis, [0, *found['eps']], [audit['clean'], *found['accuracy']], color=COLOUR)
    axis.axvline(audit['threat_model']['eps'], color='#9e9e9e', linewidth=0.8, linestyle=':')
    axis.set(xlabel=f'eps ({audit["threat_model"]["norm"]})', title='over eps: must reach 0')


def _steps(audit: About, evidence: About, axis: Any) -> None:
    found, any_iterate = evidence['steps'], evidence['iterates']
    _accuracy(axis, found['steps'], found['accuracy'], color=COLOUR, label='last iterate')
    _accuracy(axis, any_iterate['steps'], any_iterate['any'], color=OTHER, label='any iterate')
    axis.set_xscale('log')
    axis.set_xticks(found['steps'], list(map(str, found['steps'])))
    axis.minorticks_off()
    axis.set(xlabel='steps', title='over steps: must level off')
    axis.legend(frameon=False, fontsize=8)


def _restarts(audit: About, evidence: About, axis: Any) -> None:
    found = evidence['restarts']['accuracy']
    _accuracy(axis, np.arange(1, len(found) + 1), found, color=COLOUR)
    axis.set_xticks(np.arange(1, len(found) + 1))
    axis.set(xlabel='restarts', title='over restarts')


def _loss(audit: About, evidence: About, axis: Any) -> None:
    found = evidence['loss']
    axis.plot(found['mean'], color=COLOUR, label='mean')
    axis.plot(found['median'], color=OTHER, label='median')
    axis.set_xlim(0)
    axis.set(xlabel='step', ylabel=f'loss of {audit["attack"]["name"]}', title='loss: must rise')
    axis.legend(frameon=False, fontsize=8)


def _gradients(audit: About, evidence: About, axis: Any) -> None:
    found = evidence['gradients']['stages']
    y = np.arange(len(found))[::-1]
    zero = np.array([100 * stage['zero'] for stage in found.values()])
    tiny = np.array([100 * stage['tiny'] for stage in found.values()])
    axis.barh(y, zero, color=OTHER, label='exactly zero')
    axis.barh(y, tiny, left=zero, color='#f4a582', label='vanishing')
    axis.set_yticks(y, list(found), fontsize=8)
    if not np.any(zero + tiny):
        axis.text(50, (len(found) - 1) / 2, 'lost on no image', ha='center', va='center', fontsize=9)
    axis.set(xlim=(0, 103), xlabel='images in %', title='gradient by stage: must not be lost')
    axis.legend(frameon=False, fontsize=8, loc='lower right')


def _others(audit: About, evidence: About, axis: Any) -> None:
    """Attacks on the classifier's own gradient, and what needs none of it."""
    box, moved = evidence['black-box'], evidence['transfer']
    heights = {audit['attack']['name']: audit['accuracy']}
    if 'pgd-gap' in (scale := evidence['scale']):
        heights['pgd-gap, one run'] = scale['pgd-gap']
    white = len(heights)
    if box:  # not where the classifier is random
        heights[f'square-{box["budget"]}'] = box['black_box']
    heights |= {f'from {name}': value for name, value in moved.get('accuracy', {}).items()}
    x, percent = np.arange(len(heights)), [100 * value for value in heights.values()]
    bars = axis.bar(x, percent, color=[COLOUR] * white + [OTHER] * (len(heights) - white))
    axis.bar_label(bars, fmt='%.1f', fontsize=8)
    axis.set_xticks(x, list(heights), fontsize=8)
    axis.set(ylim=(0, 110), ylabel='accuracy in %', title='white-box must be lowest')
