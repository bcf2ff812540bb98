"""What runs are called beside each other: by their method, and by the fields in which they differ."""

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


def labels_of(configs: dict[str, ConfigDict]) -> dict[str, str]:
    """A label for the run of each workdir; runs of one method are told apart by what they differ in."""
    titles = {folder: _title(config.defense) for folder, config in configs.items()}
    labels = dict(titles)
    for folder, title in titles.items():
        alike = [configs[other].to_dict() for other in titles if titles[other] == title and other != folder]
        config = configs[folder].to_dict()
        fields = {name: new for other in alike for name, (_, new) in differences(other, config).items()}
        shown = [f'{name.removeprefix("defense.")}={value}' for name, value in fields.items() if counts(name)]
        if shown:
            labels[folder] = f'{title} ({", ".join(shown)})'
    return labels


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
