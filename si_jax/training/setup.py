"""What a run is made of: a config checked field by field, its data, and the programs that it compiles."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from si_jax import data, defenses, models
from si_jax.data import Dataset, extra, stream, workers
from si_jax.data.extra import Extra
from si_jax.data.stream import Joined, Lazy
from si_jax.defenses import Defense
from si_jax.errors import InputError
from si_jax.runtime import processes, sinks
from si_jax.runtime.devices import AXIS, check_divisible, compile_step, memory, own_rows
from si_jax.storage.trees import digest
from si_jax.threat import Threat
from si_jax.training import average, doubts, initial, ramps, schedules
from si_jax.training import eat as eat  # registers its step
from si_jax.training import free as free  # likewise
from si_jax.training import helper as helpers
from si_jax.training.average import Average
from si_jax.training.awp import Perturbation, perturbation_of
from si_jax.training.feed import Batches, Resident, Streamed, with_data
from si_jax.training.helper import Helper
from si_jax.training.initial import Initial
from si_jax.training.ramps import Ramps
from si_jax.training.state import TrainState, create_state
from si_jax.training.step import step_of
from si_jax.training.update import Calendar, Ingredients, metric_names

POSITIVE = {
    'attack': ('steps', 'step_size'),
    'evaluation': ('every_epochs', 'steps', 'step_size'),
    'checkpoint': ('every_minutes', 'keep_last'),
    'logging': ('every_steps',),
}
LARGEST = 2**31 - 1
EXTRA_DATA = 'extra data'  # in a checkpoint, where a run has any


class Setup(NamedTuple):
    """Everything a run needs, checked."""

    config: ConfigDict
    train: Dataset
    validation: Dataset
    defense: Defense
    model: nn.Module
    threat: Threat
    schedule: optax.Schedule
    optimiser: optax.GradientTransformation
    steps_per_epoch: int
    average: Average | None = None
    ramps: Ramps | None = None
    awp: Perturbation | None = None
    extra: Extra | None = None
    streamed: bool = False
    helper: Helper | None = None


def setup(config: ConfigDict) -> Setup:
    """Checks a config and loads its data, before anything is computed or written.

    Raises:
        InputError: A value is wrong; the message names it, its limit and the remedy.
    """
    config = config.copy_and_resolve_references()
    _check_numbers(config.to_dict())
    doubts.check(config)
    shape = _source(config.data).shape
    Threat(config.threat.norm, config.threat.eps).check(shape)
    defense = defenses.from_config(config.defense)
    step_of(defense)
    for threat in defense.others:
        threat.check(shape)
    _check_cutmix(config, defense)
    helpers.check(config, defense)
    if config.model.bn_branches != (defense.branches > 0):
        raise InputError(
            f'model.bn_branches={config.model.bn_branches}, defense.branches={defense.branches}: a second '
            'set of batch statistics belongs to branches; give '
            f'--config.model.bn_branches={defense.branches > 0}'
        )
    if config.model.dtype == 'float64' and not jax.config.values['jax_enable_x64']:
        raise InputError(
            'model.dtype=float64, and JAX computes in 32 bits: set JAX_ENABLE_X64=1 in the environment, or '
            'give --config.model.dtype=float32'
        )
    for name in ('epochs', 'batch_size'):
        _check_positive(name, config[name])
    for section, names in POSITIVE.items():
        for name in names:
            _check_positive(f'{section}.{name}', config[section][name])
    check_divisible(config.batch_size)
    sinks.parse(config.logging.sinks, 'logging.sinks')
    if not 0 <= config.overfitting.drop < 1:
        raise InputError(f'overfitting.drop={config.overfitting.drop:g} is not in [0, 1): 0 is no guard')
    if config.patience < 0:
        raise InputError(f'patience={config.patience} is negative: give a number of epochs, or 0 for no end')
    for name, asked in (('patience', config.patience), ('overfitting.drop', config.overfitting.drop)):
        if asked and not config.data.validation:
            raise InputError(
                f'{name}={asked:g} looks at held-out images, and data.validation=0: give '
                f'--config.data.validation=1000, or --config.{name}=0'
            )
    if config.init_from == initial.REQUIRED:
        raise InputError(
            'this recipe goes on from a trained network, and none is given: give --config.init_from=WORKDIR, '
            "or zoo:NAME, or a file of weights; --config.init_from='' begins with random ones"
        )
    if config.init_from and config.model.bn_first_step:
        raise InputError(
            f'init_from={config.init_from} brings running statistics of batch normalisation, which '
            'model.bn_first_step would replace in the first step: give --config.model.bn_first_step=False'
        )
    for name, value in (
        ('seed', config.seed),
        ('checkpoint.every_steps', config.checkpoint.every_steps),
        ('evaluation.batch_size', config.evaluation.batch_size),
    ):
        if value < 0:
            raise InputError(f'{name}={value} is negative: give 0 or more')
    if config.data.limit < 0:
        raise InputError(f'data.limit={config.data.limit} is negative: give a number of images, or 0 for all')
    extra.check(config.data, config.batch_size)
    workers.check(config.data.workers)
    place = config.data.dir, config.data.preprocessing
    whole = data.load(config.data.name, 'train', place[0], preprocessing=place[1], lazy=True)
    train, validation = data.split_validation(whole, config.data.validation, config.data.split_seed)
    of_few = ''
    if config.data.limit:
        first = slice(config.data.limit)
        of_few = doubts.limited(config.data.limit, train.labels[first], train.labels)
        train = train._replace(images=data.chosen(train.images, first), labels=train.labels[first])
    _check_class_weights(config.data.class_weights, train.num_classes)
    more = extra.load(config.data, config.batch_size, train)
    ready = assembled(config, defense, train, validation.whole(), more)
    if config.defense.helper:
        ready = with_helper(ready, config.defense.helper)
    _check_workers(ready)
    found = [*doubts.unread(config, defense), _not_seen(ready), of_few]
    if not (ready.streamed and train.identity):  # else it would take long to read them all
        found.insert(0, doubts.copies(ready.train.images, train.files, ready.validation))
    if more is not None and not ready.streamed:  # else it would, too
        found += [doubts.copies(part, more.files, ready.validation) for part in more.images.parts]
    for doubt in filter(None, found):
        if processes.is_first():
            warnings.warn(doubt, stacklevel=2)
    return ready


def _source(section: ConfigDict) -> data.Source:
    """The data set of a section `data`, which gets what a workdir must hold to find the set again."""
    section.name = data.canonical(section.name)
    source = data.describe(section.name, section.dir, preprocessing=section.preprocessing)
    found = data.facts(section.name, source)
    for name in ('image_shape', 'num_classes'):
        if section[name] and section[name] != found[name]:
            raise InputError(
                f'data.{name}={section[name]} is not what {section.name} has: leave it out, as it is written '
                'down by train.py'
            )
    section.update(found)
    return source


def _check_workers(ready: Setup) -> None:
    """Refuses worker processes where they have nothing to read."""
    if not (count := ready.config.data.workers):
        return
    if not ready.streamed:
        raise InputError(
            f'data.workers={count} are to read streamed images, and those of {ready.train.name} fit the '
            'device: give --config.data.workers=0, or --config.data.stream=always'
        )
    if not all(isinstance(part, Lazy | np.memmap) for part in _image_parts(ready)):
        raise InputError(
            f'data.workers={count} would each copy images that are in memory, as no file holds them '
            'uncompressed: give --config.data.workers=0, or save them with np.savez'
        )


def _not_seen(ready: Setup) -> str:
    """A warning where the last pass over the data is cut short, as replays count as epochs; else ''."""
    config, replays, count = ready.config, ready.defense.replays, len(ready.train.labels)
    passes, rest = divmod(config.epochs, replays)
    _, last = batch_of_step(ready, config.epochs * ready.steps_per_epoch - 1)
    left = count - (last + 1) * config.batch_size
    if not rest or left <= 0 or ready.extra:  # with extra images an epoch sees a part of the real ones anyway
        return ''
    missed = 'are never seen' if not passes else f'are seen {passes} times, the others {passes + 1}'
    whole = ' or '.join(f'--config.epochs={replays * number}' for number in (passes, passes + 1) if number)
    return (
        f'epochs={config.epochs} is no multiple of the {replays} replays of each batch, which count as '
        f'epochs: {left} of {count} training images {missed}. Give {whole}'
    )


def assembled(
    config: ConfigDict,
    defense: Defense,
    train: Dataset,
    validation: Dataset,
    more: Extra | None = None,
) -> Setup:
    """All that is made of a config but its defense and data, with them."""
    model = models.from_config(
        config.model, num_classes=train.num_classes, hypersphere=defense.hypersphere, bn_axis=AXIS
    )
    steps_per_epoch = -(-len(train.labels) // config.batch_size)
    if more is not None:
        real = len(train.labels) + len(validation.labels)
        steps_per_epoch = extra.steps_of_epoch(real, config.batch_size)
    size = train.images.nbytes + (more.images.nbytes if more is not None else 0)
    streamed = stream.is_streamed(config.data.stream, size, memory())
    if not streamed:
        train = train.whole()
    elif isinstance(train.images, Lazy):
        train.images.check()
    length = {'epochs': config.epochs, 'steps_per_epoch': steps_per_epoch}
    schedule, optimiser = schedules.schedule_and_optimiser(config.schedule, config.optimiser, **length)
    growing, defense = ramps.from_config(config.ramp, defense, **length)
    return Setup(
        config=config,
        train=_augmented(config.augment, train),
        validation=validation,
        defense=defense,
        model=model,
        threat=Threat(config.threat.norm, config.threat.eps),
        schedule=schedule,
        optimiser=optimiser,
        steps_per_epoch=steps_per_epoch,
        average=average.from_config(config.average, hypersphere=defense.hypersphere, **length),
        ramps=growing,
        awp=perturbation_of(
            config.awp, defense, possible=step_of(defense).awp, steps_per_epoch=steps_per_epoch
        ),
        extra=more,
        streamed=streamed,
    )


def with_helper(ready: Setup, source: str) -> Setup:
    """The setup with a helper, as `defense.helper` would name it.

    Raises:
        InputError: There is none, or it is none for these data.
    """
    train = ready.train
    helper = helpers.read(
        source, ready.config, num_classes=train.num_classes, image_shape=train.images.shape[1:]
    )
    return ready._replace(helper=helper, defense=helpers.attached(ready.defense, helper.variables))


def _augmented(section: ConfigDict, train: Dataset) -> Dataset:
    """The training set, with what the section `augment` asks for in place of its own."""
    chosen = {name: section[name] for name in ('crop', 'flip') if section[name] is not None}
    train, side = train._replace(**chosen), min(train.images.shape[1:3])
    if not 0 <= train.crop < side:
        raise InputError(
            f'augment.crop={train.crop} is not in [0, {side - 1}]: it pads images of {side} pixels on each '
            'side; 0 is no crop'
        )
    return train


def plan(ready: Setup) -> str:
    """What a run reads, and what it is spread over, in a line each."""
    size, devices, more = ready.config.batch_size, jax.device_count(), ready.extra
    lines = [f'data: {_listed(ready.train.files)}{", streamed" * ready.streamed}']
    if more:
        lines.append(more.words(size))
    if ready.helper is None and helpers.config_of(ready.config):
        lines.append('helper: none is given, and so one is trained first, in a folder of the workdir')
    lines.append(
        f'processes: {processes.count()}, devices of each: {jax.local_device_count()} '
        f'({jax.devices()[0].device_kind}), batch: {size}, images a device: {size // devices}, '
        f'steps an epoch: {ready.steps_per_epoch}, epochs: {ready.config.epochs}, '
        f'images: {len(ready.train.labels)}, held out: {len(ready.validation.labels)}'
    )
    return '\n'.join(lines)


def data_facts(ready: Setup) -> dict[str, dict[str, Any]]:
    """What a run depends on beside its config: of each set its count, digest and files, in JSON's types."""
    sets = {'training data': ready.train, 'held-out data': ready.validation}
    facts = {
        name: {
            'images': len(part.labels),
            'digest': digest(np.array(part.identity) if part.identity else part.images, part.labels),
            'files': list(part.files),
        }
        for name, part in sets.items()
    }
    if more := ready.extra:
        files = list(more.files)
        facts[EXTRA_DATA] = {'images': len(more.labels), 'digest': more.digest, 'files': files}
    return facts


