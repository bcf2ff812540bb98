"""What a training run will take: time, memory and communication, from its config and a machine's rates.

    time = images x epochs x passes x F / (rate x devices) + all-reduces
    memory of a device = 16 bytes x parameters + data + images on it x convolution outputs x bytes x live x c
    (24 bytes with adversarial weight perturbation)

with `passes` and F of `cost.flops`, `live` the train-mode forward passes that wait for the backward pass at
the same time, and c the intermediate values a convolution output leaves. On a CPU two rates are measured (of
attack steps and of updates, on the config's own network); for a chip of `cost.chips` a share of its peak is
assumed, and the limit that its peak and bandwidth set is given beside it.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from si_jax import data, defenses, models
from si_jax.cost import chips, flops
from si_jax.cost.chips import Chip
from si_jax.cost.flops import Network, Passes
from si_jax.data import extra
from si_jax.data.stream import is_streamed
from si_jax.errors import InputError
from si_jax.runtime.devices import check_divisible

# The share of its peak that one H100 needs for the goal of 12 minutes for 120 epochs of TRADES on ResNet-18.
# An assumption: nothing here was measured on an accelerator.
ASSUMED_MFU = 0.31
# Below so many images on a device the last, small layers do not fill a large chip.
FILLING = 128
# Of a small all-reduce: 80 a step were estimated to take 0.8 to 1.6 ms on 8 GPUs.
LATENCY = 15e-6
# Parameters, momentum, gradient and update; 4 more each for an average of the parameters and for a helper.
STATE_BYTES = 16
# The perturbation of the weights, and the sum.
AWP_BYTES = 8
# Left to the runtime.
USABLE = 0.9
# Intermediate values by convolution output. On the CPU from what XLA reserves for compiled steps;
# elsewhere an estimate.
RESIDUES = {'wrn': 2.6, 'small_cnn': 2.2, 'preact': 2.6, 'resnet': 2.8}
RESIDUES_ACCELERATOR = 3.7


class Run(NamedTuple):
    """A run, whatever it runs on."""

    arch: str
    network: Network  # what a forward pass costs
    passes: Passes  # what a step takes on an image, all its mixtures and what follows an epoch included
    held_out_passes: float  # forward passes of the held-out evaluation on one image
    live: int  # forward passes that wait for the backward pass
    images: int  # training images of an epoch, extra ones included
    held_out: int  # held-out images
    evaluations: int  # how often they are evaluated
    epochs: int
    batch_size: int  # images of a step on all devices
    data_bytes: int  # the data set, with the extra images of the files that are given
    dtype: str  # what convolutions compute in
    state_bytes: int  # for each parameter
    norm_reductions: int  # small all-reduces of a step, of synchronised batch normalisation
    awp: bool = False  # whether the weights are perturbed, which takes one more gradient
    stream: str = 'auto'  # whether data are on the device, as in `data.stream`


class Machine(NamedTuple):
    """What a device can do."""

    name: str  # for the report
    attack: float  # FLOP/s of attack steps
    update: float  # FLOP/s of updates
    memory: float  # bytes
    link: float | None  # bytes a second to other devices; None where all devices share their memory
    accelerator: bool  # whether it is none of the CPUs
    chip: Chip | None = None  # its row in the table of chips, if it has one


class Memory(NamedTuple):
    """Bytes on each device."""

    state: float
    data: float
    activations: float

    @property
    def total(self) -> float:
        return self.state + self.data + self.activations


class Step(NamedTuple):
    """Seconds of a training step on so many devices; nothing of the communication is thought hidden."""

    devices: int
    attack: float
    update: float
    gradients: float
    norms: float

    @property
    def compute(self) -> float:
        return self.attack + self.update

    @property
    def total(self) -> float:
        return self.compute + self.gradients + self.norms

    @property
    def communication(self) -> float:
        """The share of the step."""
        return (self.gradients + self.norms) / self.total


def describe(config: ConfigDict, images: int | None = None) -> Run:
    """The run that a config of `training.recipes` describes; of its data only heads of extra files are read.

    `images` are those of training before the validation split; None for all of the data set.

    Raises:
        InputError: A name in the config is unknown, or a number is out of range.
    """
    config = config.copy_and_resolve_references()
    source = source_of(config)
    for name in ('epochs', 'batch_size'):
        if config[name] < 1:
            raise InputError(f'{name}={config[name]} must be positive')
    defense = defenses.from_config(config.defense)
    network = flops.network(model_of(config), source.shape)
    whole = images
    if whole is None:
        place = config.data.dir, config.data.preprocessing
        whole = source.train_images or len(
            data.load(config.data.name, 'train', place[0], preprocessing=place[1], lazy=True).labels
        )
    count = whole - config.data.validation
    if config.data.limit:
        count = min(count, config.data.limit)
    if count < 1:
        raise InputError(f'data.validation={config.data.validation} leaves none of the {whole} images')
    height, width, channels = source.shape
    steps = defense.steps if defense.persistent else config.attack.steps
    awp = config.awp.gamma > 0
    batch_size, in_epoch = config.batch_size, count
    if extra.asked(config.data):
        in_epoch = batch_size * extra.steps_of_epoch(count + config.data.validation, batch_size)
    changes = config.epochs * (1 if config.ramp.every == 'epoch' else -(-in_epoch // batch_size))
    mixtures = max(1, config.data.cutmix)
    passes = flops.training_passes(defense, flops.mean_steps(steps, config.ramp.steps, changes), awp=awp)
    recomputed = config.average.kind and config.average.batch_stats == 'recompute' and network.norms
    branches = 1 + defense.branches
    moved = branches * (len(defense.passes) + len(defense.before)) + awp * len(defense.read_passes)
    norms = network.norms * 2 * moved
    if defense.attack_bn == 'train' and defense.inner is not None:
        norms += network.norms * 2 * steps * branches
    return Run(
        arch=config.model.arch,
        network=network,
        passes=Passes(mixtures * passes.attack, mixtures * (passes.update + bool(recomputed))),
        # Natural, PGD, and PGD on calibrated logits; each attack ends in a forward pass.
        held_out_passes=1 + 2 * (2 * config.evaluation.steps + 1),
        live=mixtures * flops.live_forwards(defense),
        images=in_epoch,
        held_out=config.data.validation,
        evaluations=-(-config.epochs // config.evaluation.every_epochs),
        epochs=config.epochs,
        batch_size=batch_size,
        data_bytes=(count + extra.count(config.data)) * height * width * channels,
        dtype=config.model.dtype,
        state_bytes=STATE_BYTES
        + 4 * (bool(config.average.kind) + (defenses.HELPED in defense.passes))
        + AWP_BYTES * awp,
        norm_reductions=norms if config.model.sync_bn else 0,
        awp=awp,
        stream=config.data.stream,
    )


def source_of(config: ConfigDict) -> data.Source:
    """What a config's data set is, read as far as that takes."""
    return data.describe(config.data.name, config.data.dir, preprocessing=config.data.preprocessing)


