"""What RobustBench asks for when a network is submitted to its leaderboard, in one folder.

    model_info.json    the claim: the fields of its files `model_info/<dataset>/<norm>/<Name>.json`
    model.py           the network as a PyTorch module, with its weights beside it
    adversarial.pt     the images that AutoAttack made, a tensor [N, C, H, W] in [0, 1]
    README.md          what is left to do by hand

Nothing here is sent anywhere.

Source: repository RobustBench/robustbench, README.md, model_info/ and .github/ISSUE_TEMPLATE.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.plain import departures
from si_jax.evaluation.result import Result, SavedResult
from si_jax.interop.export import export
from si_jax.interop.torch_files import import_torch
from si_jax.storage import npz
from si_jax.storage.files import write_atomic, write_json
from si_jax.zoo.load import LoadedModel
from si_jax.zoo.verifying import differing

ATTACK = 'autoattack'
CLAIM, IMAGES, README = 'model_info.json', 'adversarial.pt', 'README.md'
FILES = ('model.py', 'weights.pt', CLAIM, IMAGES, README)
# Data set and norm -> eps and number of test images of each leaderboard that takes these networks.
LEADERBOARDS = {
    ('cifar10', 'linf'): (8 / 255, 10_000),
    ('cifar10', 'l2'): (0.5, 10_000),
    ('cifar100', 'linf'): (8 / 255, 10_000),
}
TITLES = {'resnet18': 'ResNet-18', 'resnet50': 'ResNet-50', 'preact_resnet18': 'PreActResNet-18'}


class Evidence(NamedTuple):
    """A result under AutoAttack, with its images."""

    result: SavedResult
    images: np.ndarray  # [N, H, W, C]


def evidence(path: str | Path, loaded: LoadedModel) -> Evidence:
    """Reads the result that a claim rests on.

    Args:
        path: The JSON file that `evaluate.py --attacks=autoattack --save_images` wrote.
        loaded: The network that is submitted.

    Raises:
        InputError: The file is damaged, of another network or checkpoint, not of the network as it is,
            without AutoAttack, or without its images.
    """
    result = Result.load(path)
    again = 'evaluate it with --attacks=autoattack --save_images'
    if ATTACK not in result.about['attacks']:
        raise InputError(f'{path} has no {ATTACK}, by which the leaderboard ranks: {again}')
    if other := departures(result.about):
        raise InputError(f'{path} was measured {other[0]}: {again} and without that')
    step = result.about.get('model', {}).get('step')
    if step != loaded.step:
        raise InputError(f'{path} is of step {step}, and the network of step {loaded.step}: {again}')
    place = result.path.with_name(f'{result.path.stem}_images.npz')
    try:
        images = npz.read(place, [ATTACK])[ATTACK]
    except FileNotFoundError:
        raise InputError(f'{place} is missing, which has the adversarial images: {again}') from None
    except npz.ArchiveError as error:
        raise InputError(f'{place} {error}: {again}') from error
    if images.ndim != 4 or len(images) != len(result.labels):
        raise InputError(f'{place} has images {images.shape} for {len(result.labels)} labels: {again}')
    if count := differing(loaded, images, result.labels, result.correct[ATTACK]):
        raise InputError(
            f'{path} is of another network, or {place.name} of another result: this network classifies '
            f'{count} of its {len(images)} adversarial images otherwise; {again}'
        )
    return Evidence(result, images)


def claim(about: dict[str, Any], config: Any) -> dict[str, Any]:
    """The fields of a claim, null where only its authors know: accuracies in percent, as texts.

    Args:
        about: The JSON of the result.
        config: That of the run.
    """
    threat, accuracy = about['threat_model'], about['attacks'][ATTACK]['accuracy']
    asked = bool(config.data.extra or started_from(config))
    return {
        'link': None,
        'name': None,
        'authors': None,
        # Generated images do not count as additional data there, others do: with extra images, or weights
        # that were trained before, it is asked.
        'additional_data': None if asked else False,
        'number_forward_passes': 1,
        'dataset': about['dataset']['name'],
        'venue': None,
        'architecture': architecture(config.model.arch),
        'eps': radius(threat['norm'], threat['eps']),
        'clean_acc': f'{100 * about["clean"]["accuracy"]:.2f}',
        'reported': f'{100 * accuracy:.2f}',
        'autoattack_acc': f'{100 * accuracy:.2f}',
        'footnote': None,
        'unreliable': False,
    }


def architecture(arch: str) -> str:
    """RobustBench's name of an architecture: `WideResNet-34-10`."""
    if wide := re.fullmatch(r'wrn_(\d+)_(\d+)', arch):
        return f'WideResNet-{wide[1]}-{wide[2]}'
    return TITLES.get(arch, arch)


