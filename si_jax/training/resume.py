"""Whether a run may go on from what lies in its workdir, from which step, and what changes on the way.

A checkpoint says of which config and data it is. All checkpoints of a workdir are compared with the command
before one of them is read, so that none of another run is taken, and nothing is written before that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from si_jax import defenses
from si_jax.errors import InputError
from si_jax.runtime.fingerprint import fingerprint
from si_jax.storage.files import check_fields
from si_jax.storage.trees import differences
from si_jax.training import average, ramps, schedules
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.recipes import completed, plain
from si_jax.training.setup import EXTRA_DATA, Setup
from si_jax.training.step import step_of
from si_jax.training.workdir import AFTER_DIVERGENCE, Workdir, divergence, refused


class Start(NamedTuple):
    """Where a run goes on.

    Attributes:
        which: What `Checkpoints.restore` takes: 'last', or a step; None for the beginning.
        back: Whether it lies before a divergence, and what was saved there is to be removed.
        event: What the command changes, for the history, where the run goes back to its beginning; else {}.
        words: The same in words.
    """

    which: str | int | None
    back: bool = False
    event: Mapping[str, Any] = {}
    words: str = ''


def find_start(
    ready: Setup, place: Workdir, checkpoints: Checkpoints, data: Mapping[str, Mapping[str, Any]]
) -> Start:
    """Compares all checkpoints with the command, and says from which the run goes on.

    After a divergence the same command goes on at the step that was not finite, and shows it again. One with
    another rate, clipping or precision goes back to the checkpoint before that: the state there would give
    the same loss. `data` is what `data_facts` says of the data of the command.

    Raises:
        InputError: A checkpoint is of another config or of other data, or the run has begun more epochs than
            the command asks for.
    """
    found, config = checkpoints.metadata(), completed(plain(ready.config))
    diverged = divergence(place.history)
    for step, metadata in found.items():
        folder = checkpoints.directory / str(step)
        other = f'checkpoint {folder} is of another run than this command'
        remedy = f'give another --workdir, or remove {folder} if it does not belong there'
        old, latest = metadata.get('config'), step == max(found)
        changeable = diverged and (not latest or step <= diverged['step'])
        if isinstance(old, Mapping) and (changed := refused(completed(old), config, bool(changeable))):
            raise InputError(f'{other} ({", ".join(changed)}): {remedy}, or give its values to go on from it')
        if (code := metadata.get('code')) is not None and code != code_of(ready):
            raise InputError(
                f'{other}: the code of the defense {ready.config.defense.name!r} was another. Give that of '
                f'before, or {remedy}'
            )
        if differs := _other_data(step, metadata, data, ready.steps_per_epoch):
            raise InputError(
                f'{other}: {differs}. Give the data of before (--config.data.dir=FOLDER, '
                f'--config.data.extra=FILE.npz), or {remedy}'
            )
    if not found and checkpoints.any_was_whole():
        return Start('last')
    if not found:
        # A run that went back to its beginning may have been stopped before it wrote the change down.
        if diverged and any(_after_divergence(name) for name in place.changed):
            words = ', '.join(f'{name} {old} -> {new}' for name, (old, new) in place.changed.items())
            pairs = {name: list(pair) for name, pair in place.changed.items()}
            return Start(None, True, {'step': 0, 'changed': pairs}, words)
        return Start(None)
    last = max(found)
    needed = -(-last // ready.steps_per_epoch)
    if needed > ready.config.epochs:
        raise InputError(
            f'epochs={ready.config.epochs} is fewer than the run in {place.path} has begun: its last '
            f'checkpoint, step {last}, lies in epoch {needed}. Give --config.epochs={needed} or more, or '
            'another --workdir'
        )
    changes = _changes(found[last], ready)
    if diverged and diverged['step'] == last and any(_after_divergence(name) for name in changes):
        if before := [step for step in found if step < diverged['before']]:
            return Start(max(before), True)
        try:
            return Start(None, True, *change(found[last], ready, 0))
        except ValueError as error:
            raise InputError(
                f'checkpoint {last} in {place.path} was not written by this program ({error}): give another '
                '--workdir'
            ) from error
    return Start('last')


def code_of(ready: Setup) -> str:
    """A hash of the code of a defense or a training step of the user's; '' for those of the library."""
    name, make = ready.config.defense.name, step_of(ready.defense).make
    own: list[Any] = [defenses.DEFENSES[name]] if name not in defenses.BUILT_IN else []
    own += [make] if not make.__module__.startswith('si_jax.') else []
    return fingerprint(own) if own else ''