def model_of(config: ConfigDict) -> Any:
    """The network of a config, on one device."""
    return models.from_config(
        config.model,
        num_classes=source_of(config).num_classes,
        hypersphere=defenses.from_config(config.defense).hypersphere,
    )


def accelerator(name: str, dtype: str, mfu: float = ASSUMED_MFU) -> Machine:
    """A chip of the table that reaches a share of its peak.

    Raises:
        InputError: The chip is unknown, or the share is not in (0, 1].
    """
    chip = chips.find(name)
    if not 0 < mfu <= 1:
        raise InputError(f'mfu={mfu:g} is not in (0, 1]: it is the share of the peak, such as {ASSUMED_MFU}')
    rate = mfu * peak(chip, dtype)
    return Machine(chip.title, rate, rate, chip.memory, chip.link, True, chip)


def peak(chip: Chip, dtype: str) -> float:
    """FLOP/s of a chip in the precision that products of this dtype have on it by default."""
    precision = chips.product_precision('gpu' if 'tf32' in chip.peak else 'tpu', dtype)
    if precision not in chip.peak:
        raise InputError(f"model.dtype={dtype!r} has no known peak on a {chip.title}: use 'bfloat16'")
    return chip.peak[precision]


def memory(run: Run, machine: Machine, devices: int, batch_size: int | None = None) -> Memory:
    """What a step needs on each device."""
    batch = run.batch_size if batch_size is None else batch_size
    kind = next((name for name in RESIDUES if run.arch.startswith(name)), 'resnet')
    residues = RESIDUES_ACCELERATOR if machine.accelerator else RESIDUES[kind]
    # XLA's CPU back end computes bfloat16 in float32.
    each = {'bfloat16': 2 if machine.accelerator else 4, 'float64': 8}.get(run.dtype, 4)
    activations = batch / devices * run.network.outputs * each * run.live * residues
    data_bytes = 0 if is_streamed(run.stream, run.data_bytes, machine.memory) else run.data_bytes
    return Memory(run.state_bytes * run.network.parameters, data_bytes, activations)


