"""Which images of a data set are evaluated, and as which outputs of the network their labels count.

A list (`--images=list.txt`) has one image a line: its number in the data set, from 0, or its name,
`class/file` relative to the folder of the data set, as in RobustBench's lists for ImageNet. A class map
(`--class_map=map.json`) is an object of the name or the number of a class to the index of an output, as
RobustBench's `{"n01440764": 0, ...}`.
"""

import collections
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax import data
from si_jax.data import Dataset
from si_jax.data.sampling import of_few_classes
from si_jax.errors import InputError, unknown
from si_jax.evaluation.settings import check_count
from si_jax.interop.torch_files import listed
from si_jax.storage.files import check_regular, read_json

SAMPLES = ('first', 'random')


class Selection(NamedTuple):
    """The images that are evaluated.

    Attributes:
        images: uint8 [M, H, W, C]; a `Lazy` if those of the data set are one.
        labels: [M], outputs of the network.
        indices: [M], their numbers in the data set; None for the first ones.
        about: What a result says of the choice, beside its data set; {} for the first ones.
        warnings: What speaks against taking them for other images of the data set.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray | None
    about: dict[str, Any]
    warnings: list[str]


def select(
    test: Dataset,
    *,
    num_examples: int | None = None,
    images: str | None = None,
    sample: str = 'first',
    sample_seed: int = 0,
    class_map: str | None = None,
    at_most: int | None = None,
) -> Selection:
    """The images that are asked for, in the order of the data set, or of the list.

    Unless `num_examples` says how many, they are `at_most` so many.

    Raises:
        InputError: A list or a class map cannot be read, or names what is not there; more images than there
            are; or a random sample of no number.
    """
    count = num_examples
    about: dict[str, Any] = {}
    if sample not in SAMPLES:
        raise unknown('sample', sample, SAMPLES)
    rows = None
    if images is not None:
        rows = _listed(Path(images), test)
        about['images'] = _file(Path(images))
    there = len(test.labels) if rows is None else len(rows)
    if count is not None and check_count('num_examples', count) > there:
        where = f'of {test.name}' if rows is None else f'in {images}'
        raise InputError(f'num_examples={count} is more than the {there} images {where}')
    if sample == 'random':
        if count is None:
            raise InputError('sample=random needs a number of images, as in --num_examples=500')
        drawn = np.sort(data.epoch_order(sample_seed, 0, there)[:count])
        rows = drawn if rows is None else rows[drawn]
        about |= {'sample': 'random', 'sample_seed': sample_seed}
    elif sample_seed:
        raise InputError(f'sample_seed={sample_seed} belongs to --sample=random: leave it out')
    count = at_most if count is None else count
    indices = None if rows is None else rows[:count].astype(np.int64)
    chosen: Any = slice(count) if indices is None else indices
    labels = test.labels[chosen]
    warnings = [] if images is not None or sample == 'random' else _of_few_classes(labels, test)
    if class_map is not None:
        labels = _mapped(Path(class_map), labels, test.classes)
        about['class_map'] = _file(Path(class_map))
    return Selection(data.chosen(test.images, chosen), labels, indices, about, warnings)


def _of_few_classes(labels: np.ndarray, test: Dataset) -> list[str]:
    """A warning where the first images have fewer classes than as many random ones would have."""
    if (found := of_few_classes(labels, test.labels)) is None:
        return []
    return [
        f'the first {len(labels)} of {len(test.labels)} images of {test.name} are of {found[0]} of '
        f'{found[1]} classes, as they are sorted by class: their accuracies are not those of the data set. '
        f'Give --sample=random --num_examples={len(labels)}'
    ]


def _file(path: Path) -> dict[str, str]:
    """A file, for a result: whoever has it can tell whether it is the same."""
    return {'file': str(path), 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}


def _listed(path: Path, test: Dataset) -> np.ndarray:
    """The numbers of the images that a list names, in its order."""
    try:
        lines = [line.strip() for line in check_regular(path).read_text(encoding='utf-8').splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f'--images={path} cannot be read ({error}): give a text file') from error
    given = [line for line in lines if line]
    if not given:
        raise InputError(f'--images={path} names no image: give one a line, by number or by name')
    if all(line.isascii() and line.isdecimal() for line in given):
        known = {str(number): number for number in range(len(test.labels))}
        given = [line.lstrip('0') or '0' for line in given]
    elif test.names:
        known = {name: number for number, name in enumerate(test.names)}
    else:
        other = next(line for line in given if not (line.isascii() and line.isdecimal()))
        raise InputError(
            f'--images={path} names {other[:100]!r}, and the images of {test.name} have no names: give their '
            f'numbers, from 0 to {len(test.labels) - 1}, one a line'
        )
    if missing := [line for line in given if line not in known]:
        raise InputError(
            f'--images={path}: {len(missing)} of {len(given)} images are not in {test.name}, which has '
            f'{len(known)}: {listed(missing)}. Correct the list, or give the data set that it is of'
        )
    if len(set(given)) < len(given):
        twice, times = collections.Counter(given).most_common(1)[0]
        raise InputError(f'--images={path} names {twice!r} {times} times: name each image once')
    return np.array([known[line] for line in given])


def _mapped(path: Path, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The labels [M] as a class map has them: by the name of the class, or else by its number."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f'--class_map={path} cannot be read as JSON ({error})') from error
    whole = isinstance(content, dict) and all(type(one) is int and one >= 0 for one in content.values())
    if not whole:
        raise InputError(
            f'--class_map={path} must be an object of class to index of an output, as {{"cat": 281, "7": 3}}'
        )
    outputs, missing = {}, []
    for label in np.unique(labels).tolist():
        keys = [*([names[label]] if label < len(names) else []), str(label)]
        found = next((content[key] for key in keys if key in content), None)
        if found is None:
            missing.append(keys[0])
        outputs[label] = found
    if missing:
        raise InputError(
            f'--class_map={path} lacks {len(missing)} of {len(outputs)} classes: {listed(missing)}. '
            'Give each an output of the network'
        )
    return np.array([outputs[label] for label in labels.tolist()], np.int64)
