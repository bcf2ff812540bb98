"""A run of train.py and a result of evaluate.py become a network of a zoo."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from si_jax.errors import InputError
from si_jax.evaluation.result import Result, SavedResult, check_output
from si_jax.storage.files import read_json, write_json
from si_jax.zoo import weights
from si_jax.zoo.entries import MANIFEST, SCHEMA, Entry, check_name, read_manifest
from si_jax.zoo.load import LoadedModel, load_model
from si_jax.zoo.verifying import differing, facts, images_of


def add(name: str, *, workdir: str, result: str, zoo: str, data_dir: str | None = None) -> Entry:
    """Writes weights, result and entry of a trained network into a zoo.

    All figures come from the result. The network is run on its images first, so that a result of another
    network is refused.

    Args:
        name: Of the entry.
        workdir: The run of train.py.
        result: The JSON file that `evaluate.py --workdir` wrote for it, with the npz of the flags beside it.
        zoo: The folder with the manifest; it is made if there is none.
        data_dir: Where the data set lies, if not where the run had it.

    Returns:
        The entry.

    Raises:
        InputError: A name that is taken or cannot be one, a folder that holds no run, a result that is not of
            this run, or one without a named data set.
    """
    check_name(name)
    folder = Path(zoo)
    known = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    if name in known:
        raise InputError(
            f'{folder / MANIFEST} has {name!r} already: give --name another, or remove that entry'
        )
    path = check_output(result)
    found = Result.load(path)
    described = facts(found)
    checkpoint = str(found.about.get('model', {}).get('checkpoint', 'best'))
    model = load_model(workdir, checkpoint)
    config = model.config.to_dict()
    _check_result_is_of(model, found, data_dir or config['data']['dir'], workdir)
    config['data']['dir'] = None  # where the data lay on this machine says nothing elsewhere

    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    file = place / 'weights.npz'
    weights.write(file, config, model.step, model.variables, model.init_from)
    for suffix in ('.json', '.npz'):
        shutil.copyfile(path.with_suffix(suffix), place / f'result{suffix}')
    entry = Entry(
        name=name,
        folder=folder,
        recipe=recipe(Path(workdir)),
        seed=config['seed'],
        checkpoint=checkpoint,
        step=model.step,
        **described,
        result=f'{name}/result.json',
        result_sha256=weights.sha256(place / 'result.json'),
        file=f'{name}/weights.npz',
        bytes=file.stat().st_size,
        sha256=weights.sha256(file),
    )
    models = {one.name: one.to_json() for one in sorted([*known.values(), entry], key=lambda one: one.name)}
    write_json(folder / MANIFEST, {'schema': SCHEMA, 'models': models})
    return entry


def _check_result_is_of(model: LoadedModel, found: SavedResult, data_dir: str | None, workdir: str) -> None:
    """Raises InputError unless the network classifies the images of the result as its flags say."""
    threat = {'norm': model.config.threat.norm, 'eps': model.config.threat.eps}
    dataset = found.about['dataset']
    if found.about['threat_model'] != threat or dataset['name'] != model.config.data.name:
        raise InputError(
            f'--result={found.path} is of {dataset["name"]}, {found.about["threat_model"]}, {workdir} was '
            f'trained on {model.config.data.name}, {threat}: evaluate it there'
        )
    images, labels = images_of(dataset, data_dir)
    if count := differing(model, images, labels, found.correct['clean']):
        raise InputError(
            f'--result={found.path} is of another network: {workdir} classifies {count} of its '
            f'{len(labels)} clean images otherwise. Give the result of evaluate.py --workdir for this one'
        )


def recipe(workdir: Path) -> dict[str, Any]:
    """The config file of a run, its overrides, and the command, from the environment.json of its last start.

    Raises:
        InputError: The run does not say how it was started.
    """
    path = workdir / 'environment.json'
    try:
        command = read_json(path)['command']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path} does not say how the run was started ({error}): train with train.py'
        ) from error
    flags = dict(_flags(command))
    if 'config' not in flags:
        raise InputError(f'{path} has no --config in its command: train with train.py --config=FILE')
    overrides = {
        key.removeprefix('config.'): value for key, value in flags.items() if key.startswith('config.')
    }
    overrides.pop('data.dir', None)
    words = ['python', 'train.py', f'--config={flags["config"]}']
    words += [f'--config.{key}={value}' for key, value in overrides.items()]
    return {'config': flags['config'], 'overrides': overrides, 'command': shlex.join(words)}


def _flags(command: Sequence[str]) -> list[tuple[str, str]]:
    """The flags of a command, as `--name=value` or `--name value`."""
    found = []
    for position, word in enumerate(command):
        name, separator, value = word.lstrip('-').partition('=')
        if word.startswith('-'):
            found.append((name, value if separator else ' '.join(command[position + 1 : position + 2])))
    return found