def radius(norm: str, eps: float) -> str:
    """A radius as RobustBench writes it: in 255ths for Linf where it is a whole number of them."""
    pixels = 255 * eps
    whole = norm == 'linf' and math.isclose(pixels, round(pixels), abs_tol=1e-4)
    return f'{round(pixels)}/255' if whole else f'{eps:g}'


def started_from(config: Any) -> str:
    """The weights that a run started from; '' for random ones, and for a run of before there were others."""
    return getattr(config, 'init_from', '')


def open_points(about: dict[str, Any], config: Any) -> list[str]:
    """What stands between the bundle and a submission, beside the fields that are null."""
    threat, dataset = about['threat_model'], about['dataset']
    found = []
    board = LEADERBOARDS.get((dataset['name'], threat['norm']))
    if board is None:
        known = ', '.join(f'{name} {norm}' for name, norm in LEADERBOARDS)
        found.append(
            f'RobustBench has no leaderboard for {dataset["name"]} with {threat["norm"]} among those '
            f'that this bundle is made for ({known}).'
        )
    else:
        eps, count = board
        if not math.isclose(eps, threat['eps'], rel_tol=1e-4):
            wanted = radius(threat['norm'], eps)
            found.append(f'The leaderboard is for eps {wanted}: evaluate again with --eps={wanted}.')
        if dataset['examples'] != count:
            found.append(
                f'The leaderboard counts all {count:,} test images, this result {dataset["examples"]:,}: '
                'evaluate again without --num_examples.'
            )
    if config.data.extra:
        found.append(
            'The training had extra images. Set `additional_data` to true if they are photographs; for '
            'generated images to false, and say how many in `footnote`.'
        )
    if started_from(config):
        found.append(
            f'The training began with the weights of {started_from(config)}. Set `additional_data` to true '
            'if they were trained on other photographs than the training set, else to false.'
        )
    if config.defense.get('he', False):
        found.append('The logits are cosines times a factor: say so in `footnote`.')
    return found + [f'The result carries a warning: {warning}' for warning in about['warnings']]


def bundle(loaded: LoadedModel, found: Evidence, folder: str | Path) -> Path:
    """Writes the bundle.

    Args:
        loaded: The network.
        found: From `evidence`.
        folder: Where; made if it does not exist.

    Returns:
        The README.

    Raises:
        InputError: The network is none that can be exported, or PyTorch is not installed.
    """
    torch = import_torch()
    about, model, folder = found.result.about, loaded.config.model, Path(folder)
    export(
        loaded.variables,
        folder,
        arch=model.arch,
        variant=model.variant or None,
        normalise=model.normalise,
        activation=model.activation,
    )
    filled = claim(about, loaded.config)
    write_json(folder / CLAIM, filled)
    images = np.ascontiguousarray(found.images.transpose(0, 3, 1, 2), dtype=np.float32)
    torch.save(torch.from_numpy(images), folder / IMAGES)
    write_atomic(folder / README, _readme(filled, about, open_points(about, loaded.config)))
    return folder / README


def _readme(filled: dict[str, Any], about: dict[str, Any], points: list[str]) -> str:
    empty = ', '.join(f'`{name}`' for name, value in filled.items() if value is None)
    norm, count = about['threat_model']['norm'].capitalize(), about['dataset']['examples']
    todo = [
        f'Fill in {empty} in `{CLAIM}`, and name the file `<Name><Year><FirstWordOfTheTitle>.json` after the '
        f'first author and the title. It goes to `model_info/{filled["dataset"]}/{norm}/`.',
        'Put the class of `model.py` into `robustbench/model_zoo/models.py`, and `weights.pt` where everyone '
        'can download it. `build()` maps images [B, C, H, W] in [0, 1] to logits; it normalises them itself.',
        'Check the rules of the benchmark, which this program cannot: a forward pass is deterministic, has '
        'no optimisation loop inside, and gradients reach the image.',
        'Choose a licence; RobustBench publishes networks under the MIT license unless told otherwise.',
        'Open an issue "New Model(s)" at https://github.com/RobustBench/robustbench, then a pull request.',
    ]
    lines = [
        '# Submission to RobustBench',
        '',
        f'Clean accuracy {filled["clean_acc"]} %, under AutoAttack {filled["autoattack_acc"]} % '
        f'({norm}, eps {filled["eps"]}), on {count:,} test images of {filled["dataset"]}.',
        '',
        f'- `{CLAIM}`: the claim.',
        '- `model.py` and `weights.pt`: the network as a PyTorch module.',
        f'- `{IMAGES}`: the images that AutoAttack made, a tensor [{count}, C, H, W] in [0, 1], in the order '
        'of the test set. An issue "New external evaluation(s)" asks for the same tensor.',
        '',
        '## Left to do',
        '',
        *(f'{number}. {text}' for number, text in enumerate([*points, *todo], 1)),
    ]
    return '\n'.join(lines) + '\n'
