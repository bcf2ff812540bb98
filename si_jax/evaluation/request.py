"""The checked arguments of an evaluation, made once: whatever comes after may rely on them.

Each check raises `InputError` with the value, the limit and the remedy.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.facts import facts, taken_by
from si_jax.attacks.pgd import Attack
from si_jax.attacks.registry import ATTACKS, PRESETS, SEARCHES, named, settings_of
from si_jax.attacks.registry import parse as parse_names
from si_jax.errors import InputError, unknown
from si_jax.evaluation import eight_bit as rounding
from si_jax.evaluation.classifier import (
    PRECISIONS,
    BlackBox,
    Classifier,
    Randomised,
    as_array,
    classifier_of,
    takes_channels_first,
)
from si_jax.evaluation.pixels import Images, Pixels
from si_jax.evaluation.state import begun
from si_jax.threat import Threat, ball_of

Takes = Mapping[str, frozenset[str]]  # for each row of a result the settings that it takes
# (classifier, images, labels, threat, key) -> images
AttackFunction = Callable[[Any, jax.Array, jax.Array, Threat, jax.Array], Any]
# Images at once on each device. On the CPU small batches are fastest: they stay in a core's cache, each core
# has one of its own, and few rows are filling.
CHUNK = {'cpu': 16}
CHUNK_ACCELERATOR = 512
# What the chunks of a device may take: of memory for each pixel of an image about what the gradient of a
# ResNet-50 takes, and of an accelerator all that it has. The CPU has one chunk for each core.
PIXEL_BYTES, CHUNK_BYTES = 8000, {'cpu': 2**29}
GPUS = ('gpu', 'cuda', 'rocm')
# Names that the files of a result use for something else.
TAKEN = ('clean', 'worst_case', 'labels', 'indices')
TRANSFER = 'transfer-'  # before the name of a source, in that of its row
TAKEN_PREFIXES = (TRANSFER, 'broken_by_', 'queries_', 'distances_', 'share_', 'success_', 'reached_')
UNNAMED = 'own'
# What attacks may take, with what stands for None; step_size stands for eps / 4 then.
DEFAULTS = {'steps': 20, 'restarts': 1, 'eot_samples': 1}
DECISIONS = 64  # draws of a random classifier that judge an image
AUTO = 'auto'  # eot_samples that `eot` measures
TRANSFERRED = frozenset({'steps', 'step_size', 'eot_samples'})  # of an attack by way of another network
LAYOUTS = ('nhwc', 'nchw')
TARGETS = ('random', 'least-likely', 'all')  # beside one class for each image
CHANNELS = (1, 3)  # of gray and of colour images
SLACK = 1e-6  # by which rounding may put a pixel outside of [0, 1]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is evaluated and how, checked; the arguments of `evaluate` say more.

    Attributes with the name of an argument hold what was given, or its default.

    Attributes:
        names: The attacks in order.
        custom: The user's own attacks by name.
        sources: The classifiers that adversarial images come from, by the names of their rows.
        images: [N, H, W, C], float32 or float64, in [0, 1]; of `Pixels` what is taken is.
        labels: [N], int64.
        indices: [N], uint32, the number of each image.
        keep: Whether the adversarial images are wanted.
        precision: Of the classifier's products during the search; None for that of the images.
        chunk: Images at once on all devices together.
        layout: 'nhwc' or 'nchw', of images that were given, that are returned, and that callables see.
        notes: What was done to the arguments, for the warnings of the result.
        classes: Of the classifier; 0 until it is traced.
        targets: Classes to be reached, [N] int64 or one of `TARGETS`; None for any wrong class.
        aims: [N] int32, those of one run of an attack that is `targeted.Targeted`.
        processes: Of how many processes began the evaluation that goes on; None if it begins.
        decisions: Draws that judge each image of a random classifier; None for any other.
        eot_auto: Whether `eot_samples` is yet to be measured; it is 1 until then.
        eight_bit: Whether what an attack returns is rounded to bytes before it is judged.
        radii: Of a sweep, the smaller radii that were done before. Radius and step size are then arguments of
            the compiled programs, so that all radii share them; None where they are constants of these.
        takes: For each row of the result which of steps, step_size, restarts and eot_samples it takes.
    """

    names: tuple[str, ...]
    custom: dict[str, Attack | AttackFunction]
    sources: dict[str, Classifier]
    images: Images
    labels: np.ndarray
    indices: np.ndarray
    threat: Threat
    steps: int
    step_size: float
    restarts: int
    eot_samples: int
    seed: int
    individual: bool
    keep: bool
    precision: str | None
    chunk: int
    devices: list[jax.Device]
    processes: int | None
    takes: Takes
    layout: str = 'nhwc'
    notes: tuple[str, ...] = ()
    classes: int = 0
    targets: np.ndarray | str | None = None
    aims: np.ndarray | None = None
    decisions: int | None = None
    eot_auto: bool = False
    eight_bit: bool = False
    radii: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        images: Any,
        labels: Any,
        *,
        attacks: Any = ('pgd',),
        eps: float = 8 / 255,
        norm: str = 'linf',
        steps: int | None = None,
        step_size: float | None = None,
        restarts: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        indices: Any = None,
        eot_samples: int | str | None = None,
        individual: bool = False,
        transfer_from: Any = None,
        search_precision: str | None = None,
        state_path: str | os.PathLike | None = None,
        return_images: bool = False,
        devices: Sequence[jax.Device] | None = None,
        layout: str | None = None,
        scale: int | None = None,
        targets: Any = None,
        decisions: int | None = None,
        randomised: bool = False,
        eight_bit: bool = False,
    ) -> 'Request':
        """Checks the arguments of `evaluate` that have these names; `randomised` says that the classifier is.

        Raises:
            InputError: One of them is wrong.
        """
        names, custom = parse_attacks(attacks, norm)
        layout = layout or _told_from(_shape(images))
        sources = parse_sources(transfer_from, layout)
        images, notes = check_images(images, layout, scale)
        labels = check_labels(labels, len(images))
        indices = check_indices(indices, len(images))
        targets = check_targets(targets, labels)
        if targets is not None and randomised:
            raise InputError(
                'targets are given, and the classifier is Randomised: which share of draws must be of the '
                'target is not defined. Leave targets out'
            )
        if targets is not None and sources:
            raise InputError('targets are given beside transfer_from, which has none: leave one of them out')
        if eight_bit:
            rounding.check(images, indices)
        eps = check_number('eps', eps)
        if eps == 0:
            raise InputError(
                'eps=0 is not in (0, 1]: the accuracy without an attack is '
                "accuracy['clean'] of any evaluation"
            )
        threat = Threat(norm, eps)
        threat.check(images.shape[1:])
        takes = takes_of(names, custom, sources, randomised)
        counts: dict[str, Any] = {'steps': steps, 'restarts': restarts, 'eot_samples': eot_samples}
        if not randomised:
            check_not_random(decisions, eot_samples)
        check_settings(
            takes,
            **counts,
            decisions=decisions,
            step_size=step_size,
            seed=seed,
            batch_size=batch_size,
            search_precision=search_precision,
            individual=individual,
        )
        counts['eot_samples'] = None if eot_samples == AUTO else eot_samples
        chosen: dict[str, Any] = {
            name: DEFAULTS[name] if value is None else value for name, value in counts.items()
        }
        step_size = threat.eps / 4 if step_size is None else check_number('step_size', step_size)
        for name in (name for name in names if name not in custom):
            check_step_size(named(name).settings.get('step_size', step_size), norm, images.shape[1:])
        devices = check_devices(devices)
        before = begun(state_path)
        shares = before.get('processes', 1)
        return cls(
            names=names,
            custom=custom,
            sources=sources,
            images=images,
            labels=labels,
            indices=indices,
            threat=threat,
            takes=takes,
            **chosen,
            seed=seed,
            step_size=check_step_size(step_size, norm, images.shape[1:]),
            individual=individual,
            keep=return_images,
            chunk=images_at_once(
                batch_size, len(images), devices, before.get('images at once'), images.shape[1:]
            ),
            precision=check_precision(search_precision, images.dtype, devices[0].platform),
            devices=devices,
            processes=shares if before and type(shares) is int and shares > 0 else None,
            layout=layout,
            notes=notes,
            targets=targets,
            decisions=(decisions or DECISIONS) if randomised else None,
            eot_auto=eot_samples == AUTO,
            eight_bit=bool(eight_bit),
        )

    @property
    def built_in(self) -> tuple[Any, ...]:
        """What compiled programs have of ball and step size as constants: both, or the norm alone."""
        return (self.threat, self.step_size) if self.radii is None else (self.threat.norm,)

    @property
    def handed(self) -> tuple[Any, ...]:
        """The ball and the step size as arguments of compiled programs; () where they are constants."""
        if self.radii is None:
            return ()
        number = self.images.dtype.type
        eps: Any = number(self.threat.eps)
        return Threat(self.threat.norm, eps), number(self.step_size)

    def as_given(self, images: np.ndarray) -> np.ndarray:
        """Images [M, H, W, C] in the layout that the caller's have."""
        return images if self.layout == 'nhwc' else np.moveaxis(images, 3, 1)