def check_fits(run: Run, machine: Machine, devices: int) -> Memory:
    """The memory of a step.

    Raises:
        InputError: The batch is not divisible by the devices, or does not fit (with the largest that does).
    """
    if devices < 1:
        raise InputError(f'devices={devices} must be positive')
    check_divisible(run.batch_size, devices)
    need = memory(run, machine, devices)
    if need.total > USABLE * machine.memory:
        largest = largest_batch(run, machine, devices)
        remedy = f'the largest batch that fits is --config.batch_size={largest}'
        if not largest:
            remedy = f'not even one image on each of {devices} devices does: take a chip with more memory'
        usable = f'{USABLE * machine.memory / 1e9:.1f} of the {machine.memory / 1e9:.0f} GB'
        raise InputError(
            f'{run.arch} with batch_size={run.batch_size} needs {need.total / 1e9:.1f} GB on each of '
            f'{devices} devices, and {usable} of a {machine.name} are usable: {remedy}'
        )
    return need


def largest_batch(run: Run, machine: Machine, devices: int) -> int:
    """The largest batch that fits on the devices, a multiple of their number; 0 if none does."""
    one = memory(run, machine, devices, devices)
    left = USABLE * machine.memory - one.state - one.data
    return max(0, int(left // one.activations)) * devices


def step(run: Run, machine: Machine, devices: int) -> Step:
    """How long a step takes: computing in each device's share of the batch, then reducing its gradient."""
    flop = run.network.flops * run.batch_size / devices
    reduced = 0.0
    if machine.link and devices > 1:  # a ring sends everything nearly twice
        each = 4 * run.network.parameters * 2 * (devices - 1) / devices / machine.link
        reduced = (1 + run.awp) * each
    return Step(
        devices,
        attack=run.passes.attack * flop / machine.attack,
        update=run.passes.update * flop / machine.update,
        gradients=reduced,
        norms=LATENCY * run.norm_reductions if machine.link and devices > 1 else 0.0,
    )


def seconds(run: Run, one: Step) -> float:
    """Training without the held-out evaluations, at so much a step."""
    return run.epochs * -(-run.images // run.batch_size) * one.total


def held_out_seconds(run: Run, machine: Machine, devices: int) -> float:
    """All held-out evaluations; compilation is left out."""
    work = run.evaluations * run.held_out * run.held_out_passes * run.network.flops
    return work / machine.attack / devices


def limit(run: Run, chip: Chip, devices: int) -> float:
    """Seconds below which no training on these chips can be, however well it is written.

    A convolution takes at least its FLOPs at the peak, or its input and output at the chip's bandwidth; what
    lies between two convolutions reads and writes the output once more.
    """
    each = 2 if run.dtype == 'bfloat16' else 4
    rate = peak(chip, run.dtype)
    forward = sum(
        max(layer.flops / rate, each * (layer.inputs + layer.outputs) / chip.bandwidth)
        + each * 2 * layer.outputs / chip.bandwidth
        for layer in run.network.layers
        if layer.convolution
    )
    return run.epochs * run.images * run.passes.total * forward / devices
