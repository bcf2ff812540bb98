"""The two rates of this machine on a config's network: FLOP/s of attack steps, and of updates.

Measured on the compiled training step itself, with adversarial training's objective and random pixels: a step
with few and one with many attack steps, in turns.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from si_jax import defenses
from si_jax.cost import flops
from si_jax.cost.planning import Machine, model_of, source_of
from si_jax.defenses import DEFENSES, Defense
from si_jax.draws import key_of
from si_jax.runtime.devices import memory, place_rows, replicate
from si_jax.training.setup import Setup, assembled, compile_train_step, initial_carry, initial_state

FEW, MANY = 2, 8  # attack steps


def measure_machine(config: ConfigDict, *, turns: int = 3) -> Machine:
    """This machine with the rates of one of its devices, while all of them work on the config's network.

    Each step runs `turns` times, beside the first time, which compiles.
    """
    calls = {steps: timed(synthetic(config, steps)) for steps in (FEW, MANY)}
    taken: dict[int, list[float]] = {steps: [] for steps in calls}
    for _ in range(turns):
        for steps, call in calls.items():
            taken[steps].append(call())
    return machine_of(config, *(statistics.median(taken[steps]) for steps in (FEW, MANY)))


def machine_of(config: ConfigDict, few: float, many: float) -> Machine:
    """This machine, from the seconds of AT's step with `FEW` and with `MANY` attack steps."""
    source = source_of(config)
    devices = jax.local_device_count()
    flop = flops.network(model_of(config), source.shape).flops * config.batch_size / devices
    attack_step = max(many - few, 0.1 * many) / (MANY - FEW)
    update = max(few - FEW * attack_step, 0.1 * few)
    return Machine(
        name='CPU' if jax.default_backend() == 'cpu' else jax.local_devices()[0].device_kind,
        attack=2 * flop / attack_step,
        update=flops.training_passes(DEFENSES['at'], 0).update * flop / update,
        memory=memory(),
        link=None,
        accelerator=jax.default_backend() != 'cpu',
    )


def synthetic(config: ConfigDict, attack_steps: int, row: Defense | None = None) -> Setup:
    """What a run of a defense (by default AT) needs, with one batch of random pixels; nothing of it grows."""
    config = config.copy_and_resolve_references()
    config.attack.steps = attack_steps
    config.data.update(cutmix=0, stream='never')
    config.ramp.update(eps=(), step_size=(), steps=(), weights=(), terms='')
    source = source_of(config)
    if row is None:
        row, config.awp.gamma = DEFENSES['at'], 0.0
        if defenses.from_config(config.defense).hypersphere:
            row = defenses.with_he(row)
    rng = np.random.default_rng(0)
    images = rng.integers(0, source.scale, (config.batch_size, *source.shape), endpoint=True, dtype=np.uint8)
    labels = rng.integers(0, source.num_classes, config.batch_size, dtype=np.int32)
    train = source.dataset(config.data.name, images, labels)
    return assembled(config, row, train, train)


def arguments(ready: Setup) -> tuple[Any, ...]:
    """What the compiled step of `ready` is called with first."""
    rows = np.arange(ready.config.batch_size)[:, None], np.ones((ready.config.batch_size, 1), bool)
    return (
        replicate(initial_state(ready)),
        place_rows(initial_carry(ready)),
        replicate((ready.train.images, ready.train.labels)),
        place_rows(rows),
        replicate(key_of(ready.config.seed)),
    )


def timed(ready: Setup, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A function that makes one more training step and returns its seconds; it is compiled here."""
    step = compile_train_step(ready)
    state, carry, *rest = arguments(ready)
    state, carry, _ = jax.block_until_ready(step(state, carry, *rest))

    def call() -> float:
        nonlocal state, carry
        began = clock()
        state, carry, _ = jax.block_until_ready(step(state, carry, *rest))
        return clock() - began

    return call
