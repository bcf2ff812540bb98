"""Weights of the named architectures, from PyTorch's state dicts and back.

    network = load('trades.pt', 'wrn_34_10')
    outputs = network.model.apply(network.variables, images)
    arrays = to_torch(network.variables)                   # names and layouts of PyTorch

Names: joined by '.', with '_' read as '.', our module names are PyTorch's. Layouts: convolutions OIHW become
HWIO, linear layers [K, F] become [F, K]. See si_jax.models.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from si_jax import models
from si_jax.errors import InputError
from si_jax.interop.torch_files import as_arrays, check_finite, listed, read
from si_jax.models.batch_norm import BRANCH

# (collection, leaf) of ours -> PyTorch's name of it.
_LEAVES = {
    ('params', 'kernel'): 'weight',
    ('params', 'scale'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}
# Keys under which training scripts store the weights beside other things.
_ENTRIES = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net')
# What DataParallel, and a wrapper with the network as an attribute, put before every name.
_PREFIXES = ('module.', 'model.')
# torchvision's names in a ResNet.
_TORCHVISION = re.compile(r'^fc\.|(?<=\.)downsample(?=\.)')


class Network(NamedTuple):
    """A network with its weights: `model.apply(variables, images)` -> `Outputs`."""

    model: nn.Module
    variables: dict[str, Any]
    num_classes: int


def load(path: str | pathlib.Path, arch: str, **options: Any) -> Network:
    """A named architecture with the weights of a PyTorch checkpoint (torch.save or safetensors).

    Args:
        path: The file.
        arch: As for `from_torch`.
        options: Likewise.

    Raises:
        InputError: For a file that cannot be read (see `torch_files.read`), and as `from_torch`.
    """
    try:
        return from_torch(read(path), arch, **options)
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f'{path}: {error}') from error


def from_torch(
    state: Any,
    arch: str,
    *,
    normalise: str = 'none',
    variant: str | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Network:
    """A named architecture with the weights of a state dict.

    torchvision's names of a ResNet are read too. `num_batches_tracked`, and the unused `sub_block1` of some
    WRN checkpoints, are left out. The width and the number of classes are the checkpoint's. float64 stays
    float64; other types become float32.

    Args:
        state: Tensors or arrays by name, perhaps within a checkpoint that holds more.
        arch: A row of `models.ARCHITECTURES`, or `wrn_<depth>_<widen>`.
        normalise: What the network's authors do to images in [0, 1]; a row of `models.NORMALISATIONS`.
        variant: Needed where two variants have the same names and shapes.
        num_classes: Checked against the checkpoint if given.
        image_shape: (H, W, C); matters for `small_cnn` alone.

    Raises:
        InputError: If names are missing or unknown (they are listed), shapes differ, values are not finite,
            the number of classes is another, or two variants would fit and none is named.
    """
    arrays = state_arrays(state)
    wide = arch.startswith('wrn_')
    if wide:
        arrays = {name: a for name, a in arrays.items() if not name.startswith('sub_block1.')}
    if arch.startswith('resnet'):
        ours = {name: _TORCHVISION.sub(_ours, name) for name in arrays}
        arrays = {name if ours[name] in arrays else ours[name]: array for name, array in arrays.items()}
    stem, last = arrays.get('conv1.weight'), arrays.get('fc.weight' if wide else 'linear.weight')
    fitting = _fitting(arch, arrays)
    model = models.create(
        arch,
        num_classes=num_classes or 10 if last is None else last.shape[0],
        width=None if stem is None else stem.shape[0],
        variant=variant or fitting[0],
        normalise=normalise,
    )
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    flat = flax.traverse_util.flatten_dict(template)
    names = {path: torch_name(path) for path in flat}
    _check_names(arch, set(names.values()), arrays)
    if num_classes not in (None, model.num_classes):
        raise InputError(f'the checkpoint has {model.num_classes} classes, num_classes is {num_classes}')
    if variant is None and len(fitting) > 1:
        raise InputError(
            f'{len(fitting)} variants of {arch} have the names and shapes of this checkpoint, and compute '
            f'different things. Name the one it was trained as, {" or ".join(map(repr, fitting))}: the wrong '
            f'one shows only as a clean accuracy far below the stated one'
        )
    new, wrong = {}, []
    for path, leaf in flat.items():
        array = arrays[names[path]]
        axes = _to_torch_axes(leaf.ndim)
        expected = [leaf.shape[axis] for axis in axes]
        if list(array.shape) != expected:
            wrong.append(f'{names[path]} is {list(array.shape)}, not {expected}')
        else:
            new[path] = jnp.asarray(array.transpose(np.argsort(axes)))
    if wrong:
        looks = _looks(arch, arrays)
        raise InputError(
            f'{len(wrong)} of {len(flat)} shapes are not those of {arch}: {listed(wrong)}{looks}'
        )
    check_finite({name: arrays[name] for name in names.values()}, 'the checkpoint')
    return Network(model, flax.traverse_util.unflatten_dict(new), model.num_classes)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the PyTorch network, as arrays with its names and layouts.

    Of batch normalisation with two sets it has the first, with which networks are evaluated.
    """
    arrays = {}
    for path, leaf in flax.traverse_util.flatten_dict(dict(variables)).items():
        if path[-1].startswith(BRANCH):
            continue
        leaf = np.asarray(leaf)
        arrays[torch_name(path)] = np.ascontiguousarray(leaf.transpose(_to_torch_axes(leaf.ndim)))
        if path[-1] == 'mean':
            tracked = torch_name(path).replace('running_mean', 'num_batches_tracked')
            arrays[tracked] = np.zeros((), np.int64)
    return arrays


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of one of our variables, `('params', 'layer2_0', 'conv1', 'kernel')` -> ..."""
    collection, *modules, leaf = path
    return '.'.join([*modules, '']).replace('_', '.') + _LEAVES[collection, leaf]


def _to_torch_axes(ndim: int) -> tuple[int, ...]:
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(ndim, tuple(range(ndim)))


def state_arrays(state: Any) -> dict[str, np.ndarray]:
    """NumPy arrays by name, without prefixes, from a state dict or a checkpoint that holds one.

    Raises:
        InputError: If there is none, or as `torch_files.as_arrays`.
    """
    seen: set[int] = set()
    while isinstance(state, Mapping) and not _is_state(state):
        entry = next((key for key in _ENTRIES if isinstance(state.get(key), Mapping)), None)
        if id(state) in seen:
            raise InputError(
                f'no weights found: its entry {entry!r} leads back to itself; save the state_dict() alone'
            )
        seen.add(id(state))
        if entry is None:
            raise InputError(
                f'no weights found: none of its entries ({listed(map(str, state))}) is one of '
                f'{", ".join(_ENTRIES)}'
            )
        state = state[entry]
    if not isinstance(state, Mapping):
        raise InputError(f'a checkpoint must hold a state_dict, not {type(state).__name__}')
    arrays = as_arrays(state)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in arrays)), ''):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return {name: a for name, a in arrays.items() if not name.endswith('num_batches_tracked')}


def _is_state(state: Mapping[Any, Any]) -> bool:
    return bool(state) and all(isinstance(k, str) and hasattr(v, 'shape') for k, v in state.items())


def _ours(found: re.Match[str]) -> str:
    """What a name of torchvision's is here."""
    return 'linear.' if found[0] == 'fc.' else 'shortcut'