def default_attacks(classifier: Any) -> str:
    """The protocol that is usual for a classifier: AutoAttack, in its form for random ones, or Square."""
    if isinstance(classifier, BlackBox):
        return 'square'
    return 'autoattack-rand' if isinstance(classifier, Randomised) else 'autoattack'


def check_devices(devices: Any) -> list[jax.Device]:
    """The devices to use, all of this process for None."""
    if devices is None:
        return jax.local_devices()
    given = list(devices) if isinstance(devices, Iterable) else []
    if not given or not all(isinstance(one, jax.Device) for one in given):
        raise InputError(
            f'devices={devices!r} is no list of devices, as jax.local_devices()[:1] is: leave it out for all'
        )
    return given


def layout_of(layout: str | None, classifier: Any, images: Any) -> str:
    """The layout of images: as told, else 'nhwc', unless PyTorch's or Equinox's networks get [N, C, H, W]."""
    if layout not in (None, *LAYOUTS):
        raise unknown('layout', layout, LAYOUTS)
    shape = _shape(images)
    if layout is None and takes_channels_first(classifier) and len(shape) == 4:
        return 'nchw' if shape[1] < min(shape[2:]) and shape[3] not in CHANNELS else 'nhwc'
    return layout or _told_from(shape)


def _shape(images: Any) -> tuple[int, ...]:
    """The shape of an array of any library, or of nested lists."""
    return tuple(np.shape(images) if isinstance(images, list | tuple) else getattr(images, 'shape', ()))


