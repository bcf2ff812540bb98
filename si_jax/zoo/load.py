"""Trained networks, read back from the folder of a run, from a file of weights, or from the zoo."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from si_jax import data, models
from si_jax.errors import InputError, unknown
from si_jax.interop import torch_weights
from si_jax.outputs import Outputs
from si_jax.storage import hub
from si_jax.storage.files import check_fields, read_json
from si_jax.storage.trees import difference, leaves
from si_jax.training import average, initial
from si_jax.training.recipes import completed
from si_jax.zoo import weights
from si_jax.zoo.entries import PREFIX, check_file, entry

WEIGHTS = ('average', 'live')
SUFFIXES = (weights.SUFFIX, weights.SAFETENSORS)  # of this library's files
TORCH = ('.pt', '.pth', '.safetensors')  # files of PyTorch; the last one may be of this library too
# What is read of a config, and of which kind it is.
FIELDS: dict[tuple[str, ...], type] = {
    ('data', 'name'): str,
    ('model', 'arch'): str,
    ('model', 'width'): int,
    ('model', 'variant'): str,
    ('model', 'normalise'): str,
    ('defense',): dict,
    ('threat', 'norm'): str,
    ('threat', 'eps'): float,
}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained network in evaluation mode: call it on images [B, H, W, C] in [0, 1].

    Attributes:
        module: The network, in float32 whatever it was trained in.
        variables: Its parameters and running statistics.
        config: The config of the run.
        step: The training step of the checkpoint.
        weights: Where the run averaged its weights 'average: ema', or 'live' for those of training; else ''.
        init_from: The record of the weights that the run started from (`si_jax.training.initial`); {} for
            random ones.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: ConfigDict
    step: int
    weights: str = ''
    init_from: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, images: jax.Array) -> Outputs:
        """The logits, features and kernel, `Outputs`."""
        return models.predict(self.module, self.variables, images)


def read_config(model: str | os.PathLike) -> ConfigDict:
    """The config of the run that a network comes from, with today's default for a field that it lacks.

    Args:
        model: As for `load_model`.

    Raises:
        InputError: It names no network.
    """
    if (file := _file(model)) is not None:
        return ConfigDict(completed(weights.read(file).config))
    path = Path(model) / 'config.json'
    try:
        config = read_json(path)
        check_fields(config, FIELDS)
        return ConfigDict(completed(config))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{str(model)!r} is no workdir of train.py, {path.name} is missing or damaged ({error}): '
            'give the folder that train.py printed'
        ) from error


def load_model(
    model: str | os.PathLike, checkpoint: str | int = 'best', *, weights: str | None = None
) -> LoadedModel:
    """Loads a network that train.py trained: the average of its weights where the run kept one.

    Args:
        model: The folder of the run; a file of weights, `.npz` as `python -m si_jax.cli.zoo add` writes it or
            `.safetensors` as export --format=jax does; `hf:OWNER/NAME@REVISION` (`si_jax.storage.hub`); or
            the name of a network of the zoo, with `zoo:` before it or, if there is no folder of that name,
            without.
        checkpoint: 'best' (by held-out robust accuracy), 'last', or a training step, of a run. A file holds
            one, so leave it out there.
        weights: 'live' for the weights of training, 'average' for their average; None for the average where
            the run kept one, which is what a file holds then.

    Raises:
        InputError: The folder holds no run, no such checkpoint, a damaged one, or one of another network; the
            run kept no average, or the file no live weights beside it; the zoo has no such name (those that
            come near are named); the file is missing, damaged, has another digest than the manifest says, or
            holds a pickle.
    """
    if weights not in (None, *WEIGHTS):
        raise unknown('weights', weights, WEIGHTS)
    if (file := _file(model)) is not None:
        if checkpoint != 'best':
            raise InputError(
                f'checkpoint={checkpoint!r} belongs to a workdir, {model} holds one: leave it out'
            )
        return _from_file(file, weights)
    # Orbax takes seconds to import, and `evaluate` needs none of it.
    from si_jax.training.checkpoints import Checkpoints

    config = read_config(model)
    module, variables = network(config)
    which = _weights(model, config, weights)
    like = variables if which in ('', 'live') else average.needed(config.average, variables)
    restored = Checkpoints(Path(model) / 'checkpoints').restore(checkpoint, like=like, only=tuple(like))
    record = restored.metadata.get('init_from', {})
    return LoadedModel(module, average.evaluated(restored.state), config, restored.step, which, record)


def measured_or_last(workdir: Path) -> str:
    """The checkpoint to take of a run: the best one, or the last one where none was measured."""
    from si_jax.training.checkpoints import Checkpoints

    return 'best' if Checkpoints(workdir / 'checkpoints').best_step is not None else 'last'


def _weights(model: str | os.PathLike, config: ConfigDict, asked: str | None) -> str:
    """Which weights are asked for, as `LoadedModel.weights` has it."""
    kind = config.average.kind
    if asked == 'average' and not kind:
        raise InputError(
            f"weights='average': the run of {model} kept no average of its weights: leave it out"
        )
    return ('live' if asked == 'live' else f'average: {kind}') if kind else ''


def network(config: ConfigDict) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a config, and the shapes and dtypes of its variables.

    Raises:
        InputError: A data set or an architecture that is not known.
    """
    shape, num_classes = tuple(config.data.image_shape), config.data.num_classes
    if not shape or not num_classes:
        if config.data.name not in data.SOURCES:
            raise unknown('data set', config.data.name, data.SOURCES)
        shape, num_classes = data.SOURCES[config.data.name].shape, data.SOURCES[config.data.name].num_classes
    module = models.from_config(
        config.model,
        num_classes=num_classes,
        hypersphere=bool(config.defense.get('he', False)),
        dtype='float32',
    )
    if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
        raise InputError(f'data.image_shape={shape} is not (height, width, channels): the config is damaged')
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    return module, {'params': shapes['params'], 'batch_stats': shapes.get('batch_stats', {})}


