"""The attacks, sources and settings of an evaluation, checked; and how many images are on a device at once.

Each check raises `InputError` with the value, the limit and the remedy.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from si_jax.attacks.facts import facts, taken_by
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.registry import parse as parse_names
from si_jax.attacks.registry import settings_of
from si_jax.attacks.searches import SEARCHES
from si_jax.errors import InputError, unknown
from si_jax.evaluation.classifier import PRECISIONS, Classifier, classifier_of
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
    check_count('seed', seed, least=0, below=2**32)  # of more JAX takes the lower half alone, in 32 bits
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