def _told_from(shape: tuple[int, ...]) -> str:
    """The layout of images that nobody told: 'nhwc', if they do not look like [N, C, H, W].

    Raises:
        InputError: They do.
    """
    if len(shape) == 4 and shape[1] in CHANNELS and shape[2] == shape[3] > shape[1]:
        raise InputError(
            f'images have shape {shape}, which looks like [N, C, H, W]: they must be [N, H, W, C]. '
            "Give images.transpose(0, 2, 3, 1) (in PyTorch images.permute(0, 2, 3, 1)), or layout='nchw' if "
            "the classifier takes [B, C, H, W] too; layout='nhwc' if they are as they must be"
        )
    return 'nhwc'


def check_images(
    images: Any, layout: str = 'nhwc', scale: int | None = None
) -> tuple[Images, tuple[str, ...]]:
    """The images [N, H, W, C] on the host, and what was done to them, in words.

    They are float32, or float64 if they are and JAX has it enabled. Bytes of a known `scale` stay bytes.
    """
    if isinstance(images, Pixels) and scale is None:
        return images, ()
    images = as_array(images)
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f'images have shape {images.shape}: they must be [N, H, W, C], with at least one image'
            f'{_advice_on_shape(images)}'
        )
    if layout == 'nchw':
        images = np.moveaxis(images, 1, 3)
    if scale is not None:
        return Pixels(images, scale), ()
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f'images are {images.dtype}: they must be floating and in [0, 1]; divide 8-bit images by 255, or '
            'give scale=255, and they stay bytes until they are attacked'
        )
    lowest, highest = float(images.min()), float(images.max())
    if not np.isfinite(lowest) or not np.isfinite(highest):
        i = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3))))
        raise InputError(f'images[{i}] holds NaN or infinite values: remove or repair it')
    notes: tuple[str, ...] = ()
    if lowest < -SLACK or highest > 1 + SLACK:
        if lowest >= -SLACK and 2 <= highest <= 255 + SLACK:
            advice = 'divide 8-bit pixel values by 255'
        elif lowest > -1e-3 and highest < 1 + 1e-3:
            advice = 'this is more than rounding (1e-6): clip them to [0, 1]'
        else:
            advice = 'give them unnormalised and let the classifier subtract mean and divide by std itself'
        raise InputError(f'images lie in [{lowest:.9g}, {highest:.9g}], not in [0, 1]: {advice}')
    if lowest < 0 or highest > 1:
        outside = int(((images < 0) | (images > 1)).any(axis=(1, 2, 3)).sum())
        notes = (
            f'{outside} of {len(images)} images were outside of [0, 1] by rounding, in [{lowest:.9g}, '
            f'{highest:.9g}]: they were clipped',
        )
        images = np.clip(images, 0, 1)
    wide = jax.dtypes.canonicalize_dtype(images.dtype) == np.float64
    return np.ascontiguousarray(images, np.float64 if wide else np.float32), notes


