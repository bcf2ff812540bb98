"""HAT's helper network: it labels points beyond the adversarial images, x + 2 (x' - x), by its class of x'.

The helper is a network that was trained without an attack, in evaluation mode:
`--config.defense.helper=WORKDIR|zoo:NAME|FILE`. With its labels the defended network changes its mind further
out only where an ordinary network does, so that its margin is no larger than robustness asks for.

The helper's weights are what the term of these points remembers: a part of the train state that no step
changes. So a run that goes on has the helper that it began with.

Source: Rade and Moosavi-Dezfooli (2022), repository imrahulr/hat, core/utils/hat.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from si_jax import models
from si_jax.defenses import HELPED, Defense
from si_jax.errors import InputError
from si_jax.memories import Memory
from si_jax.outputs import as_outputs
from si_jax.storage.trees import difference, digest, leaves
from si_jax.training import initial

Array = jax.Array
REACH = 2.0  # of the points, in units of x' - x


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


def read(
    config: ConfigDict, defense: Defense, *, num_classes: int, image_shape: tuple[int, ...]
) -> Helper | None:
    """The helper of a config, checked; None for a defense that has none.

    Args:
        config: The whole config.
        defense: Its defense.
        num_classes: Of the data.
        image_shape: (H, W, C).

    Raises:
        InputError: There is a helper without a use for it, or none where one is needed (with the command that
            trains one), or it is none for these images and classes.
    """
    source = config.defense.helper
    needed = term_of(defense) is not None
    if source and not needed:
        raise InputError(
            f'defense.helper={source}: the defense {config.defense.name!r} asks no helper: leave it out, or '
            'give --config=configs/hat_cifar10.py'
        )
    if not needed:
        return None
    if not source:
        where = f' --config.data.dir={config.data.dir}' if config.data.dir else ''
        raise InputError(
            f'defense.helper is empty, and {config.defense.name!r} needs a network trained without attacks. '
            f'Train one: python train.py --config=configs/standard_cifar10.py:{config.model.arch} '
            f'--config.data.name={config.data.name}{where} --config.data.validation={config.data.validation} '
            '--workdir=runs/helper; then add --config.defense.helper=runs/helper to this command'
        )
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
