"""Whether a network of the zoo is what its manifest says: its files, and its accuracies measured again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import data
from si_jax.attacks.facts import taken_by
from si_jax.attacks.pgd import Attack
from si_jax.attacks.registry import row_of
from si_jax.errors import InputError, unknown
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.plain import departures
from si_jax.evaluation.result import Result, SavedResult, data_digest
from si_jax.zoo.entries import Entry, check_file, entry
from si_jax.zoo.load import LoadedModel, load_model
from si_jax.zoo.weights import sha256

ALIKE = 1000  # rounding may decide otherwise on one image in so many
CHUNK = 500  # images at once


class Verified(NamedTuple):
    """One accuracy of a network of the zoo, 'clean' or an attack's, as stated and as found now (fractions).

    `differing` of the `images` have another flag than in the result of the zoo.
    """

    attack: str
    stated: float
    found: float
    differing: int
    images: int


def verify(name: str) -> Entry:
    """Checks the files of a network of the zoo; nothing is measured.

    The weights must have the size and SHA-256 of the manifest and fit the network that they name; seed, data
    set and threat model in them must be the manifest's, and its accuracies those of the result, whose digest
    is checked too.

    Args:
        name: In the zoo, with or without `zoo:`.

    Returns:
        What the manifest says of it.

    Raises:
        InputError: The zoo has no such name (those that come near are named), or something is not as stated.
    """
    one = entry(name)
    check_file(one)
    model = load_model(one.weights_path)
    config = model.config
    of_file = {
        'seed': config.get('seed'),
        'step': model.step,
        'dataset.name': config.data.name,
        'threat_model': {'norm': config.threat.norm, 'eps': config.threat.eps},
    }
    stated = {'seed': one.seed, 'step': one.step, 'dataset.name': one.dataset.get('name')}
    stated['threat_model'] = one.threat_model
    for key, value in of_file.items():
        if stated[key] != value:
            raise InputError(f'{one.name}: {key} is {stated[key]} in the manifest and {value} in {one.file}')
    for key, value in facts(read_result(one, flags=False)).items():
        if getattr(one, key) != value:
            raise InputError(
                f'{one.name}: {key} is {getattr(one, key)} in the manifest and {value} in {one.result}: '
                'the manifest was edited; add the model again'
            )
    return one


def read_result(one: Entry, *, flags: bool = True) -> SavedResult:
    """The result of a network of the zoo; `flags` as for `Result.load`.

    Raises:
        InputError: It cannot be read, or is not the file that was added.
    """
    path = one.result_path
    try:
        digest = sha256(path)
    except OSError as error:
        raise InputError(f'{one.name}: {path} cannot be read ({error}): get it again') from error
    if digest != one.result_sha256:
        raise InputError(
            f'{one.name}: the SHA-256 of {path} is {digest}, the manifest says {one.result_sha256}: it was '
            'changed or damaged; get it again'
        )
    return Result.load(path, flags=flags)


def facts(result: SavedResult) -> dict[str, Any]:
    """What a manifest takes from a result: dataset, threat_model, protocol and accuracy.

    Raises:
        InputError: It is not of a named data set, has attacks that are not the library's, or was not measured
            on the network as it is.
    """
    about, attacks = result.about, result.about['attacks']
    if custom := [name for name, row in attacks.items() if 'own' in row.get('protocol', {})]:
        raise InputError(f'the result has the attack {custom[0]!r} of your own, which others cannot repeat')
    if aimed := [name for name, row in attacks.items() if 'success' in row]:
        raise InputError(f'{aimed[0]} of the result had targets: evaluate without them')
    if other := departures(about):
        raise InputError(f'the result was measured {other[0]}: evaluate the network without that')
    try:
        # Of the caller's settings those that an attack takes and that its name does not say.
        settings = {
            key: [row[key] for name, row in attacks.items() if key in taken_by(name)]
            for key in ('steps', 'step_size', 'restarts')
        }
        dataset = {key: about['dataset'][key] for key in ('name', 'split', 'examples', 'classes', 'digest')}
    except KeyError as error:
        raise InputError(
            f'this is no result of evaluate.py for a named data set: {error} is missing'
        ) from error
    if any(one != values[0] for values in settings.values() for one in values):
        raise InputError('the attacks of the result have different steps, step sizes or restarts')
    common = {key: values[0] for key, values in settings.items() if values}
    rows = {'clean': about['clean'], **attacks, 'worst_case': about['worst_case']}
    return {
        'dataset': dataset,
        'threat_model': about['threat_model'],
        'protocol': {'attacks': list(attacks), 'seed': about['seed'], **common},
        'accuracy': {name: row['accuracy'] for name, row in rows.items()},
    }


def differing(model: LoadedModel, images: np.ndarray, labels: np.ndarray, right: np.ndarray) -> int:
    """How many images [N, H, W, C] a network classifies otherwise than flags [N] say; 0 for rounding."""
    parts = [images[first : first + CHUNK] for first in range(0, len(images), CHUNK)]
    with jax.default_matmul_precision('highest'):  # as an evaluation does
        found = np.concatenate([np.argmax(model(jnp.asarray(part)).logits, axis=1) for part in parts])
    count = int(np.sum((found == labels) != right))
    return count if count > len(labels) // ALIKE else 0


def images_of(dataset: dict[str, Any], data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The images in [0, 1] and labels of a result.

    Raises:
        InputError: The data set is not there, or has other pixels or labels.
    """
    test, count = data.load(dataset['name'], dataset['split'], data_dir), dataset['examples']
    images = data.to_unit_on_host(test.images[:count], test.scale)
    labels = test.labels[:count]
    if data_digest(images, labels) != dataset['digest']:
        raise InputError(
            f'the first {count} images of {dataset["name"]} are not those of the result, or in another '
            'order: give --data_dir=FOLDER of the original'
        )
    return images, labels


def measure(
    name: str, *, attacks: Sequence[str] | None = None, data_dir: str | None = None
) -> list[Verified]:
    """Evaluates a network of the zoo again, as its result was measured.

    Args:
        name: In the zoo.
        attacks: Of those in the manifest; None for all of the PGD family, which take seconds.
        data_dir: Where the data set lies.

    Returns:
        A row for 'clean' and for each attack. On the machine that made the result no flag differs; elsewhere
        float32 rounds differently.

    Raises:
        InputError: As `verify`; or an attack that the manifest does not have, or other images.
    """
    one = verify(name)
    stated = one.protocol['attacks']
    family = [attack for attack in stated if isinstance(row_of(attack), Attack)]
    chosen = family if attacks is None else list(attacks)
    for attack in chosen:
        if attack not in stated:
            raise unknown(f'attack of {one.name}', attack, stated)
    chosen = chosen or stated[:1]
    wanted = {'seed'}.union(*map(taken_by, chosen))
    settings = {key: value for key, value in one.protocol.items() if key in wanted}
    images, labels = images_of(one.dataset, data_dir)
    model: LoadedModel = load_model(one.weights_path)
    result = evaluate(model, images, labels, attacks=chosen, **one.threat_model, **settings)
    flags = read_result(one).correct
    return [
        Verified(
            attack,
            one.accuracy[attack],
            result.accuracy[attack],
            int(np.sum(result.correct[attack] != flags[attack])),
            len(labels),
        )
        for attack in ('clean', *result.attacks)
    ]