def _advice_on_shape(images: np.ndarray) -> str:
    if images.ndim == 2:
        return (
            '. For vectors give images.reshape(len(images), 1, -1, 1), and let the classifier take '
            'images.reshape(len(images), -1)'
        )
    if images.ndim == 3:
        return '. Give images[..., None] if they have no channels, images[None] if this is one image'
    return ''


def check_labels(labels: Any, count: int) -> np.ndarray:
    """The labels [N] on the host, int64; `gates.check_labels_of` holds them against the number of classes."""
    labels = as_array(labels)
    if labels.shape != (count,):
        advice = '; give labels.argmax(axis=1) if each row marks a class' if labels.ndim == 2 else ''
        raise InputError(
            f'labels have shape {labels.shape}: they must be [{count}], one class for each image{advice}'
        )
    if labels.dtype.kind not in 'iu':
        raise InputError(f'labels are {labels.dtype}: they must be integers from 0 to K - 1')
    return labels.astype(np.int64)


def check_targets(targets: Any, labels: np.ndarray) -> np.ndarray | str | None:
    """The targets [N] on the host, int64, none of them the label; or one of `TARGETS`, or None."""
    if targets is None or (isinstance(targets, str) and targets in TARGETS):
        return targets
    if isinstance(targets, str):
        raise unknown('targets', targets, TARGETS)
    targets = as_array(targets)
    if targets.shape != labels.shape or targets.dtype.kind not in 'iu':
        raise InputError(
            f'targets are {targets.dtype} {targets.shape}: they must be integers [{len(labels)}], a wrong '
            f'class for each image, or one of {", ".join(TARGETS)}'
        )
    if (same := targets == labels).any():
        i = int(np.argmax(same))
        raise InputError(
            f'targets[{i}]={targets[i]} is the label of that image: a target must be a wrong class '
            f'({int(same.sum())} of {len(labels)} are not); give another, or leave these images out'
        )
    return targets.astype(np.int64)


def check_indices(indices: Any, count: int) -> np.ndarray:
    """The number of each image [N], which its random numbers come from: its position unless given."""
    indices = np.arange(count) if indices is None else as_array(indices)
    if indices.shape != (count,) or indices.dtype.kind not in 'iu':
        raise InputError(f'indices are {indices.dtype} {indices.shape}: they must be integers [{count}]')
    if indices.min() < 0 or indices.max() >= 2**32:
        raise InputError(f'indices lie in [{indices.min()}, {indices.max()}]: they must be in [0, 2**32)')
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        twice = np.argmax(counts > 1)
        where = np.flatnonzero(indices == values[twice])[:2]
        raise InputError(
            f'indices[{where[0]}] and indices[{where[1]}] are both {values[twice]}: give each image a number '
            'of its own, from which its random numbers come'
        )
    return indices.astype(np.uint32)


def check_number(name: str, value: Any) -> float:
    """A setting that is one number."""
    if isinstance(value, str):
        raise InputError(f'{name}={value!r} must be a number: write it without quotes, as 8 / 255')
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in 'iuf':
        raise InputError(
            f'{name}={value!r} must be one number: for several, call evaluate once for each of them'
        )
    return float(array)


