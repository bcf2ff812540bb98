"""What a config says and does not mean: a row's name over another row's fields, a field that nothing reads.

Each field is right by itself, and the run would train; it would not train what its author asked for.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from si_jax.data import Dataset, stream
from si_jax.data.sampling import of_few_classes
from si_jax.defenses import BUILT_IN, DEFENSES, Defense
from si_jax.errors import InputError
from si_jax.threat import LINF_EPS, USUAL
from si_jax.training.recipes.fields import defense as fields_of

# Of the section `defense`, what comes with a row.
OF_ROW = (
    'weights',
    'start',
    'start_radius',
    'bounds',
    'attack_bn',
    'passes',
    'replays',
    'branches',
    'others',
)


def check(config: ConfigDict) -> None:
    """Refuses a config whose parts are of two recipes.

    Raises:
        InputError: `defense.name` names a row, and all fields beside it are those of another; or the norm is
            not Linf, and the radius that of Linf.
    """
    _check_row(config)
    norm, eps = config.threat.norm, config.threat.eps
    if norm in USUAL and eps == LINF_EPS:
        raise InputError(
            f'threat.norm={norm} has threat.eps={eps:.6g}, the radius of linf, which is next to nothing '
            f'there: give --config.threat.eps too, such as {USUAL[norm]}'
        )


def _check_row(config: ConfigDict) -> None:
    section, name = config.defense, config.defense.name
    if name not in BUILT_IN:
        return

    def differing(other: str) -> list[str] | None:
        try:
            row = fields_of(other, si=section.si, he=section.he)
        except InputError:  # there is no such version of it
            return None
        return [field for field in OF_ROW if _plain(section[field]) != _plain(row[field])]

    if not (wrong := differing(name)):
        return
    for other in sorted(BUILT_IN - {name}):
        row = DEFENSES[other]
        as_its = config.attack.steps == row.steps and math.isclose(
            config.attack.step_size, row.step_size * config.threat.eps
        )
        if as_its and differing(other) == []:
            raise InputError(
                f'defense.name={name}, but {", ".join(wrong)} of the section defense are those of {other}: a '
                f'name changes no field beside it. Give the config of {name}, or set '
                f'{", ".join(wrong)} of {name} too, in a config file of your own'
            )


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def limited(limit: int, labels: np.ndarray, whole: np.ndarray) -> str:
    """A warning where the first images of a training set are of few of its classes; '' where they are not."""
    if not (found := of_few_classes(labels, whole)):
        return ''
    return (
        f'data.limit={limit} takes the first images, which are of {found[0]} of {found[1]} classes here, as '
        'the set is sorted by class: the network learns no other. Use --config.data.limit=0, or a folder '
        'with fewer images of each'
    )


def copies(images: Any, files: Sequence[str], validation: Dataset) -> str:
    """A warning where held-out images are trained on, pixel for pixel; '' where none is."""
    held_out = {image.tobytes() for image in validation.images}
    known = held_out.intersection(image.tobytes() for part in stream.parts(images) for image in part)
    count = sum(image.tobytes() in known for image in validation.images)
    if not count:
        return ''
    where = ', '.join(files) or 'of no file'
    return (
        f'{count} of {len(validation.labels)} held-out images are also trained on, pixel for pixel, so '
        f'held-out accuracies are too high. Remove the copies from the training data ({where})'
    )


def unread(config: ConfigDict, defense: Defense) -> list[str]:
    """A line for each field that was set and that nothing reads with the others as they are."""
    found = []
    for field, usual, reason in _unread(config, defense):
        section, _, name = field.partition('.')
        if (value := config[section][name]) != usual:
            found.append(f'{field}={value} has no effect: {reason}')
    return found


def _unread(config: ConfigDict, defense: Defense) -> Iterator[tuple[str, Any, str]]:
    """(field, its value where nobody set it, why nothing reads it)."""
    average, row = config.average, DEFENSES[config.defense.name]
    for field, usual, kind in (('decay', 0.995, 'ema'), ('ramp', True, 'ema'), ('tau', 0.9, 'swa')):
        if average.kind != kind:
            yield f'average.{field}', usual, f'it belongs to average.kind={kind!r}, which is {average.kind!r}'
    if not average.kind:
        yield 'average.start', 0.025, "average.kind='' keeps no average"
        yield 'average.batch_stats', 'live', "average.kind='' keeps no average"
    if not (config.defense.si or config.defense.he):
        yield 'defense.margin', 0.2, 'it belongs to SI and hypersphere embedding'
        if config.defense.inner != 'si':
            yield 'defense.scale', 15.0, 'it belongs to SI and hypersphere embedding'
    if not config.defense.smoothing:
        yield 'defense.smoothing_over', 'all', 'defense.smoothing=0 smooths no labels'
    kind = config.schedule.kind
    if kind not in ('triangular', 'one_cycle'):
        yield 'schedule.peak_at', 0.5, f'schedule.kind={kind!r} has no such peak'
    if config.model.arch == 'small_cnn':
        yield 'model.bn_momentum', 0.1, 'small_cnn has no batch normalisation'
        yield 'model.sync_bn', True, 'small_cnn has no batch normalisation'
        yield 'model.bn_first_step', False, 'small_cnn has no batch normalisation'
    if defense.persistent:
        why = f'{config.defense.name} makes one step for each replay, from where the last one led'
        yield 'attack.steps', row.steps, why
        for field in ('start', 'start_radius', 'bounds'):
            yield f'defense.{field}', getattr(row, field), why
    if defense.inner is None and not defense.persistent:
        yield 'ramp.eps', (), f'{config.defense.name} trains without an attack'
