"""HAT's helper network: it labels points beyond the adversarial images, x + 2 (x' - x), by its class of x'.

The helper is a network that was trained without an attack, in evaluation mode:
`--config.defense.helper=WORKDIR|zoo:NAME|FILE`. With its labels the defended network changes its mind further
out only where an ordinary network does, so that its margin is no larger than robustness asks for. Where none
is given, a run trains one first, in its workdir (`config_of`, `si_jax.training.loop`).

The helper's weights are what the term of these points remembers: a part of the train state that no step
changes. So a run that goes on has the helper that it began with.

Source: Rade and Moosavi-Dezfooli (2022), repository imrahulr/hat, core/utils/hat.py.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from si_jax import defenses, models
from si_jax.defenses import HELPED, Defense
from si_jax.errors import InputError
from si_jax.memories import Memory
from si_jax.outputs import as_outputs
from si_jax.runtime import terminal
from si_jax.storage.trees import difference, digest, leaves
from si_jax.training import initial, recipes

Array = jax.Array
REACH = 2.0  # of the points, in units of x' - x
FOLDER = 'helper'  # of a workdir: the run of a helper that was trained there


class Helper(NamedTuple):
    """A helper that was read.

    Attributes:
        module: The network.
        variables: {'params', 'batch_stats'}.
        source: As it was given.
        digest: Of its weights.
    """

    module: nn.Module
    variables: Mapping[str, Any]
    source: str
    digest: str


def config_of(config: ConfigDict) -> ConfigDict | None:
    """The config that trains the helper of a config without one; None where one is given or none is needed.

    It is the same recipe without an attack, as its authors train theirs: data, network, seed, epochs,
    schedule and optimiser are those of the config. What belongs to an attack or to the loss is left out, and
    so is what ends a run for the sake of robustness, which a helper does not have.
    """
    if config.defense.helper or term_of(defenses.from_config(config.defense)) is None:
        return None
    helper = config.copy_and_resolve_references()
    plain = recipes.paper('standard', dataset=config.data.name, arch=config.model.arch)
    for name in ('defense', 'awp', 'ramp', 'overfitting'):
        helper[name] = plain[name]
    helper.patience, helper.init_from = plain.patience, plain.init_from
    return helper


def announced(config: ConfigDict, folder: str | os.PathLike) -> str:
    """That a helper is trained first, where, and how another one is given."""
    where = f' --config.data.dir={config.data.dir}' if config.data.dir else ''
    return terminal.spelled(
        f'defense.helper is empty: a network is trained first, without an attack, in {folder}. To train one '
        f'for several runs: python train.py --config=configs/standard_cifar10.py:{config.model.arch} '
        f'--config.data.name={config.data.name}{where} --config.data.validation={config.data.validation} '
        '--workdir=runs/helper; then add --config.defense.helper=runs/helper to this command'
    )


def check(config: ConfigDict, defense: Defense) -> None:
    """Refuses a helper without a use for it, and one that could not be read once it is trained.

    Raises:
        InputError: There is one, and the defense asks none; or nothing that reads networks is imported.
    """
    if term_of(defense) is not None:
        initial.check_reader('defense.helper')
    elif HELPED in defense.passes:
        raise InputError(
            f'defense.passes={",".join(defense.passes)!r}: no term of {config.defense.name} reads the pass '
            f'{HELPED!r}, which belongs to hat: leave it out'
        )
    elif config.defense.helper:
        raise InputError(
            f'defense.helper={config.defense.helper}: the defense {config.defense.name!r} asks no helper: '
            'leave it out, or give --config=configs/hat_cifar10.py'
        )


def read(source: str, config: ConfigDict, *, num_classes: int, image_shape: tuple[int, ...]) -> Helper:
    """The helper of this name, checked.

    Args:
        source: As `defense.helper` has it.
        config: The whole config.
        num_classes: Of the data.
        image_shape: (H, W, C).

    Raises:
        InputError: There is none, or it is none for these images and classes.
    """
    given = initial.reading(source, config, image_shape, field='defense.helper', prefer='last')
    about = config if given.config is None else given.config
    module = models.from_config(
        about.model,
        num_classes=given.num_classes,
        hypersphere=given.config is not None and bool(given.config.defense.he),
        dtype='float32',
    )
    made = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image_shape), jnp.float32))
    found = {path: np.asarray(array) for path, array in leaves(dict(given.variables))}
    if given.num_classes != num_classes or difference(found, dict(leaves(made))):
        raise InputError(
            f'defense.helper={source} is a network of {given.num_classes} classes for other images than '
            f'these, of {" x ".join(map(str, image_shape))} and {num_classes} classes: give one that was '
            'trained on the same data'
        )
    kept = {'batch_stats': {}, **given.variables}
    return Helper(module, kept, source, digest(*(found[path] for path in sorted(found))))


def term_of(defense: Defense) -> str | None:
    """The name of the term that reads the helper's points; None without one."""
    return next((name for name, term in defense.outer.items() if term.on == HELPED), None)


def attached(defense: Defense, variables: Mapping[str, Any]) -> Defense:
    """The defense whose term of the helper's points remembers these weights of the helper."""
    name = term_of(defense)
    assert name is not None

    def first(classes: int) -> Any:
        return jax.tree.map(jnp.asarray, dict(variables))

    def same(memory: Any, seen: Any, new_epoch: Array) -> Any:
        return memory

    memory = Memory(first, same)
    return defense._replace(outer={**defense.outer, name: defense.outer[name]._replace(memory=memory)})


def beyond(
    defense: Defense, helper: nn.Module, memory: Mapping[str, Any], images: Array, adversarial: Array
) -> tuple[Array, Array]:
    """The points x + 2 (x' - x) [B, H, W, C], not clipped, and the helper's labels [B] of them.

    `memory` is what the terms of `defense` remember; the labels are those of the adversarial images.
    """
    name = term_of(defense)
    assert name is not None
    outputs = as_outputs(helper.apply(memory[name], adversarial))
    return images + REACH * (adversarial - images), jnp.argmax(outputs.logits, axis=1).astype(jnp.int32)