def _fitting(arch: str, arrays: Mapping[str, np.ndarray]) -> tuple[str | None, ...]:
    """Variants that compute different things but have the names and shapes of a checkpoint."""
    if arch == 'resnet18':
        return 'standard', 'gat'
    if arch == 'resnet50':
        stem = arrays.get('conv1.weight')
        return ('imagenet',) if stem is not None and stem.shape[-1] == 7 else ('standard',)
    if arch == 'preact_resnet18':
        # Without the final normalisation there are two as well, which differ in their initialisation alone.
        return ('bag_of_tricks', 'fast_at') if 'bn.weight' in arrays else ('fast_at_2019',)
    return (None,)


def accuracy_hint(arch: str, variant: str | None, normalise: str) -> str:
    """What to try when the clean accuracy of a checkpoint is far below the one that its authors state."""
    known = models.ARCHITECTURES[arch].variants if arch in models.ARCHITECTURES else ()
    tries = [f'variant={other!r}' for other in known if other != variant]
    tries += [f'normalise={other!r}' for other in models.NORMALISATIONS if other != normalise]
    return (
        f'a clean accuracy far below the stated one means that the variant or the normalisation is not '
        f'variant={variant!r}, normalise={normalise!r}: try {", ".join(tries)}'
    )


NAMED = 5  # names of each kind, of those that an error lists


def _check_names(arch: str, expected: set[str], arrays: Mapping[str, np.ndarray]) -> None:
    missing, strange = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
    if not missing and not strange:
        return
    parts = [f'{len(missing)} missing: {listed(missing, NAMED)}'] if missing else []
    parts += [f'{len(strange)} unknown: {listed(strange, NAMED)}'] if strange else []
    raise InputError(f'the names are not those of {arch}, {"; ".join(parts)}{_looks(arch, arrays)}')


def _looks(arch: str, arrays: Mapping[str, np.ndarray]) -> str:
    """The architecture whose weights these seem to be, for an error about another; '' if none is known."""
    guess = guess_architecture(arrays)
    return f'. They look like those of {guess}' if guess not in (None, arch) else ''


def guess_architecture(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The architecture whose weights these seem to be; None if it is none of ours."""
    if 'conv1.weight' not in arrays:
        return None
    if 'block1.layer.0.conv1.weight' in arrays:
        blocks = sum(bool(re.fullmatch(r'block1\.layer\.\d+\.conv1\.weight', name)) for name in arrays)
        widen = arrays['block1.layer.0.conv1.weight'].shape[0] // arrays['conv1.weight'].shape[0]
        return f'wrn_{6 * blocks + 4}_{widen}'
    if 'layer1.0.conv3.weight' in arrays:
        return 'resnet50'
    if 'layer4.1.conv2.weight' in arrays:
        return 'resnet18' if 'bn1.weight' in arrays else 'preact_resnet18'
    return None