def is_file_or_zoo(model: str | os.PathLike) -> bool:
    """Whether `load_model` takes this for a file of weights or a name of the zoo, not for a workdir."""
    text = str(model)
    if text.startswith((PREFIX, hub.PREFIX)):
        return True
    return not Path(text).is_dir() and (text.endswith(SUFFIXES) or os.sep not in text)


def _file(model: str | os.PathLike) -> Path | None:
    """The file of weights that a name or path stands for; None for a workdir."""
    text = str(model)
    if not is_file_or_zoo(model):
        return None
    if hub.is_address(text):
        return hub.local(text)
    if text.startswith(PREFIX) or not text.endswith(SUFFIXES):
        try:
            return check_file(entry(text))
        except InputError as error:
            if text.startswith(PREFIX):
                raise
            raise InputError(
                f'{text!r} is no workdir of train.py, as there is no such folder; nor is it in the '
                f'zoo: {error}'
            ) from error
    return Path(text)


def _from_file(path: Path, asked: str | None) -> LoadedModel:
    found = weights.read(path)
    try:
        check_fields(found.config, FIELDS)
        config = ConfigDict(completed(found.config))
        module, like = network(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'{path} is of a network that this version cannot build: {error}') from error
    if differing := difference(found.headers, dict(leaves(like))):
        raise InputError(f'{path} is not of the network that it names: {differing}')
    if (which := _weights(path, config, asked)) == 'live':
        raise InputError(
            f"weights='live': {path} holds the average alone: leave it out, or name the workdir of the run"
        )
    variables = {'params': {}, 'batch_stats': {}} | traverse_util.unflatten_dict(found.arrays, sep='/')
    return LoadedModel(module, variables, config, found.step, which, found.init_from)


@initial.reader
def weights_to_start_from(
    name: str, config: ConfigDict, image_shape: tuple[int, ...], field: str, prefer: str
) -> initial.Given:
    """The weights that a field names: of a run its best checkpoint, or its last where none was measured.

    Those of PyTorch are read as a network of the config's architecture, variant and normalisation.
    """
    try:
        path = hub.local(name)
        ours = path.is_file() and weights.is_ours(path)
    except InputError as error:
        raise InputError(f'init_from={name}: {error}') from error
    if path.suffix in TORCH and not ours:
        model = config.model
        try:
            network = torch_weights.load(
                path,
                model.arch,
                normalise=model.normalise,
                variant=model.variant or None,
                image_shape=image_shape,
            )
        except InputError as error:
            raise InputError(
                f'{field}={name}: {error} (it is read by --config.model.arch, variant and normalise)'
            ) from error
        variables = {'batch_stats': {}} | network.variables
        return initial.Given(variables, network.num_classes, None, {})
    if path.is_file() and path.suffix not in SUFFIXES:
        known = ', '.join((weights.SUFFIX, *TORCH))
        raise InputError(
            f'{field}={name} is a file of none of the kinds {known}: give one, a workdir, or zoo:NAME'
        )
    which = 'best'
    if not is_file_or_zoo(name):
        which = measured_or_last(Path(name)) if prefer == 'best' else prefer
    try:
        loaded = load_model(name, which)
    except InputError as error:
        raise InputError(f'{field}={name}: {error}') from error
    about = {'checkpoint': which, 'step': loaded.step, 'weights': loaded.weights}
    classes = loaded.module.num_classes
    return initial.Given(loaded.variables, classes, loaded.config, about)
