"""The checked arguments of an evaluation, made once: whatever comes after may rely on them.

Each check raises `InputError` with the value, the limit and the remedy.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.facts import facts, taken_by
from si_jax.attacks.pgd import Attack
from si_jax.attacks.registry import ATTACKS, PRESETS, SEARCHES
from si_jax.attacks.registry import parse as parse_names
from si_jax.errors import InputError, unknown
from si_jax.evaluation.classifier import PRECISIONS, Classifier, classifier_of
from si_jax.evaluation.state import begun
from si_jax.threat import Threat, ball_of

Takes = Mapping[str, frozenset[str]]  # for each row of a result the settings that it takes
# (classifier, images, labels, threat, key) -> images
AttackFunction = Callable[[Any, jax.Array, jax.Array, Threat, jax.Array], Any]
# Images at once on each device. On the CPU small batches are fastest: they stay in a core's cache, each core
# has one of its own, and few rows are filling.
CHUNK = {'cpu': 16}
CHUNK_ACCELERATOR = 512
GPUS = ('gpu', 'cuda', 'rocm')
# Names that the files of a result use for something else.
TAKEN = ('clean', 'worst_case', 'labels', 'indices')
TRANSFER = 'transfer-'  # before the name of a source, in that of its row
TAKEN_PREFIXES = (TRANSFER, 'broken_by_', 'queries_', 'distances_')
UNNAMED = 'own'
# What attacks may take, with what stands for None; step_size stands for eps / 4 then.
DEFAULTS = {'steps': 20, 'restarts': 1, 'eot_samples': 1}
TRANSFERRED = frozenset({'steps', 'step_size', 'eot_samples'})  # of an attack by way of another network


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is evaluated and how, checked; the arguments of `evaluate` say more.

    Attributes with the name of an argument hold what was given, or its default.

    Attributes:
        names: The attacks in order.
        custom: The user's own attacks by name.
        sources: The classifiers that adversarial images come from, by the names of their rows.
        images: [N, H, W, C], float32 or float64, in [0, 1].
        labels: [N], int64.
        indices: [N], uint32, the number of each image.
        keep: Whether the adversarial images are wanted.
        precision: Of the classifier's products during the search; None for that of the images.
        chunk: Images at once on all devices together.
        classes: Of the classifier; 0 until it is traced.
        processes: Of how many processes began the evaluation that goes on; None if it begins.
        takes: For each row of the result which of steps, step_size, restarts and eot_samples it takes.
    """

    names: tuple[str, ...]
    custom: dict[str, Attack | AttackFunction]
    sources: dict[str, Classifier]
    images: np.ndarray
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
    classes: int = 0

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
        eot_samples: int | None = None,
        individual: bool = False,
        transfer_from: Any = None,
        search_precision: str | None = None,
        state_path: str | os.PathLike | None = None,
        return_images: bool = False,
        devices: Sequence[jax.Device] | None = None,
    ) -> 'Request':
        """Checks the arguments of `evaluate` that have these names.

        Raises:
            InputError: One of them is wrong.
        """
        names, custom = parse_attacks(attacks)
        sources = parse_sources(transfer_from)
        images = check_images(images)
        labels = check_labels(labels, len(images))
        indices = check_indices(indices, len(images))
        threat = Threat(norm, float(eps))
        threat.check(images.shape[1:])
        takes, counts = takes_of(names, custom, sources), {'steps': steps, 'restarts': restarts}
        counts |= {'eot_samples': eot_samples}
        check_settings(
            takes,
            **counts,
            step_size=step_size,
            seed=seed,
            batch_size=batch_size,
            search_precision=search_precision,
            individual=individual,
        )
        chosen = {name: DEFAULTS[name] if value is None else value for name, value in counts.items()}
        step_size = threat.eps / 4 if step_size is None else step_size
        devices = list(devices or jax.local_devices())
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
            chunk=images_at_once(batch_size, len(images), devices, before.get('images at once')),
            precision=check_precision(search_precision, images.dtype, devices[0].platform),
            devices=devices,
            processes=shares if before and type(shares) is int and shares > 0 else None,
        )


def check_images(images: Any) -> np.ndarray:
    """The images [N, H, W, C] on the host, as float32, or as float64 if they are and JAX has it enabled."""
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f'images have shape {images.shape}: they must be [N, H, W, C], with at least one image'
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f'images are {images.dtype}: they must be floating and in [0, 1]; divide 8-bit images by 255'
        )
    lowest, highest = images.min(), images.max()
    if not np.isfinite(lowest) or not np.isfinite(highest):
        i = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3))))
        raise InputError(f'images[{i}] holds NaN or infinite values: remove or repair it')
    if lowest < 0 or highest > 1:
        if lowest >= 0 and highest <= 255:
            advice = 'divide 8-bit pixel values by 255'
        else:
            advice = 'give them unnormalised and let the classifier subtract mean and divide by std itself'
        raise InputError(f'images lie in [{lowest:g}, {highest:g}], not in [0, 1]: {advice}')
    wide = jax.dtypes.canonicalize_dtype(images.dtype) == np.float64
    return np.ascontiguousarray(images, np.float64 if wide else np.float32)


