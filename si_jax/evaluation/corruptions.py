"""Accuracy under common corruptions (noise, blur, weather, digital), by corruption and severity.

    scores = corruptions(network, 'CIFAR-10-C')
    scores.mean, scores.mce(), scores.table()

Nothing attacks here: corruptions are chance's, and a network that withstands them need not withstand an
attack, nor the other way round.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from si_jax import data
from si_jax.data.corrupted import SEVERITIES, STANDARD, names
from si_jax.errors import InputError, unknown
from si_jax.evaluation import curves, sanity
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.gates import check_finite, check_labels_of
from si_jax.evaluation.loading import SCHEMA
from si_jax.evaluation.network import Network
from si_jax.evaluation.pixels import Pixels
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import data_digest, replaceable
from si_jax.evaluation.settings import check_count
from si_jax.runtime.environment import environment
from si_jax.runtime.progress import progress as progress_of
from si_jax.runtime.progress import silent
from si_jax.storage.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Corruptions:
    """Accuracies under corruptions, as fractions.

    Attributes:
        accuracy: Corruption to its accuracies [S], one for each of `severities`.
        severities: From 1, the weakest, to 5.
        images: The number of images of each corruption and severity; the same ones.
        dataset: The folder, and a SHA-256 of the images of the first corruption.
        environment: Versions and devices.
        model: Where the classifier came from, if known.
        warnings: What makes them doubtful, by the first corruption.
    """

    accuracy: dict[str, np.ndarray]
    severities: tuple[int, ...]
    images: int
    dataset: dict[str, Any]
    environment: dict[str, Any]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean over all corruptions and severities: 75 of each image, for the standard fifteen."""
        return float(np.mean(list(self.accuracy.values())))

    @property
    def by_severity(self) -> np.ndarray:
        """[S], the mean over corruptions."""
        return np.mean(list(self.accuracy.values()), axis=0)

    def mce(self, reference: 'Corruptions | None' = None) -> float:
        """The mean corruption error, as a fraction.

        Args:
            reference: Of another network. The error under each corruption, summed over severities, is then
                divided by its error there, and 1 is as good as that network. None for no division, as it is
                usual on CIFAR: the mean error.

        Raises:
            InputError: The reference has other corruptions or severities, or makes no error under one.

        Source: Hendrycks and Dietterich (2019), section 4.1; their reference is AlexNet, on ImageNet.
        """
        errors = {name: float(np.sum(1 - row)) for name, row in self.accuracy.items()}
        if reference is None:
            return float(np.mean(list(errors.values()))) / len(self.severities)
        others = reference.divisors(self.accuracy, self.severities)
        reference.check_images(self.images, self.dataset)
        return float(np.mean([errors[name] / others[name] for name in errors]))

    def divisors(self, names: Iterable[str], severities: Sequence[int]) -> dict[str, float]:
        """The errors by corruption, summed over severities, by which those of another network are divided.

        Raises:
            InputError: The other network is measured otherwise, or there is no error under a corruption.
        """
        if set(names) != set(self.accuracy) or tuple(severities) != self.severities:
            raise InputError(
                f'the reference has {", ".join(self.accuracy)} at severities {self.severities}, where '
                f'{", ".join(names)} at {tuple(severities)} are to be compared with it: measure both alike'
            )
        errors = {name: float(np.sum(1 - row)) for name, row in self.accuracy.items()}
        if none := [name for name, error in errors.items() if error == 0]:
            raise InputError(
                f'the reference makes no error under {none[0]}, by which one cannot divide: take another'
            )
        return errors

    def check_images(self, count: int, dataset: dict[str, Any]) -> None:
        """Raises InputError unless these scores are of so many images of a data set, as in `dataset`."""
        first, digest = (self.dataset.get(key) for key in ('first', 'digest'))
        alike = first != dataset['first'] or digest == dataset['digest']  # digests are of the first set alone
        if self.images != count or not alike:
            raise InputError(
                f'the reference is of {self.images} images of {self.dataset.get("name")}, and to be compared '
                f'are {count} of {dataset["name"]}, or others of as many: measure both on the same images'
            )

    def to_json(self, reference: 'Corruptions | None' = None) -> dict[str, Any]:
        """The scores in JSON's types; `mce` says what it is relative to."""
        return {
            'schema': SCHEMA,
            'kind': 'corruptions',
            'dataset': self.dataset,
            'model': self.model,
            'images': self.images,
            'severities': list(self.severities),
            'accuracy': self.mean,
            'by_severity': self.by_severity.tolist(),
            'corruptions': {
                name: {'accuracy': float(np.mean(row)), 'by_severity': row.tolist()}
                for name, row in self.accuracy.items()
            },
            'mce': {
                'value': self.mce(reference),
                'reference': None if reference is None else reference.model or reference.dataset,
            },
            'warnings': self.warnings,
            'environment': self.environment,
        }

    def save(self, path: str | os.PathLike, reference: 'Corruptions | None' = None) -> None:
        """Writes the JSON file.

        Raises:
            InputError: The path does not end in `.json`.
            OSError: It cannot be written.
        """
        path = replaceable(path, ())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_json(reference))

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Corruptions':
        """Reads what `save` wrote.

        Raises:
            InputError: It is missing, damaged, or something else.
        """
        try:
            about = read_json(path)
            severities = tuple(map(int, about['severities']))
            rows = {name: np.asarray(one['by_severity'], float) for name, one in about['corruptions'].items()}
            if about['kind'] != 'corruptions' or not rows:
                raise ValueError('it is of another kind')
            if not all(
                row.shape == (len(severities),) and np.all((0 <= row) & (row <= 1)) for row in rows.values()
            ):
                raise ValueError('an accuracy is not in [0, 1], or there is not one for each severity')
            fields = {name: about[name] for name in ('images', 'dataset', 'environment', 'model')}
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise InputError(
                f'{path} is no file of evaluate.py corruptions, or damaged ({error}): measure again'
            ) from error
        return cls(accuracy=rows, severities=severities, warnings=about.get('warnings', []), **fields)

    def table(self, reference: 'Corruptions | None' = None) -> str:
        """The accuracies in percent, for a terminal of 80 columns."""
        first = max(20, *(len(name) + 2 for name in self.accuracy))
        heads = ''.join(f'{severity:>8}' for severity in self.severities)
        lines = [
            f'accuracy in %, {self.images} images of {self.dataset["name"]}',
            f'{"severity":<{first}}{heads}{"mean":>8}',
        ]
        for name, row in self.accuracy.items():
            shown = ''.join(f'{100 * value:>8.2f}' for value in (*row, np.mean(row)))
            lines.append(f'{name.replace("_", " "):<{first}}{shown}')
        shown = ''.join(f'{100 * value:>8.2f}' for value in (*self.by_severity, self.mean))
        lines.append(f'{"mean":<{first}}{shown}')
        what = 'the mean error' if reference is None else 'relative to the errors of the reference'
        lines.append(f'mean corruption error (mCE): {100 * self.mce(reference):.2f} %, {what}')
        return '\n'.join([*lines, *curves.warnings(self.warnings)])