def _listed(files: Sequence[str]) -> str:
    return ', '.join(files) or 'of no file'


def compile_train_step(ready: Setup) -> Any:
    """The compiled step of a run: (state, carry, *feed(step)) -> (state, carry, metrics), with `feed_of`.

    The metrics are one array, in the order of `metric_names`: the host fetches and forgets one, not a dozen.
    """
    step = step_of(ready.defense).make(ingredients(ready))
    whole = with_data(
        step,
        ready.train,
        ready.defense.replays,
        ready.config.data.cutmix,
        copies=ready.defense.branches,
        streamed=ready.streamed,
        repeats=may_repeat(ready),
    )
    names = metric_names(ready.defense)

    def with_one_array(*given: Any) -> tuple[TrainState, Any, jax.Array]:
        state, carry, metrics = whole(*given)
        return state, carry, jnp.stack([metrics[name] for name in names])

    return compile_step(with_one_array)


def may_repeat(ready: Setup) -> bool:
    """Whether an image may be in a batch more than once."""
    return bool(ready.config.data.balanced) or ready.extra is not None


def ingredients(ready: Setup) -> Ingredients:
    """What the training step of a run is made of."""
    config = ready.config
    return Ingredients(
        defense=ready.defense,
        model=ready.model,
        optimiser=ready.optimiser,
        threat=ready.threat,
        attack_steps=config.attack.steps,
        attack_step_size=config.attack.step_size,
        axis_name=AXIS,
        sync_bn=config.model.sync_bn,
        calendar=Calendar(ready.steps_per_epoch, config.epochs),
        class_weights=tuple(config.data.class_weights),
        average=ready.average,
        ramps=ready.ramps,
        bn_first_step=config.model.bn_first_step and hasattr(ready.model, 'bn_momentum'),
        awp=ready.awp,
        helper=ready.helper.module if ready.helper else None,
    )


