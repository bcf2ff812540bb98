"""Trained networks, read back from the folder of a run."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from si_jax import data, models
from si_jax.errors import InputError, unknown
from si_jax.files import check_fields, read_json
from si_jax.outputs import Outputs

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
    """

    module: nn.Module
    variables: dict[str, Any]
    config: ConfigDict
    step: int

    def __call__(self, images: jax.Array) -> Outputs:
        """The logits, features and kernel, `Outputs`."""
        return self.module.apply(self.variables, images)  # type: ignore[return-value]


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
        InputError: It holds no run.
    """
    path = Path(workdir) / 'config.json'
    try:
        config = read_json(path)
        check_fields(config, FIELDS)
        return ConfigDict(config)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{str(workdir)!r} is no workdir of train.py, {path.name} is missing or damaged ({error}): '
            'give the folder that train.py printed'
        ) from error


def load_model(workdir: str | os.PathLike, checkpoint: str | int = 'best') -> LoadedModel:
    """Loads a network that train.py trained.

    Args:
        workdir: The folder of the run.
        checkpoint: 'best' (by held-out robust accuracy), 'last', or a training step.

    Raises:
        InputError: The folder holds no run, no such checkpoint, a damaged one, or one of another network.
    """
    # Orbax takes seconds to import, and `evaluate` needs none of it.
    from si_jax.checkpoints import Checkpoints

    config = read_config(workdir)
    if config.data.name not in data.SOURCES:
        raise unknown('data set', config.data.name, data.SOURCES)
    source = data.SOURCES[config.data.name]
    module = models.create(
        config.model.arch,
        num_classes=source.num_classes,
        width=config.model.width or None,
        variant=config.model.variant or None,
        normalise=config.model.normalise,
        hypersphere=bool(config.defense.get('he', False)),
    )
    image = jnp.zeros((1, *source.shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    like = {'params': shapes['params'], 'batch_stats': shapes.get('batch_stats', {})}
    restored = Checkpoints(Path(workdir) / 'checkpoints').restore(checkpoint, like=like, only=tuple(like))
    return LoadedModel(module, restored.state, config, restored.step)
