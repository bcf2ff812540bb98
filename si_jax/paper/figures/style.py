"""One look for all figures; every line can be told from the others without colour."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure as Picture


class Look(NamedTuple):
    """How one network is drawn: dark and solid first, so that it also reads in greyscale."""

    color: str
    line: Any
    marker: str
    hatch: str


LOOKS = (
    Look('#0b3c8c', '-', 'o', ''),
    Look('#e08a00', '--', 's', '////'),
    Look('#4d4d4d', '-.', '^', '....'),
    Look('#8fbf5a', ':', 'D', 'xxxx'),
)

PAPER = 'the paper: CIFAR-10, ResNet-18'


def look(number: int) -> Look:
    """The look of the network with this number; after four they repeat."""
    return LOOKS[number % len(LOOKS)]


def new(width: float, height: float, title: str, subtitle: str) -> Picture:
    """An empty picture (inches) with its title, and below it in small print what it was measured on."""
    picture = Picture(figsize=(width, height), layout='constrained')
    # The layout keeps room for the lines of the title; the empty ones are the subtitle's.
    picture.suptitle(f'{title}\n\n', fontsize=11)
    picture.text(0.5, 1 - 0.28 / height, subtitle, ha='center', va='top', fontsize=8, color='#333333')
    return picture


def measured_on(numbers: dict[str, Any], images: str = 'test images') -> str:
    """What a figure was measured on, and that it is not the paper's scale where it is not."""
    name, count = numbers['dataset']['name'], numbers['dataset']['examples']
    models = numbers['models']
    archs = sorted({_network(model) for model in models})
    epochs = sorted({str(model['epochs']) for model in models})
    norm, eps = numbers['threat_model']['norm'].capitalize(), numbers['threat_model']['eps']
    text = f'{name}, {count} {images}, {", ".join(archs)}, {"/".join(epochs)} epochs, {norm} eps = {eps:.3g}'
    full = name == 'cifar10' and archs == ['resnet18']
    return text if full else f"{text}. Not the paper's scale ({PAPER})"


def _network(model: dict[str, Any]) -> str:
    return f'{model["arch"]} of width {model["width"]}' if model['width'] else model['arch']


def curve(axis: Any, x: Any, y: Any, number: int, **options: Any) -> None:
    """The line of the network with this number."""
    axis.plot(x, y, look(number).line, color=look(number).color, **{'markersize': 4} | options)


def band(axis: Any, x: Any, values: np.ndarray, number: int, **options: Any) -> None:
    """The mean of several runs [R, ...] as a line, and their range as a band."""
    low, high = values.min(axis=0), values.max(axis=0)
    axis.fill_between(x, low, high, color=look(number).color, alpha=0.18, linewidth=0)
    curve(axis, x, values.mean(axis=0), number, **options)


def finish(axis: Any, title: str, below: str = '') -> None:
    """Title and label of a panel, no frame at the top and right, and a light grid."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(below)
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(True, color='#dddddd', linewidth=0.6)
    axis.set_axisbelow(True)