def initial_carry(ready: Setup) -> Any:
    """The carry before the first step, in global row order: FreeAT's perturbation [B, H, W, C], else ()."""
    return step_of(ready.defense).carry(ready.config.batch_size, ready.train.images.shape[1:])


def batch_of_step(ready: Setup, step: int) -> tuple[int, int]:
    """(pass over the data, position in it) of the batch that a step sees.

    Replays count as epochs: with m of them, m epochs make one pass, and steps go on to the next batch after
    every m.
    """
    return divmod(step // ready.defense.replays, ready.steps_per_epoch)


def rows_of_step(ready: Setup, step: int) -> int:
    """How many real images the batch of a step has: fewer in the last one of a pass."""
    _, position = batch_of_step(ready, step)
    size = ready.config.batch_size
    if ready.extra:
        return size
    return min(size, len(ready.train.labels) - position * size)


@dataclasses.dataclass(frozen=True)
class Order:
    """Number of a pass over the data -> its batches: indices [S, B] and mask [S, B].

    Indices of extra images are those behind the real ones. Worker processes get it pickled.
    """

    seed: int
    batch_size: int
    labels: np.ndarray  # of the real images
    balanced: bool
    steps: int  # S
    extra: Extra | None

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        seed, size, count = self.seed, self.batch_size, len(self.labels)
        if self.extra:
            indices = self.extra.batches(number, count, steps=self.steps, batch_size=size, seed=seed)
            return indices, np.ones(indices.shape, bool)
        if self.balanced:
            order = data.balanced_order(seed, number, self.labels)
        else:
            order = data.epoch_order(seed, number, count)
        return data.epoch_batches(order, size)


def order_of(ready: Setup) -> Order:
    """Which images each batch of a run has."""
    config, labels = ready.config, ready.train.labels
    of_epoch = config.data.balanced, ready.steps_per_epoch
    return Order(config.seed, config.batch_size, labels, *of_epoch, ready.extra)


def feed_of(ready: Setup) -> Resident | Streamed:
    """What the compiled step of a run takes beside state and carry, by the number of the step."""
    config = ready.config
    images, labels = Joined(_image_parts(ready)), ready.train.labels
    batches = Batches(order_of(ready), ready.steps_per_epoch, ready.defense.replays)
    if ready.extra:
        labels = np.concatenate([labels, ready.extra.labels])
    if not ready.streamed:
        return Resident(images, labels, batches, config.seed)
    own = own_rows(config.batch_size)
    return Streamed(images, labels, batches, config.seed, own=own, workers=config.data.workers)


def _image_parts(ready: Setup) -> list[Any]:
    """The images of a run, the real ones first."""
    return [ready.train.images, *(ready.extra.images.parts if ready.extra else ())]


def initial_weights(ready: Setup) -> Initial | None:
    """What a run starts from, read and checked; None for random weights.

    Raises:
        InputError: As `initial.read`.
    """
    return initial.read(
        ready.config,
        num_classes=ready.train.num_classes,
        image_shape=ready.train.images.shape[1:],
        hypersphere=ready.defense.hypersphere,
    )


def initial_state(ready: Setup, weights: Initial | None = None) -> TrainState:
    """The state before the first step, on one device, from what `initial_weights` gave."""
    return create_state(
        ready.model,
        ready.optimiser,
        metric_names(ready.defense),
        seed=ready.config.seed,
        image_shape=ready.train.images.shape[1:],
        average=ready.average,
        memory=ready.defense.first_memory(ready.train.num_classes),
        initial=weights,
    )


def _check_numbers(fields: Mapping[str, Any], prefix: str = '') -> None:
    """Refuses what no field can be: a number that is not finite, or a whole one that does not fit 32 bits."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_numbers(value, f'{prefix}{name}.')
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise InputError(f'{prefix}{name}={value} is not finite: give a number')
            if isinstance(one, int) and abs(one) > LARGEST:
                raise InputError(
                    f'{prefix}{name}={str(value)[:40]} is beyond {LARGEST}: give a smaller number'
                )


def _check_class_weights(weights: Any, classes: int) -> None:
    positive = all(isinstance(weight, int | float) and weight > 0 for weight in weights)
    if weights and (len(weights) != classes or not positive):
        raise InputError(
            f'data.class_weights={tuple(weights)} must be {classes} positive numbers, one for each class, '
            f'for example ({"1.0," * classes}), or () for equal weights'
        )


def _check_cutmix(config: ConfigDict, defense: Defense) -> None:
    if config.data.cutmix < 0:
        raise InputError(f'data.cutmix={config.data.cutmix} is negative: give a number of mixtures, or 0')
    if config.data.cutmix:
        defenses.check_soft_labels(defense)
        if config.data.class_weights:
            raise InputError(
                'data.cutmix with data.class_weights: no form was published of the weight of a mixed label; '
                'use --config.data.class_weights=() or --config.data.cutmix=0'
            )


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f'{name}={value:g} must be positive')
