"""`evaluate.py corruptions`: the accuracy under common corruptions, from files like those of CIFAR-10-C."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from si_jax.cli import outputs
from si_jax.cli.subject import IMAGES, NETWORK, Subject, load
from si_jax.errors import InputError
from si_jax.evaluation.corruptions import SEVERITIES, Corruptions, chosen, corruptions
from si_jax.evaluation.result import check_output, data_digest
from si_jax.runtime import compilation_cache, terminal
from si_jax.runtime.terminal import Flag, show


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser(
        'evaluate.py corruptions',
        'evaluate.py corruptions --folder=FOLDER --workdir=FOLDER [flags]',
        """
Measures the accuracy of a classifier on images with common corruptions, such as
noise, blur and fog: by corruption and severity, and the mean corruption error.
The folder holds labels.npy and a file for each corruption, as CIFAR-10-C.tar
(https://zenodo.org/records/2535967) and CIFAR-100-C.tar
(https://zenodo.org/records/3555552) do.

examples:
  the fifteen standard corruptions at five severities
    python evaluate.py corruptions --folder=CIFAR-10-C --workdir=WORKDIR
  two of them, on 1,000 images each
    python evaluate.py corruptions --folder=CIFAR-10-C --workdir=WORKDIR \\
        --names=fog,frost --num_examples=1000
  errors relative to those of another network, by its file
    python evaluate.py corruptions --folder=CIFAR-10-C --workdir=WORKDIR \\
        --reference=evaluation/other-corruptions.json
  an attack on corrupted images
    python evaluate.py --workdir=WORKDIR --dataset=corrupted:CIFAR-10-C/fog@3
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    terminal.add(flags.add_argument_group('what is evaluated: one of the first three'), NETWORK)
    table = {
        'folder': Flag('FOLDER', 'with labels.npy and a file for each corruption', required=True),
        'names': Flag('NAME,...', 'only these corruptions (default: the fifteen that are standard)'),
        'severities': Flag('N,...', 'only these, of 1 to 5 (default: all)', numbers),
        'num_examples': Flag('N', 'only the first N images (default: all)', int),
        'batch_size': Flag('N', 'images at once (default: by device); changes no result', int),
        'reference': Flag('FILE.json', 'of this command, of another network: mCE is relative to its errors'),
        'output': Flag('FILE.json', 'default: a new file in <workdir>/evaluation, or evaluation'),
    }
    terminal.add(flags.add_argument_group('corruptions'), table)
    return flags


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(',')]


def run(arguments: dict[str, Any]) -> Corruptions:
    """Measures, prints and writes the scores.

    Args:
        arguments: The values of the flags.

    Raises:
        InputError: A value is wrong, or the network is unfit.
    """
    given = {name: arguments.pop(name) for name in NETWORK}
    folder, names, severities = (arguments.pop(name) for name in ('folder', 'names', 'severities'))
    reference, output = arguments.pop('reference'), arguments.pop('output')
    other = None if reference is None else Corruptions.load(reference)
    wanted = chosen(folder, None if names is None else [name.strip() for name in names.split(',')])
    severities = SEVERITIES if severities is None else tuple(severities)
    if other is not None:
        other.divisors(wanted, severities)
    defaults = {name: flag.default for name, flag in IMAGES.items()}
    if given['stated_clean'] is not None:
        raise InputError('--stated_clean is of clean images, and these are corrupted: leave it out')
    if not severities or not set(severities) <= set(SEVERITIES):
        raise InputError(f'--severities={",".join(map(str, severities))}: a severity is one of 1 to 5')
    # The first set stands for all: they have the same shape and classes.
    first = f'{wanted[0]}@{severities[0]}'
    of_first = {'dataset': f'corrupted:{folder}/{first}', 'num_examples': arguments['num_examples']}
    subject = Subject(**given, **defaults | of_first)
    loaded = load(subject)
    if other is not None:
        count = arguments['num_examples']
        images, labels = loaded.images[:count], loaded.labels[:count]
        about = {'name': folder, 'first': first, 'digest': data_digest(images, labels)}
        other.check_images(len(labels), about)
    choice = {'names': wanted, 'severities': severities, 'num_examples': arguments['num_examples']}
    path = check_output(loaded.path(output, 'corruptions', choice))
    files = [path, path.with_name(f'{path.stem}{outputs.POINT}')]
    outputs.check('--output=FILE.json', files, [*subject.reads(), folder, reference])
    compilation_cache.enable()
    with outputs.point_beside(path):
        scores = corruptions(
            loaded.classifier, folder, names=wanted, severities=severities, progress=True, **arguments
        )
    scores = dataclasses.replace(scores, model=loaded.about, warnings=[*loaded.warnings, *scores.warnings])
    scores.save(path, other)
    show(scores.table(other))
    print(f'written to {Path(path)}')
    return scores
