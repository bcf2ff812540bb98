"""A run from config to checkpoints, `run(config, workdir)`: the loop takes a step and calls the hooks.

The order of a resume, as it matters:

1. The lock on the workdir is taken and its config compared with the given one. A helper that the config asks
   and does not name is trained (`_with_helper`). Config and data of all checkpoints are compared (`resume`).
2. The last undamaged checkpoint is restored; epoch and position within it follow from its step.
3. metrics.jsonl is cut to that step, so that no step is reported twice.
4. The rest of the epoch is trained on the batches that it would have had. After the first step config.json is
   written.

Several processes (`runtime.processes`) run this side by side. They agree on whatever one of them alone sees:
the lock, the checkpoint, the clock, a signal. The first one writes what is written once.
"""

import contextlib
import time

from ml_collections import ConfigDict

from si_jax.runtime import processes, watchdog
from si_jax.runtime.agreement import check_identical
from si_jax.runtime.profiling import Profile
from si_jax.runtime.signals import InterruptGuard
from si_jax.runtime.terminal import stopped
from si_jax.training import helper as helpers
from si_jax.training.hooks import DivergedError as DivergedError
from si_jax.training.hooks import Hook, hooks_of
from si_jax.training.log import next_command
from si_jax.training.run import Run, begin
from si_jax.training.setup import (
    Setup,
    compile_train_step,
    data_facts,
    feed_of,
    rows_of_step,
    setup,
    with_helper,
)
from si_jax.training.state import TrainState
from si_jax.training.workdir import Workdir, open_everywhere


def setup_everywhere(config: ConfigDict) -> Setup:
    """`setup` in all processes of a run, which must come to the same.

    Raises:
        InputError: As there, in one of them or in all; or a process has another config, code or data.
    """
    ready = processes.agree_on_errors(lambda: setup(config))
    if processes.count() > 1:
        digests = {name: facts['digest'] for name, facts in data_facts(ready).items()}
        helper = ready.helper.digest if ready.helper else ''
        check_identical(
            {'config': ready.config.to_dict(), 'streamed': ready.streamed, 'helper': helper, **digests}
        )
    return ready


def run(config: ConfigDict, workdir: str, profile: str | None = None) -> TrainState:
    """Trains until the last epoch, or until asked to stop; the same call goes on from there.

    Args:
        config: As made by `si_jax.training.recipes`.
        workdir: Where checkpoints, metrics and config lie. Made if it does not exist.
        profile: A folder for a profile of a few steps; None for none.

    Returns:
        The final state.

    Raises:
        Stopped: A signal came, and the run was saved: a SystemExit that no caller need know.
        InputError: The config is wrong, or belongs to another run than the workdir.
        DivergedError: A loss or gradient was not finite. The last good state has been saved.
    """
    state = _run(config, workdir, profile)
    processes.say(next_command(workdir))
    return state


def _run(config: ConfigDict, workdir: str, profile: str | None = None) -> TrainState:
    ready = setup_everywhere(config)
    traced = Profile(profile) if profile and processes.is_first() else None
    with contextlib.ExitStack() as opened:
        place = opened.enter_context(open_everywhere(workdir, ready.config.to_dict()))
        ready = _with_helper(ready, place)
        guard = opened.enter_context(InterruptGuard())
        under_way = begin(ready, place)
        with contextlib.ExitStack() as stack:
            hooks = hooks_of(under_way, guard, traced)
            for hook in hooks:
                stack.callback(hook.close)
            under_way.feed = stack.enter_context(contextlib.closing(feed_of(ready)))
            finished = _train(under_way, hooks)
        if processes.is_first() and not (place.path / 'config.json').exists():
            under_way.record()  # of a finished run, whose config was lost
        if not finished:
            raise stopped(guard.name or 'SIGTERM', f'saved at step {under_way.step}')
        return under_way.state


def _with_helper(ready: Setup, place: Workdir) -> Setup:
    """The setup with its helper (HAT): where the config names none, one that is trained first.

    That is a run of its own in a folder of the workdir: it goes on where it was stopped, and one that is
    finished trains no more. Once the run itself has begun, its helper stays as it is.
    """
    config = helpers.config_of(ready.config) if ready.helper is None else None
    if config is None:
        return ready
    folder = str(place.path / helpers.FOLDER)
    if not place.resumed:
        processes.say(helpers.announced(ready.config, folder))
        try:
            _run(config, folder)
        except DivergedError as error:  # its command is that of the run that it helps
            words = str(error).replace(f'--workdir={folder}', f'--workdir={place.path}')
            raise DivergedError(f'the helper, which is trained first: {words}') from error
    ready = processes.agree_on_errors(lambda: with_helper(ready, folder))
    check_identical({'helper': ready.helper and ready.helper.digest})
    return ready


def _train(run: Run, hooks: list[Hook]) -> bool:
    """Trains until the last epoch; False if the run was asked to stop before."""
    ready = run.ready
    train_step = compile_train_step(ready)
    while (epoch := run.step // ready.steps_per_epoch) < ready.config.epochs:
        if run.watched.stopped_at:
            processes.say(run.watched.why())
            break
        run.epoch = epoch
        for step in range(run.step, (epoch + 1) * ready.steps_per_epoch):
            run.images = rows_of_step(ready, step) * max(1, ready.config.data.cutmix)
            run.began = time.monotonic()
            run.state, run.carry, run.metrics = train_step(run.state, run.carry, *run.feed(step))
            run.step = step + 1
            watchdog.at_step(run.step)
            for hook in hooks:
                hook.after_step(run)
            if run.stopping and not run.epoch_ended:
                return False
        for hook in hooks:
            hook.after_epoch(run)
        if run.stopping and not run.last_epoch:
            return False
    return True
