"""Checkpoints that are either whole or not taken.

Orbax writes the arrays. A checkpoint counts once its manifest stands beside them, which is written last and
checked before anything is restored: Orbax alone restores a data file with one flipped bit without complaint.

    DIRECTORY/<step>/state/         the arrays, as nested dictionaries whatever the saved structure was
    DIRECTORY/<step>/manifest.json  step, metric, metadata, shape and dtype of each array, digest of each file
    DIRECTORY/<step>.replaced/      an earlier checkpoint of that step, while the later one is being written
"""

import contextlib
import datetime
import errno
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers

from si_jax.errors import InputError, unknown
from si_jax.runtime import devices, processes
from si_jax.storage import manifest
from si_jax.storage.files import NO_ROOM, no_room
from si_jax.storage.trees import difference, leaves


class CorruptCheckpointWarning(UserWarning):
    """A checkpoint was passed over because it is incomplete or damaged."""


class Restored(NamedTuple):
    """A checkpoint as read: numpy arrays, to be placed on any number of devices."""

    step: int
    state: Any  # in the structure of `like`, or nested dictionaries
    metadata: dict
    metric: float | None


class Checkpoints:
    """The checkpoints of one run: the last `keep_last` and the best, each verified before it is used.

    Reading changes nothing in the directory, so a run can be evaluated while it trains. Only one run may
    save, which the lock on the workdir sees to. The processes of a run save and restore together, in one
    directory that all of them see: each writes its part of the arrays, and the first one all else.

    Args:
        directory: Where the checkpoints lie. The first save creates it.
        keep_last: How many of the latest checkpoints are kept, beside the best one.

    Raises:
        InputError: `keep_last` is below 1.
    """

    def __init__(self, directory: str | os.PathLike, *, keep_last: int = 2):
        if keep_last < 1:
            raise InputError(f'keep_last={keep_last} is below 1: at least the latest checkpoint must be kept')
        self.directory = Path(directory).absolute()
        self._keep_last = keep_last
        self._damaged: set[int] = set()  # found by this object, and absent to it from then on

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. Their data is verified only by `restore`."""
        return [step for step in self._folders() if self._manifest(step) and step not in self._damaged]

    @property
    def latest_step(self) -> int | None:
        """Step of the latest complete checkpoint, None when there is none."""
        return max(self.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest metric (of equals the latest), None when none has one."""
        contents = filter(None, map(self._manifest, self.steps()))
        scored = [
            (content['metric'], content['step']) for content in contents if content['metric'] is not None
        ]
        return max(scored)[1] if scored else None

    def metadata(self) -> dict[int, dict[str, Any]]:
        """By step of each complete checkpoint, ascending, what was saved beside its arrays."""
        found = {step: self._manifest(step) for step in self.steps()}
        return {step: content['metadata'] for step, content in found.items() if content}

    def any_was_whole(self) -> bool:
        """Whether any checkpoint was ever finished, be it damaged since."""
        return any((self._folder(step) / manifest.NAME).exists() for step in self._folders())

    def remove(self, first: int) -> None:
        """Removes the checkpoints of this step and of all after it."""
        for step in self._folders():
            if step >= first:
                self._remove(step, keep=set())

    def save(
        self, step: int, state: Any, *, metadata: dict, metric: float | None = None, force: bool = False
    ) -> bool:
        """Writes one checkpoint, and returns when it is whole on the disk.

        The arrays are copied to the host first, so the state may be donated to the next step at once.

        Args:
            step: Training step, at least 0.
            state: Any tree of numpy arrays or of JAX arrays; over several processes each gives the same, or
                arrays over the devices of all.
            metadata: What else belongs to the run, in JSON's types: config, seed, data position, versions.
            metric: Held-out robust accuracy in [0, 1], higher is better. None (or NaN) when it was not
                measured, as in the middle of an epoch: such a checkpoint is never the best.
            force: Replace a complete checkpoint of the same step. Without it, one is replaced only where it
                has no metric and this one has.

        Returns:
            Whether a checkpoint was written.

        Raises:
            TypeError: `metadata` is not JSON. Nothing is written.
            OSError: The checkpoint could not be written (disk full, for example). What was written of it is
                removed; those before it are untouched, and the message names the latest of them.
        """
        step = int(step)
        metric = None if metric is None or math.isnan(metric) else float(metric)
        content = {'step': step, 'metric': metric, 'metadata': json.loads(json.dumps(metadata))}
        previous = processes.from_first(lambda: self._manifest(step) if step in self.steps() else None)
        if previous and not force and (metric is None or previous['metric'] is not None):
            return False
        arrays = {path: _held(leaf) for path, leaf in leaves(state)}
        content['arrays'] = {path: [list(array.shape), str(array.dtype)] for path, array in arrays.items()}
        content['time'] = datetime.datetime.now(datetime.UTC).isoformat()
        folder, replaced = self.directory / str(step), self.directory / f'{step}.replaced'
        try:
            if processes.is_first():
                self.directory.mkdir(parents=True, exist_ok=True)
                if previous and self._folder(step) == folder:
                    shutil.rmtree(replaced, ignore_errors=True)
                    folder.rename(replaced)
                shutil.rmtree(folder, ignore_errors=True)  # whatever else lies there is incomplete or damaged
            processes.gather('place made')
            self._write_arrays(step, arrays)
            if processes.is_first():
                manifest.write(folder, content)
        except Exception as error:
            if processes.is_first():
                for leftover in [folder, *self.directory.glob(f'{step}.orbax-checkpoint-tmp*')]:
                    shutil.rmtree(leftover, ignore_errors=True)
                if previous and replaced.is_dir():
                    replaced.rename(folder)
            if processes.count() > 1 and not (isinstance(error, OSError) or no_room(error)):
                raise  # not of the disk: another process may be gone
            raise self._failure(step, arrays, error) from error
        self._damaged.discard(step)
        if processes.is_first():
            self._prune(step)
        processes.gather('saved')
        return True

    def restore(
        self,
        which: Literal['last', 'best'] | int | str = 'last',
        *,
        like: Any = None,
        only: Sequence[str] | None = None,
    ) -> Restored:
        """Reads one checkpoint, after its files were found to be what was saved.

        Args:
            which: `'last'`, `'best'` or a step. Where the last one is incomplete or damaged, `'last'` warns,
                names it and takes the one before; with the others that is an error. `'best'` warns where the
                metric of a checkpoint cannot be read.
            like: A tree of arrays or `jax.ShapeDtypeStruct` that says structure, shapes and dtypes. None
                gives nested dictionaries.
            only: Names of the top-level fields to read, for example `('params', 'batch_stats')`, so that the
                optimiser need not be known. `like` then has these fields only, and without `like` a field
                that holds no arrays is an empty dictionary. None reads all.

        Raises:
            InputError: No usable checkpoint, no such step, a damaged one where one was named, or (before any
                array is read) one whose arrays are not those of `like`: the first path that differs is named.
        """
        step = processes.from_first(lambda: self._choose(which))
        folder = self._folder(step)
        content = manifest.read_checkpoint(folder)
        assert content is not None  # _choose has just verified it
        stored = {
            path: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
            for path, (shape, dtype) in content['arrays'].items()
            if only is None or path.split('/')[0] in only
        }
        if like is not None:
            _check_same_arrays(folder, stored, dict(leaves(like)), content['metadata'])
        try:
            arrays = _read_arrays(folder / 'state', stored)
        except Exception as error:  # the files are those that were written, but no checkpoint of ours
            raise InputError(
                f'checkpoint {folder} cannot be read, though its files are as they were written '
                f'({type(error).__name__}): was it written by another program or version of Orbax?'
            ) from error
        if like is not None:
            state = jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path, _ in leaves(like)])
        else:
            state = {name: {} for name in only or ()} | traverse_util.unflatten_dict(arrays, sep='/')
        return Restored(step, state, content['metadata'], content['metric'])

    def _choose(self, which: int | str) -> int:
        """The step to restore, verified."""
        steps = self._folders()
        if which == 'last':
            for step in reversed(steps):
                if not (damage := manifest.checkpoint_damage(self._folder(step))):
                    return step
                self._pass_over(step, damage)
            if steps:
                raise InputError(
                    f'no checkpoint in {self.directory} is usable ({len(steps)} incomplete or damaged): '
                    'restore one as the warnings say, or remove that folder to train anew'
                )
            raise InputError(
                f'no checkpoint in {self.directory}: '
                'train first (python train.py --config=... --workdir=...), or name the workdir of another run'
            )
        if which == 'best':
            for step in steps:
                if not self._manifest(step):  # its metric is not known: it may have been the best
                    self._pass_over(step, manifest.checkpoint_damage(self._folder(step)))
            if (best := self.best_step) is None:
                raise InputError(
                    f'no checkpoint with a held-out robust accuracy in {self.directory}: '
                    "name 'last' or a step, or train to the end of the first epoch"
                )
            step = best
        elif str(which).isdecimal():
            step = int(which)
            if step not in steps:
                raise InputError(f'no checkpoint of step {step} in {self.directory}, only of {self.steps()}')
        else:
            raise unknown('checkpoint', which, ['last', 'best', 'a step'])
        if damage := manifest.checkpoint_damage(self._folder(step)):
            others = [other for other in self.steps() if other != step]
            raise InputError(
                f'checkpoint {self.directory / str(step)} is not usable: {damage}. '
                f"Name 'last' or another step: {others}"
            )
        return step

    def _pass_over(self, step: int, damage: str | None) -> None:
        self._damaged.add(step)
        message = f'checkpoint {self.directory / str(step)} is not used: {damage}'
        warnings.warn(message, CorruptCheckpointWarning, stacklevel=4)

    def _folders(self) -> list[int]:
        """Steps that have a folder, complete or not, ascending."""
        folders = (path for path in self.directory.glob('[0-9]*') if path.is_dir())
        names = {path.name.removesuffix('.replaced') for path in folders}
        return sorted(int(name) for name in names if name.isdecimal())

    def _folder(self, step: int) -> Path:
        """Folder of a step: the replaced one only as long as the later one is incomplete."""
        folder, replaced = self.directory / str(step), self.directory / f'{step}.replaced'
        complete = manifest.read_checkpoint
        return replaced if complete(replaced) and not complete(folder) else folder

    def _manifest(self, step: int) -> dict[str, Any] | None:
        return manifest.read_checkpoint(self._folder(step))

    def _write_arrays(self, step: int, arrays: dict[str, np.ndarray | jax.Array]) -> None:
        # The manager is made for one save and keeps everything: its own deletions would come before the
        # manifest is written, at a moment when the new checkpoint does not count yet.
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            preservation_policy=checkpoint_managers.LatestN(None),
        )
        tree = traverse_util.unflatten_dict(arrays, sep='/')
        with _quiet(), ocp.CheckpointManager(self.directory, options=options) as manager:
            manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)), force=True)

    def _prune(self, saved: int) -> None:
        """Keeps the last ones, the best, and the one that was just saved; removes all others."""
        kept = {saved, self.best_step, *self.steps()[-self._keep_last :]}
        kept_folders = {self._folder(step) for step in kept if step is not None}
        for step in self._folders():
            self._remove(step, kept_folders)

    def _remove(self, step: int, keep: set[Path]) -> None:
        for folder in (self.directory / str(step), self.directory / f'{step}.replaced'):
            if folder not in keep:
                # Without a manifest it is no checkpoint, should the removal be cut short.
                (folder / manifest.NAME).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def _failure(self, step: int, arrays: dict[str, Any], error: Exception) -> OSError:
        """The error of a save that failed, saying what is still there."""
        last = self.latest_step
        kept = 'no earlier checkpoint exists' if last is None else f'the last good checkpoint is step {last}'
        if code := no_room(error):
            needed = sum(array.nbytes for array in arrays.values()) / 2**20
            return OSError(
                code,
                f'disk full while saving step {step} to {self.directory} (about {needed:.1f} MiB: '
                f'{NO_ROOM[code]}); {kept}. Free some space and run the same command again',
            )
        code = (error.errno if isinstance(error, OSError) else None) or errno.EIO
        return OSError(code, f'could not save step {step} to {self.directory}: {error}; {kept}')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that Orbax's threads log before the error that they end in is raised."""
    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _held(leaf: Any) -> np.ndarray | jax.Array:
    """A copy on the host; over several processes an array over the devices of all, as Orbax wants it then."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    host = np.array(leaf)
    return host if processes.count() == 1 else devices.replicate(host)


def _read_arrays(folder: Path, stored: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    if not stored:
        return {}
    item = traverse_util.unflatten_dict(stored, sep='/')
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restore = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        tree = checkpointer.restore(folder, args=restore)
    return {path: np.asarray(array) for path, array in traverse_util.flatten_dict(tree, sep='/').items()}


def _check_same_arrays(folder: Path, stored: dict[str, Any], wanted: dict[str, Any], metadata: dict) -> None:
    """Raises InputError with the first path at which two trees differ."""
    if found := difference(stored, wanted):
        arch = f' (arch={metadata["arch"]})' if 'arch' in metadata else ''
        raise InputError(
            f'checkpoint {folder}{arch} is of another architecture or optimiser: {found}. '
            'Give the config it was trained with, or another --workdir'
        )