def check_count(name: str, value: Any, *, least: int = 1, below: int | None = None) -> int:
    """An integer setting of at least `least`, and below `below`."""
    if below is not None and isinstance(value, int | np.integer) and value >= below:
        raise InputError(f'{name}={value!r} is too large: it must be below 2**{below.bit_length() - 1}')
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f'{name}={value!r} must be an integer of at least {least}')
    return int(value)


def takes_of(
    names: Iterable[str], custom: Mapping[str, Any], sources: Iterable[str], randomised: bool = False
) -> Takes:
    """What the rows of a result take: of attacks by name, some of them the user's, and of transfers."""
    taken = {name: _taken(name, custom.get(name), randomised) for name in names}
    return taken | dict.fromkeys(sources, TRANSFERRED)


def _taken(name: str, given: Attack | AttackFunction | None, randomised: bool) -> frozenset[str]:
    """Which of the settings that have a default an attack takes; a callable of the user's is run again."""
    if isinstance(given, Attack):
        return facts(given).takes
    return taken_by(name, randomised) if given is None else frozenset({'restarts'})


def check_settings(
    takes: Takes,
    *,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    eot_samples: int | str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    search_precision: str | None = None,
    individual: bool = False,
    decisions: int | None = None,
    **others: Any,
) -> None:
    """Checks what can be told before there are images; None is for what was not given.

    Raises:
        InputError: A value is no count, or no attack of the call takes it; or an unknown precision.
    """
    if search_precision is not None and search_precision not in PRECISIONS:
        raise unknown('search_precision', search_precision, PRECISIONS)
    check_count('seed', seed, least=0, below=2**63)
    counts = {'steps': steps, 'restarts': restarts, 'eot_samples': eot_samples, 'batch_size': batch_size}
    for name, value in {**counts, 'decisions': decisions}.items():
        if value is not None and not (name == 'eot_samples' and value == AUTO):
            check_count(name, value)
    given = {**counts, 'step_size': step_size, 'individual': individual or None}
    for name in ('steps', 'step_size', 'restarts', 'eot_samples', 'individual'):
        setting = given[name]
        if setting is not None and not any(name in taken for taken in takes.values()):
            raise InputError(
                f'{name}={setting!r} is given, and {", ".join(takes)} '
                f'{"do not take" if len(takes) > 1 else "does not take"} it: leave {name} out, '
                f'{_by_name(name, setting, takes)}or add an '
                f"attack that takes it, such as '{'autoattack' if name == 'individual' else 'pgd'}'"
            )


def _by_name(setting: str, value: Any, attacks: Iterable[str]) -> str:
    """The advice to write a setting into the name of one of the attacks, if there is one that has it."""
    for name in attacks:
        if setting in {one.name for one in settings_of(name)}:
            return f'give it to one attack by name, as in {name}({setting}={value}), '
    return ''


def check_not_random(decisions: int | None, eot_samples: int | str | None) -> None:
    """Refuses settings that mean something for a random classifier alone."""
    given = {'decisions': decisions, 'eot_samples': AUTO if eot_samples == AUTO else None}
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f'{name}={value!r} is given, and the classifier is not random, so that all draws of it are '
                f'alike: leave {name} out, or wrap a function of images and keys as '
                'si_jax.Randomised(function)'
            )


def check_step_size(step_size: float, norm: str, image_shape: tuple[int, ...]) -> float:
    """A step size, as a fraction of the pixel range like eps."""
    limit = ball_of(norm).limit(image_shape)
    if not 0 < step_size <= limit:
        advice = f'did you mean {step_size:g}/255?' if 1 < step_size <= 255 else 'the default is eps / 4'
        raise InputError(f'step_size={step_size:g} is not in (0, {limit:g}] for {norm}: {advice}')
    return float(step_size)


