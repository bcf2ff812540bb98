"""What runs are called beside each other: by their method, and by the fewest fields that tell them apart."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from si_jax.errors import InputError
from si_jax.reports.results import IRRELEVANT
from si_jax.storage.trees import differences

TITLES = {
    'standard': 'plain training',
    'at': 'AT',
    'trades': 'TRADES',
    'alp': 'ALP',
    'mart': 'MART',
    'freeat': 'FreeAT',
    'gat': 'GAT',
    'rfgsm': 'RFGSM-AT',
    'gradalign': 'GradAlign',
}


def split_workdirs(workdirs: str) -> list[str]:
    """The folders in a comma string.

    Raises:
        InputError: There is none, or one is given twice.
    """
    folders = [part.strip() for part in workdirs.split(',') if part.strip()]
    if not folders:
        raise InputError(f'--workdirs={workdirs!r} names no folder: give those that train.py printed')
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f'--workdirs names {folder} {places.count(place)} times: give it once')
    return folders


MOST_FIELDS = 3  # in a label
CANDIDATES = 12  # fields of which they are chosen


def labels_of(configs: dict[str, ConfigDict]) -> dict[str, str]:
    """A label for the run of each workdir; runs of one method are told apart by the fewest fields that do."""
    titles = {folder: _title(config.defense) for folder, config in configs.items()}
    labels = dict(titles)
    for title in dict.fromkeys(titles.values()):
        alike = [folder for folder, other in titles.items() if other == title]
        flat = {folder: _flat(configs[folder]) for folder in alike}
        for folder, chosen in zip(alike, itertools.repeat(_telling(list(flat.values())))):
            # An empty field is the usual: the label of the run without it.
            fields = {name: flat[folder].get(name) for name in chosen}
            shown = [f'{_short(name, chosen)}={value}' for name, value in fields.items() if value != '']
            labels[folder] = f'{title} ({", ".join(shown)})' if shown else title
    return labels


def _flat(config: ConfigDict) -> dict[str, Any]:
    """The fields that make runs different, by their dotted names."""
    return {name: new for name, (_, new) in differences({}, config.to_dict()).items() if counts(name)}


def _telling(configs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The fewest fields that tell configs apart, as far as fields do; of as many the shortest to read."""
    names = dict.fromkeys(name for config in configs for name in config)
    values = {name: [repr(config.get(name)) for config in configs] for name in names}
    differing = [name for name in names if len(set(values[name])) > 1]
    # The most telling first, so that a few are enough to choose from.
    differing = sorted(differing, key=lambda name: -len(set(values[name])))[:CANDIDATES]
    best: tuple[str, ...] = ()
    known = 1
    for size in range(1, MOST_FIELDS + 1):
        for some in sorted(itertools.combinations(differing, size), key=lambda some: len(''.join(some))):
            if (told := len(set(zip(*(values[name] for name in some), strict=True)))) > known:
                best, known = some, told
        if known == len(configs):
            break
    return tuple(name for name in names if name in best)


def _short(name: str, beside: Sequence[str]) -> str:
    """The last part of a field's name, or all of it where another has the same last part."""
    last = name.rpartition('.')[2]
    return last if [other.rpartition('.')[2] for other in beside].count(last) == 1 else name


def shortest(path: Path, alike: Sequence[Path]) -> str:
    """The shortest end of a path that no other of these has."""
    for count in range(1, len(path.parts)):
        end = path.parts[-count:]
        if sum(other.parts[-count:] == end for other in alike) == 1:
            return '/'.join(end)
    return str(path)


def _title(defense: Any) -> str:
    title = str(defense.name)
    return (
        TITLES.get(title, title) + ('-SI' if defense.si else '') + ('-HE' if defense.get('he', False) else '')
    )


def counts(field: str) -> bool:
    """Whether runs with different values of a field, by its dotted name, are different runs."""
    return not any(field == name or field.startswith(f'{name}.') for name in IRRELEVANT)


# What each figure of the paper shows, by its name; `paper.figures` measures and draws them.
FIGURE_TITLES = {
    '1': 'accuracy under attack against a factor on the logits',
    '2': 'two classes, two features: W_k in training (trains itself)',
    '3': 'loss surfaces around test images',
    '4': 'adversarial loss along weight directions',
    '5': 'cosines on adversarial images',
    'norms': '|W_k|, |z| and gap over epochs, from metrics.jsonl',
}

QUANTITIES = {
    'weight_norm': 'norm of the weight vectors, mean $|W_k|$',
    'feature_norm': 'norm of the features, mean $|z|$',
    'median_gap': 'gap of the two highest logits, median',
    'true_cosine': 'cosine of the true class, mean',
    'natural_accuracy': 'natural accuracy',
    'calibrated_pgd_accuracy': 'accuracy under calibrated PGD',
}