def check_labels(labels: Any, count: int) -> np.ndarray:
    """The labels [N] on the host, int32; `check_classes` holds them against the number of classes."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise InputError(
            f'labels have shape {labels.shape}: they must be [{count}], one class for each image'
        )
    if labels.dtype.kind not in 'iu':  # time spans count as integers to NumPy
        raise InputError(f'labels are {labels.dtype}: they must be integers from 0 to K - 1')
    return labels.astype(np.int64)


def check_indices(indices: Any, count: int) -> np.ndarray:
    """The number of each image [N], which its random numbers come from: its position unless given."""
    indices = np.arange(count) if indices is None else np.asarray(indices)
    if indices.shape != (count,) or indices.dtype.kind not in 'iu':
        raise InputError(f'indices are {indices.dtype} {indices.shape}: they must be integers [{count}]')
    if indices.min() < 0 or indices.max() >= 2**32:
        raise InputError(f'indices lie in [{indices.min()}, {indices.max()}]: they must be in [0, 2**32)')
    return indices.astype(np.uint32)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """An integer setting of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f'{name}={value!r} must be an integer of at least {least}')
    return int(value)


def takes_of(names: Iterable[str], custom: Mapping[str, Any], sources: Iterable[str]) -> Takes:
    """What the rows of a result take: of attacks by name, some of them the user's, and of transfers."""
    return {name: _taken(name, custom.get(name)) for name in names} | dict.fromkeys(sources, TRANSFERRED)


def _taken(name: str, given: Attack | AttackFunction | None) -> frozenset[str]:
    """Which of the settings that have a default an attack takes; a callable of the user's is run again."""
    if isinstance(given, Attack):
        return facts(given).takes
    return taken_by(name) if given is None else frozenset({'restarts'})


def check_settings(
    takes: Takes,
    *,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    eot_samples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    search_precision: str | None = None,
    individual: bool = False,
    **others: Any,
) -> None:
    """Checks what can be told before there are images; None is for what was not given.

    Raises:
        InputError: A value is no count, or no attack of the call takes it; or an unknown precision.
    """
    if search_precision is not None and search_precision not in PRECISIONS:
        raise unknown('search_precision', search_precision, PRECISIONS)
    check_count('seed', seed, least=0)
    counts = {'steps': steps, 'restarts': restarts, 'eot_samples': eot_samples, 'batch_size': batch_size}
    for name, value in counts.items():
        if value is not None:
            check_count(name, value)
    given = {**counts, 'step_size': step_size, 'individual': individual or None}
    for name in ('steps', 'step_size', 'restarts', 'eot_samples', 'individual'):
        setting = given[name]
        if setting is not None and not any(name in taken for taken in takes.values()):
            raise InputError(
                f'{name}={setting!r} is given, and {", ".join(takes)} '
                f'{"do not take" if len(takes) > 1 else "does not take"} it: leave {name} out, or add an '
                f"attack that takes it, such as '{'autoattack' if name == 'individual' else 'pgd'}'"
            )


def check_step_size(step_size: float, norm: str, image_shape: tuple[int, ...]) -> float:
    """A step size, as a fraction of the pixel range like eps."""
    limit = ball_of(norm).limit(image_shape)
    if not 0 < step_size <= limit:
        advice = f'did you mean {step_size:g}/255?' if 1 < step_size <= 255 else 'the default is eps / 4'
        raise InputError(f'step_size={step_size:g} is not in (0, {limit:g}] for {norm}: {advice}')
    return float(step_size)


def parse_attacks(attacks: Any) -> tuple[tuple[str, ...], dict[str, Attack | AttackFunction]]:
    """The names of the attacks in order, and by name those that are the user's.

    A function is named after itself; `Attack` records and functions without a name are called 'own'.

    Raises:
        InputError: An unknown name, one given twice, one that is taken, or something that is no attack.
    """
    if isinstance(attacks, str | Attack) or callable(attacks):
        attacks = [attacks]
    names: list[str] = []
    custom: dict[str, Attack | AttackFunction] = {}
    for attack in attacks:
        if isinstance(attack, str):
            names += parse_names(attack)
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


def parse_sources(sources: Any) -> dict[str, Classifier]:
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
    return {f'{TRANSFER}{name}': classifier_of(source) for name, source in sources.items()}


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


def images_at_once(batch_size: int | None, count: int, devices: list[jax.Device], before: Any = None) -> int:
    """Images at once on all devices together: a multiple of their number, and no more than there are.

    Where it is not given, as many as there were `before`, when the evaluation began on other devices.
    """
    most = -(-count // len(devices)) * len(devices)
    if batch_size is None and type(before) is int and before in range(len(devices), most + 1, len(devices)):
        return before
    if batch_size is None:
        batch_size = CHUNK.get(devices[0].platform, CHUNK_ACCELERATOR) * len(devices)
    wanted = min(check_count('batch_size', batch_size), count)
    return -(-wanted // len(devices)) * len(devices)
