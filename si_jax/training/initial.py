"""Weights that a run starts from, in place of random ones: `--config.init_from=...`.

    WORKDIR, zoo:NAME, FILE.npz              a network of this library: the weights that its evaluation takes
    FILE.pt, FILE.pth, FILE.safetensors      a PyTorch network of the config's architecture
    hf:OWNER/NAME@REVISION/FILE              such a file on the Hugging Face Hub (si_jax.storage.hub)

Optimiser and epochs begin as in any run, averages as copies of these weights, and the running statistics of
batch normalisation come along. Where the number of classes is another, the last layer is new. All else must
fit, so that the network begins as what it was. A run reads them once, when it begins: one that goes on has
its own in its checkpoint.

Where trained networks lie is known above training: `si_jax.zoo.load` registers itself as the `reader`, and
train.py and `si_jax.train` bring it along.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from si_jax import models
from si_jax.errors import InputError
from si_jax.interop.torch_files import listed
from si_jax.runtime import processes
from si_jax.runtime.agreement import check_identical
from si_jax.storage.trees import digest, leaves

REQUIRED = 'required'  # in a recipe that is of no use from random weights
HYPERSPHERE = 'defense.he'
# What a network computes depends on these fields, though with some its arrays look the same.
FIELDS = ('model.arch', 'model.width', 'model.variant', 'model.normalise', 'model.activation', HYPERSPHERE)


class Given(NamedTuple):
    """Weights as they were read.

    Attributes:
        variables: {'params', 'batch_stats'}.
        num_classes: Of the last layer.
        config: Of the run that they come from; None for PyTorch's, which are read by the config of this one.
        about: Where they come from, beside the name that was given, in JSON's types.
    """

    variables: Mapping[str, Any]
    num_classes: int
    config: ConfigDict | None
    about: dict[str, Any]


class Initial(NamedTuple):
    """What a run starts from.

    Attributes:
        arrays: By path, `params/conv1/kernel`; what has none is new.
        record: What checkpoints and results say of it: `source`, as it was given; `digest` of all weights
            that were read; `classes` of its last layer; `new`, the paths of new arrays; and of a run of this
            library which `checkpoint`, `step` and `weights`.
    """

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]

    def over(self, variables: Any) -> Any:
        """The variables, of a network that was just initialised, with these arrays in their places."""

        def chosen(path: Any, fresh: jax.Array) -> jax.Array:
            return jnp.asarray(self.arrays.get(jax.tree_util.keystr(path, simple=True, separator='/'), fresh))

        return jax.tree_util.tree_map_with_path(chosen, variables)


# (name, config, (H, W, C), field of the config, checkpoint) -> the weights of that name; InputError if there
# are none. The checkpoint is 'best' or 'last', of a run; where nothing was measured its last one is taken.
Reader = Callable[[str, ConfigDict, tuple[int, ...], str, str], Given]
_readers: list[Reader] = []


def reader(function: Reader) -> Reader:
    """Registers the function that reads weights by the names that `init_from` may have."""
    _readers.append(function)
    return function


def check_reader(field: str) -> None:
    """Raises InputError where nothing is registered that could read what a field names."""
    if not _readers:
        raise InputError(
            f'{field} names a network, and nothing that reads one is imported: add `import si_jax.zoo.load`, '
            'or train with si_jax.train or train.py, which do'
        )


def reading(
    name: str, config: ConfigDict, image_shape: tuple[int, ...], *, field: str, prefer: str = 'best'
) -> Given:
    """The weights that a field of a config names, as they are.

    Raises:
        InputError: There are none; the message names the field.
    """
    check_reader(field)
    return _readers[-1](name, config, image_shape, field, prefer)


def read(
    config: ConfigDict, *, num_classes: int, image_shape: tuple[int, ...], hypersphere: bool
) -> Initial | None:
    """What a config starts from, checked; None where `init_from` is empty. Processes come to the same.

    Args:
        config: The whole config.
        num_classes: Of the data.
        image_shape: (H, W, C).
        hypersphere: Whether the logits are cosines.

    Raises:
        InputError: There are no such weights, or they are of another network: its arrays that differ are
            listed, and the fields of the config.
    """
    if not config.init_from:
        return None

    def shapes(classes: int) -> dict[str, Any]:
        model = models.from_config(config.model, num_classes=classes, hypersphere=hypersphere)
        made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape), jnp.float32))
        return dict(leaves(made))

    def checked() -> Initial:
        given = reading(config.init_from, config, image_shape, field='init_from')
        there, here = shapes(given.num_classes), shapes(num_classes)
        found = {path: np.asarray(array) for path, array in leaves(dict(given.variables))}
        _check_same_network(config, given, found, there)
        if (doubt := _seen_before(config, given)) and processes.is_first():
            warnings.warn(doubt, stacklevel=2)
        kept = {
            path: found[path].astype(leaf.dtype)
            for path, leaf in here.items()
            if leaf.shape == there[path].shape
        }
        record = {
            'source': config.init_from,
            **given.about,
            'digest': digest(*(found[path] for path in sorted(found))),
            'classes': given.num_classes,
            'new': [path for path in here if path not in kept],
        }
        return Initial(kept, record)

    initial = processes.agree_on_errors(checked)
    check_identical({'init_from': initial.record})
    return initial


def _seen_before(config: ConfigDict, given: Given) -> str:
    """A warning where weights to start from were trained on images that are held out here; '' if not."""
    ours = config.data
    if not ours.validation or given.config is None or (theirs := given.config.data).name != ours.name:
        return ''
    if theirs.validation >= ours.validation and theirs.split_seed == ours.split_seed:
        return ''
    return (
        f'the weights of init_from={config.init_from} were trained with data.validation={theirs.validation}, '
        f'data.split_seed={theirs.split_seed}, and images that are held out here were among their training '
        'images: held-out accuracies, and the best checkpoint by them, are too high. Give '
        f'--config.data.split_seed={theirs.split_seed} and at most as many held-out images, or trust the '
        'test set alone'
    )


def words(record: Mapping[str, Any]) -> str:
    """What a run started from, for a reader; '' for random weights."""
    if not record:
        return ''
    told = [f'step {record["step"]}'] if 'step' in record else []
    told += [str(record['weights'])] if record.get('weights') else []
    new = record.get('new') or ()
    layer = f'; new: {listed(new)}, as it has {record.get("classes")} classes' if new else ''
    return f'weights of {", ".join([str(record.get("source")), *told])}, digest {record.get("digest")}{layer}'


def _check_same_network(
    config: ConfigDict, given: Given, found: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> None:
    """Raises InputError unless the network of the config computes with these arrays what theirs does."""

    def shape(tree: Mapping[str, Any], path: str) -> str:
        return str(tuple(tree[path].shape)) if path in tree else 'absent'

    paths = [*wanted, *(path for path in found if path not in wanted)]
    differing = [
        f'{path} ({shape(found, path)} there, {shape(wanted, path)} here)'
        for path in paths
        if shape(found, path) != shape(wanted, path)
    ]
    told = [f'{len(differing)} of {len(paths)} arrays differ: {listed(differing)}'] if differing else []
    remedy = 'give the --config.model.arch, width and variant that the weights were trained with'
    if given.config is not None:
        theirs, ours = _behaviour(given.config), _behaviour(config)
        other = {name: value for name, value in theirs.items() if value != ours[name]}
        told += [f'its {name} is {value!r}, here {ours[name]!r}' for name, value in other.items()]
        flags = [f'--config.{name}={value}' for name, value in other.items() if name != HYPERSPHERE]
        if HYPERSPHERE in other:
            flags.append(f'a recipe {"with" if other[HYPERSPHERE] else "without"} hypersphere embedding')
        remedy = f'give {", ".join(flags) or "images of the size that it was trained on"}'
    if told:
        raise InputError(
            f'init_from={config.init_from} holds weights of another network than {config.model.arch} here; '
            f'{"; ".join(told)}: {remedy}, or other weights'
        )


def _behaviour(config: ConfigDict) -> dict[str, Any]:
    """`FIELDS`, with the variant that an empty one stands for."""
    model, row = config.model, models.ARCHITECTURES.get(config.model.arch)
    variant = model.variant or (next(iter(row.variants)) if row else 'standard')
    values = model.arch, model.width, variant, model.normalise, model.activation, bool(config.defense.he)
    return dict(zip(FIELDS, values, strict=True))