def _other_data(step: int, metadata: Mapping[str, Any], data: Mapping[str, Any], steps_per_epoch: int) -> str:
    """How the data of a checkpoint differ from those of the command; '' if they do not."""
    old = metadata.get('data')
    if isinstance(old, Mapping) and (EXTRA_DATA in old) != (EXTRA_DATA in data):
        with_them = f'{EXTRA_DATA}, {_shown(old.get(EXTRA_DATA, data.get(EXTRA_DATA)))}'
        return (
            f'it was trained with {with_them}, and this command has none'
            if EXTRA_DATA in old
            else f'it was trained without {with_them}, which this command has'
        )
    for name, now in data.items() if old is not None else ():
        before = old.get(name) if isinstance(old, Mapping) else None
        if not isinstance(before, Mapping):
            return f'it does not say of which {name} it is'
        if any(before.get(key) != now[key] for key in ('images', 'digest')):
            return f'its {name} are {_shown(before)}, those of this command {_shown(now)}'
    epoch, position = metadata.get('epoch'), metadata.get('position')
    if type(epoch) is type(position) is int and epoch * steps_per_epoch + position != step:
        return (
            f'its step {step} is position {position} of epoch {epoch + 1}, but an epoch has '
            f'{steps_per_epoch} steps with the {data["training data"]["images"]} training images here'
        )
    return ''


def _shown(facts: Any) -> str:
    facts = facts if isinstance(facts, Mapping) else {}
    files = facts.get('files')
    where = f' from {", ".join(map(str, files))}' if isinstance(files, Sequence) and files else ''
    return f'{facts.get("images")} images{where} with the digest {facts.get("digest")}'


def _after_divergence(name: str) -> bool:
    return any(f'{name}.'.startswith(f'{field}.') for field in AFTER_DIVERGENCE)


def _changes(metadata: Mapping[str, Any], ready: Setup) -> dict[str, tuple[Any, Any]]:
    old = metadata.get('config')
    return differences(completed(old), completed(plain(ready.config))) if isinstance(old, Mapping) else {}


def change(metadata: Mapping[str, Any], ready: Setup, step: int) -> tuple[dict[str, Any], str]:
    """What the command changes of the config that a run had up to a step: for its history, and in words.

    Args:
        metadata: Of the checkpoint.
        ready: Of the command.
        step: The next step to be taken.

    Raises:
        ValueError: The metadata are not those of a run.
    """
    numbers = {('config', 'epochs'): int, ('config', 'schedule', 'peak'): float}
    check_fields(metadata, {('config',): dict, **numbers})
    old, changes = completed(metadata['config']), _changes(metadata, ready)
    if not changes:
        return {}, ''
    words = ', '.join(f'{name} {before} -> {after}' for name, (before, after) in changes.items())
    if any(name == 'epochs' or name.startswith('schedule.') for name in changes):
        length = {'epochs': old['epochs'], 'steps_per_epoch': ready.steps_per_epoch}
        schedule, _ = schedules.schedule_and_optimiser(old['schedule'], old['optimiser'], **length)
        before, after = float(schedule(max(step - 1, 0))), float(ready.schedule(step))
        words += f'; the rate {f"goes from {before:.3g} to" if before != after else "stays at"} {after:.3g}'
    if 'epochs' in changes:
        words += ''.join(f'; {one}' for one in _moved(old, ready, step))
    return {'step': step, 'changed': {name: list(pair) for name, pair in changes.items()}}, words


def _moved(old: Mapping[str, Any], ready: Setup, step: int) -> list[str]:
    """What else follows the length of a run, in words: the average of the weights, and ramps."""
    steps, found = ready.steps_per_epoch, []
    lengths = old['epochs'], ready.config.epochs
    if ready.average is not None:
        then, now = (
            average.from_config(old['average'], epochs=epochs, steps_per_epoch=steps, hypersphere=False)
            for epochs in lengths
        )
        before, after = (float(one.decay_at(jnp.int32(step))) if one else 0.0 for one in (then, now))
        if before and not after:
            found.append('the average of the weights begins anew')
    moves = steps if old['ramp']['every'] == 'epoch' else 1
    for name in ramps.NAMES:
        if ramp := old['ramp'][name]:
            before, after = (
                float(ramps.Ramps((), (), (), moves, epochs * steps // moves).factor(ramp, jnp.int32(at)))
                for epochs, at in zip(lengths, (max(step - 1, 0), step), strict=True)
            )
            if before != after:
                found.append(f'ramp.{name} goes from {before:.3g} of its value to {after:.3g}')
    return found