def chosen(folder: str | os.PathLike, wanted: Sequence[str] | None) -> list[str]:
    """The corruptions that are scored: those that are wanted, or the standard fifteen.

    Raises:
        InputError: The folder has none, or lacks one.
    """
    there = names(Path(folder))
    for name in wanted or ():
        if name not in there:
            raise unknown('corruption', name, there)
    if wanted is None and (lacking := [name for name in STANDARD if name not in there]):
        raise InputError(
            f'{folder} lacks {", ".join(lacking)} of the standard corruptions, over which the mean is taken: '
            f'get the folder again, or name those that are wanted, of {", ".join(there)}'
        )
    return list(dict.fromkeys(wanted)) if wanted else list(STANDARD)


def corruptions(
    classifier: Any,
    folder: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    num_examples: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Corruptions:
    """Measures the accuracy of a classifier on a corrupted test set, such as CIFAR-10-C.

    It classifies as `si_jax.evaluate` does the clean images: in float32, at highest precision.

    Args:
        classifier: As for `si_jax.evaluate`.
        folder: With `labels.npy` and a file for each corruption, see `si_jax.data.corrupted`.
        names: The corruptions; None for the standard fifteen.
        severities: Of 1 to 5, in rising order.
        num_examples: Only so many images, the first ones; None for all.
        batch_size: Images at once; None for the device's usual number.
        progress: Whether to show it.

    Raises:
        InputError: The folder lacks a corruption, or a file is damaged; a severity is none; or the classifier
            is unfit.
    """
    severities = tuple(severities)
    if not severities or sorted(set(severities) & set(SEVERITIES)) != list(severities):
        raise InputError(f'severities={severities} are not some of {SEVERITIES} in rising order, each once')
    wanted = chosen(folder, names)
    accuracy = {name: np.zeros(len(severities)) for name in wanted}
    network, digest, count = None, '', 0
    warnings: list[str] = []
    if (judged := classifier_of(classifier)).randomised:
        raise InputError(
            'a Randomised classifier decides by the votes of many draws: call evaluate on each data set '
            "'corrupted:FOLDER/NAME@SEVERITY'"
        )
    highest = jax.default_matmul_precision('highest')
    with (
        highest,
        progress_of(len(wanted) * len(severities), 'corruptions', 'set') if progress else silent() as bar,
    ):
        for name in wanted:
            for column, severity in enumerate(severities):
                test = data.load(f'corrupted:{folder}/{name}@{severity}', 'test')
                count = len(test.labels)
                if num_examples is not None:
                    count = check_count('num_examples', num_examples)
                    if count > len(test.labels):
                        raise InputError(f'num_examples={count}: there are {len(test.labels)} images')
                images, labels = Pixels(test.images[:count], test.scale), test.labels[:count]
                if network is None:
                    request = Request.of(images, labels, batch_size=batch_size)
                    network = Network.of(judged, request)
                    check_labels_of(network.request.classes, request.labels)
                    network = network.check_and_classify(explain=False)
                    logits, digest = network.clean_logits, data_digest(images, labels)
                    warnings = [
                        f'on {name} {severity}: {words}'
                        for words in sanity.decisions(logits, labels, network.request.images)
                    ]
                else:
                    logits = network.logits(images, network.keys(0))
                    check_finite(logits, images, network.request.indices, f'{name} {severity}, image')
                accuracy[name][column] = np.mean(np.argmax(logits, axis=1) == labels)
                bar.update()
    return Corruptions(
        warnings=warnings,
        accuracy=accuracy,
        severities=severities,
        images=count,
        dataset={'name': str(folder), 'first': f'{wanted[0]}@{severities[0]}', 'digest': digest},
        environment=environment(),
    )