def parse_attacks(
    attacks: Any, norm: str = 'linf'
) -> tuple[tuple[str, ...], dict[str, Attack | AttackFunction]]:
    """The names of the attacks in order, and by name those that are the user's.

    A function is named after itself; `Attack` records and functions without a name are called 'own'. In a
    norm some settings have other defaults, which names leave out.

    Raises:
        InputError: An unknown name, one given twice, one that is taken, or something that is no attack.
    """
    if isinstance(attacks, str | Attack) or callable(attacks) or not isinstance(attacks, Iterable):
        attacks = [attacks]
    names: list[str] = []
    custom: dict[str, Attack | AttackFunction] = {}
    for attack in attacks:
        if isinstance(attack, str):
            names += parse_names(attack, norm)
            continue
        pair = type(attack) is tuple and len(attack) == 2 and isinstance(attack[0], str)
        name, attack = attack if pair else (_name_of(attack), attack)
        _check_attack(name, attack)
        names.append(name)
        custom[name] = attack
    for name in names:
        if names.count(name) > 1:
            advice = "give pairs ('name', attack)" if name in custom else 'give it once'
            raise InputError(f'attack {name!r} is given {names.count(name)} times: {advice}')
    return (tuple(names) if names else parse_names(())), custom


def _name_of(attack: Any) -> str:
    name = getattr(getattr(attack, 'func', attack), '__name__', UNNAMED)  # functools.partial has .func
    return UNNAMED if name == '<lambda>' else name


def _check_attack(name: str, attack: Any) -> None:
    if not isinstance(attack, Attack) and not callable(attack):
        raise InputError(
            f'{attack!r} is no attack: give a name, an Attack record, or a callable (classifier, images, '
            'labels, threat, key) -> images'
        )
    if name in (*ATTACKS, *SEARCHES, *PRESETS, *TAKEN) or name.startswith(TAKEN_PREFIXES):
        raise InputError(
            f'an attack of your own cannot be called {name!r}, which is taken: rename it, or give a pair '
            "('name', attack)"
        )
    check_name(name)


def check_name(name: Any) -> None:
    """Raises InputError unless a row of the result, and its files, can be called this."""
    if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9][\w.-]*', name):
        raise InputError(f'{name!r} cannot be a name: use letters, digits and . - _')


def parse_sources(sources: Any, layout: str = 'nhwc') -> dict[str, Classifier]:
    """The sources by the names of their rows, `transfer-NAME`; those without a name are numbered.

    Raises:
        InputError: A name cannot be one, or a source is no classifier.
    """
    if sources is None:
        return {}
    if not isinstance(sources, Mapping):
        listed = sources if isinstance(sources, list | tuple) else [sources]
        sources = {str(number): source for number, source in enumerate(listed)}
    for name in sources:
        check_name(name)
    return {f'{TRANSFER}{name}': classifier_of(source, layout) for name, source in sources.items()}


def check_precision(wanted: str | None, dtype: np.dtype, platform: str) -> str | None:
    """The precision of products during the search; None for that of the images."""
    if dtype == np.float64:
        if wanted is not None:
            raise InputError(
                f'search_precision={wanted!r} is for float32 images, these are float64: leave it out'
            )
        return None
    if wanted == 'tf32' and platform not in GPUS:
        raise InputError(f"search_precision='tf32' is known to GPUs only, not to {platform}: use 'float32'")
    if wanted is None:
        wanted = 'tf32' if platform in GPUS else 'float32'
    return wanted


def images_at_once(
    batch_size: int | None,
    count: int,
    devices: list[jax.Device],
    before: Any = None,
    image_shape: tuple[int, ...] = (),
) -> int:
    """Images at once on all devices together: a multiple of their number, and no more than there are.

    Where it is not given, as many as there were `before`, when the evaluation began on other devices; else
    as many as are fast, and fewer of large images [H, W, C], as the memory of a device has room for.
    """
    most = -(-count // len(devices)) * len(devices)
    if batch_size is None and type(before) is int and before in range(len(devices), most + 1, len(devices)):
        return before
    if batch_size is None:
        platform = devices[0].platform
        room = CHUNK_BYTES.get(platform) or (devices[0].memory_stats() or {}).get('bytes_limit', math.inf)
        fitting = room / (PIXEL_BYTES * math.prod(image_shape[:2]))
        batch_size = int(max(1, min(CHUNK.get(platform, CHUNK_ACCELERATOR), fitting))) * len(devices)
    wanted = min(check_count('batch_size', batch_size), count)
    return -(-wanted // len(devices)) * len(devices)
