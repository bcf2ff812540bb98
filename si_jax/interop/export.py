"""Trained networks to PyTorch: weights with its names and layouts, and the nn.Module they belong to.

    python -m si_jax.cli.export --workdir=runs/tradessi_cifar10/1f2e --format=torch --output=submission

writes submission/weights.pt and submission/model.py, whose `build()` returns the network, images [B, C, H, W]
in [0, 1] -> logits [B, K]. `model.py` needs nothing of this project.
"""

import importlib.resources
import pathlib
import pprint
from collections.abc import Mapping
from typing import Any

import numpy as np

from si_jax import models
from si_jax.errors import unknown
from si_jax.interop.torch_files import FORMATS, check_finite, write
from si_jax.interop.torch_weights import to_torch
from si_jax.models.preact_resnet import VARIANTS as PREACT_VARIANTS
from si_jax.storage.files import write_atomic

_RESNETS: dict[str, dict[str, Any]] = {
    'resnet18': {'blocks': (2, 2, 2, 2)},
    'resnet50': {'blocks': (3, 4, 6, 3), 'bottleneck': True},
}


def export(
    variables: Mapping[str, Any],
    output: str | pathlib.Path,
    *,
    arch: str,
    variant: str | None = None,
    normalise: str = 'none',
    activation: str = 'relu',
    format: str = 'torch',
) -> pathlib.Path:
    """Writes weights and the module they belong to into a folder.

    Args:
        variables: 'params' and 'batch_stats' of a network of `models.create`.
        output: The folder; it is made if it does not exist. Files of an earlier export are replaced.
        arch: As in `models.create`.
        variant: Likewise.
        normalise: Likewise; the module does it too.
        activation: Likewise.
        format: `'torch'` or `'safetensors'`.

    Returns:
        The path of the module's file.

    Raises:
        InputError: For an unknown name, or weights that are not finite.
    """
    if format not in FORMATS:
        raise unknown('format', format, FORMATS)
    if normalise not in models.NORMALISATIONS:
        raise unknown('normalisation', normalise, models.NORMALISATIONS)
    if activation not in models.ACTIVATIONS:
        raise unknown('activation', activation, models.ACTIVATIONS)
    arrays = to_torch(variables)
    check_finite(arrays, 'the network')
    row = models.NORMALISATIONS[normalise]
    values = {
        **_settings(arch, variant, arrays),
        'normalisation': None if row is None else (row.mean, row.std),
    }
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    weights = output / f'weights{FORMATS[format]}'
    module = output / 'model.py'
    # First the file by which both are known as ours, so that a command that was killed can be repeated.
    write_atomic(module, _module_text(values, weights.name, activation))
    write(weights, arrays)
    return module


def _settings(arch: str, variant: str | None, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The class of torch_networks.py that an architecture is, and its arguments."""
    last, (width, channels, *_) = 'fc' if arch.startswith('wrn_') else 'linear', arrays['conv1.weight'].shape
    settings: dict[str, Any] = {
        'num_classes': arrays[f'{last}.weight'].shape[0],
        'width': width,
        'channels': channels,
        'hypersphere': f'{last}.bias' not in arrays,
    }
    # Names the right variants if this one is unknown.
    models.create(arch, num_classes=1, variant=variant)
    if arch in _RESNETS:
        own = {'gat': {'relu_before_sum': True}, 'imagenet': {'imagenet_stem': True}}.get(variant or '', {})
        return {'network': 'ResNet', **settings, **_RESNETS[arch], **own}
    if arch == 'preact_resnet18':
        row = PREACT_VARIANTS[variant or next(iter(PREACT_VARIANTS))]
        settings |= {'preactivated_shortcut': row.preactivated_shortcut, 'final_norm': row.final_norm}
        return {'network': 'PreActResNet', **settings}
    if arch == 'small_cnn':
        return {'network': 'SmallCNN', **settings, 'flat': arrays['hidden.weight'].shape[1]}
    depth, widen = map(int, arch.split('_')[1:])
    return {'network': 'WideResNet', **settings, 'depth': depth, 'widen': widen}


def _module_text(settings: Mapping[str, Any], weights: str, activation: str) -> str:
    text = (
        importlib.resources.files('si_jax.interop').joinpath('torch_networks.py').read_text(encoding='utf-8')
    )
    docstring = f'''"""{settings['network']} with the weights of {weights}, exported by si_jax (Apache-2.0).

`build()` returns the network in evaluation mode: images [B, C, H, W] in [0, 1] -> logits [B, K].
"""'''
    values = pprint.pformat(dict(settings), sort_dicts=False)
    _, _, code = text.split('"""', 2)
    for old, new in (
        ('SETTINGS: dict = {}', f'SETTINGS: dict = {values}'),
        ("WEIGHTS = ''", f'WEIGHTS = {weights!r}'),
        ("ACTIVATION = 'relu'", f'ACTIVATION = {activation!r}'),
    ):
        before, after = code.split(old)
        code = before + new + after
    return docstring + code


if __name__ == '__main__':
    # A door for a release: the command has moved to `python -m si_jax.cli.export`.
    import runpy

    runpy.run_module('si_jax.cli.export', run_name='__main__', alter_sys=True)
