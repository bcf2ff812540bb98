"""What figures are measured on: networks of finished runs, and test images; and the way over all devices."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from si_jax import data
from si_jax.errors import InputError
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.result import Result
from si_jax.evaluation.settings import CHUNK, CHUNK_ACCELERATOR, check_count
from si_jax.reports.labels import counts, labels_of, split_workdirs
from si_jax.runtime.devices import compile_rows, map_rows, replicate
from si_jax.runtime.progress import passing
from si_jax.storage.trees import differences
from si_jax.threat import Threat
from si_jax.zoo.load import LoadedModel, load_model, read_config


class Network(NamedTuple):
    """A network of a run in evaluation mode, by the label that the figure gives it."""

    label: str
    workdir: str
    model: LoadedModel

    @property
    def about(self) -> dict[str, Any]:
        """For the JSON file."""
        return {'label': self.label, 'workdir': self.workdir, 'step': self.model.step} | of_config(
            self.model.config
        )


class Subject(NamedTuple):
    """The networks of a figure and the images that they are measured on.

    Attributes:
        networks: At least one.
        images: [N, H, W, C] float32 in [0, 1], the first N test images.
        labels: [N].
        threat: That all of them were trained for.
        about: For the JSON file.
    """

    networks: list[Network]
    images: np.ndarray
    labels: np.ndarray
    threat: Threat
    about: dict[str, Any]

    def evaluate(self, classifier: Any, attacks: str | tuple[str, ...], **settings: Any) -> Result:
        """`si_jax.evaluate` of a classifier on these images, in their threat model."""
        threat = dataclasses.asdict(self.threat)
        return evaluate(classifier, self.images, self.labels, attacks=attacks, **threat, **settings)


def of_config(config: ConfigDict) -> dict[str, Any]:
    """What a reader of a figure must know of a run, in JSON's types."""
    return {
        'defense': config.defense.name,
        'si': config.defense.si,
        'arch': config.model.arch,
        'width': config.model.width,
        'epochs': config.epochs,
        'seed': config.seed,
    }


def unlike(config: ConfigDict, other: ConfigDict) -> list[str]:
    """The fields, by their dotted names, that make two configs different runs."""
    return [name for name in differences(config.to_dict(), other.to_dict()) if counts(name)]


def read_configs(workdirs: str) -> dict[str, ConfigDict]:
    """The config of each workdir in a comma string.

    Raises:
        InputError: A folder holds no run, is given twice, was trained on other data or in another ball, or
            two of them hold the same run.
    """
    configs = {folder: read_config(folder) for folder in split_workdirs(workdirs)}
    first, config = next(iter(configs.items()))
    for folder, other in configs.items():
        for section, name in (('data', 'name'), ('threat', 'norm'), ('threat', 'eps')):
            if config[section][name] != other[section][name]:
                raise InputError(
                    f'{first} has {section}.{name}={config[section][name]!r}, {folder} '
                    f'{other[section][name]!r}: one figure shows runs on the same data and threat model'
                )
    for (folder, config), (twin, other) in itertools.combinations(configs.items(), 2):
        if not unlike(config, other):
            raise InputError(f'{folder} and {twin} are the same run twice: give one of them')
    return configs


def subject(
    workdirs: str,
    checkpoint: str | int = 'best',
    data_dir: str | None = None,
    num_examples: int | None = None,
    *,
    most: int | None = None,
) -> Subject:
    """Loads the networks of a figure and its test images.

    Args:
        workdirs: Folders of runs, with commas between.
        checkpoint: 'best', 'last' or a step.
        data_dir: Where the data set lies; None for where the first run had it.
        num_examples: The first so many test images in original order; None for all.
        most: Without `num_examples`, only so many, where there are more.

    Raises:
        InputError: See `read_configs`, `si_jax.load_model` and `si_jax.data.load`; or there are not so many
            images.
    """
    configs = read_configs(workdirs)
    config = next(iter(configs.values()))
    if num_examples is not None:
        check_count('num_examples', num_examples)
    test = data.remembered(config.data, 'test', data_dir)
    count = min(len(test.labels), most or len(test.labels)) if num_examples is None else num_examples
    if count > len(test.labels):
        raise InputError(
            f'num_examples={count} is more than the {len(test.labels)} images of {config.data.name}'
        )
    threat, labels = Threat(config.threat.norm, config.threat.eps), labels_of(configs)
    networks = [Network(labels[folder], folder, load_model(folder, checkpoint)) for folder in configs]
    return Subject(
        networks,
        data.to_unit_on_host(test.images[:count], test.scale),
        test.labels[:count],
        threat,
        {
            'dataset': {
                'name': config.data.name,
                'split': 'test',
                'examples': count,
                'classes': test.num_classes,
            },
            'threat_model': dataclasses.asdict(threat),
            'models': [network.about for network in networks],
        },
    )


def on_all_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles (shared, *rows) -> rows, a function of each image by itself.

    Args:
        function: Of one shard of the rows; see `si_jax.runtime.devices.compile_rows`.

    Returns:
        (shared, *rows) -> rows: it takes and returns all N rows as host arrays, and computes as many at once
        as evaluation does.
    """
    compiled, devices = compile_rows(function), jax.local_device_count()

    def all_rows(shared: Any, *rows: Any) -> Any:
        count = jax.tree.leaves(rows)[0].shape[0]
        chunk = devices * min(CHUNK.get(jax.default_backend(), CHUNK_ACCELERATOR), -(-count // devices))
        with passing(count, 'measuring') as progressed:
            return map_rows(compiled, replicate(shared), rows, chunk, on_share=progressed)

    return all_rows
