"""Which part of the evaluation runs an attack: the PGD family, a cascade, a callable, or a transfer."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from si_jax.attacks import registry
from si_jax.attacks.pgd import Attack
from si_jax.evaluation import cascade, custom, pgd, transfer
from si_jax.evaluation.network import Program
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.state import Saved
from si_jax.runtime.progress import GRADIENT, Progress
from si_jax.threat import Threat


class Plan(NamedTuple):
    """What is evaluated, and how.

    Attributes:
        program: The classifier with its data.
        logits: [N, K], of the clean images.
        own: The user's attacks by name.
        sources: The sources of transfer rows by name.
        threat: The ball.
        steps: Of the PGD family.
        step_size: Likewise.
        restarts: Likewise, and of callables.
        eot_samples: Gradients averaged in each step.
        individual: As in `run_stages`.
        keep: Whether the adversarial images are wanted.
        saved: What is finished already.
    """

    program: Program
    logits: np.ndarray
    own: dict[str, Attack | custom.Own]
    sources: dict[str, Program]
    threat: Threat
    steps: int
    step_size: float
    restarts: int
    eot_samples: int
    individual: bool
    keep: bool
    saved: Saved


def cost(plan: Plan, name: str) -> int:
    """The forward passes that the attack makes of an image, at most and roughly: for the progress."""
    each = GRADIENT * plan.eot_samples
    if name in plan.sources:
        return 2 * each * plan.steps
    attack = _record(plan, name)
    if attack is not None:
        steps = plan.steps if attack.steps is None else attack.steps
        return _restarts(plan, attack) * each * steps
    if name in plan.own:
        return plan.restarts * custom.COST
    classes = plan.logits.shape[1]
    stages = registry.stages(name, plan.eot_samples)
    return sum(cascade.runs(stage, classes) * cascade.cost(stage, classes) for stage in stages)


def run(plan: Plan, name: str, bar: Progress) -> tuple[AttackRecord, np.ndarray, dict[str, float]]:
    """Runs one attack.

    Returns:
        The record, the adversarial images (empty unless they are kept), and the seconds of its stages.
    """
    common: dict[str, Any] = {'keep': plan.keep, 'bar': bar, 'saved': plan.saved}
    if name in plan.sources:
        clean = np.argmax(plan.logits, axis=1) == plan.program.labels
        steps = plan.threat, plan.steps, plan.step_size, plan.eot_samples
        return *transfer.run(plan.program, plan.sources[name], name, *steps, clean=clean, **common), {}
    attack = _record(plan, name)
    if attack is not None:
        record, images = pgd.run(
            plan.program,
            name,
            attack,
            plan.threat,
            _restarts(plan, attack),
            plan.steps,
            plan.step_size,
            plan.eot_samples,
            unit=custom.UNIT + name if name in plan.own else name,
            **common,
        )
        if name in plan.own:
            record = dataclasses.replace(record, protocol=custom.protocol(name, attack))
        return record, images, {}
    function: Any = plan.own.get(name)
    if function is not None:
        return *custom.run(plan.program, name, function, plan.threat, plan.restarts, **common), {}
    stages = registry.stages(name, plan.eot_samples)
    setting = cascade.Cascade(plan.program, plan.logits, plan.threat, plan.saved, plan.keep, bar)
    return cascade.run_stages(setting, name, stages, individual=plan.individual)


def _record(plan: Plan, name: str) -> Attack | None:
    attack = plan.own.get(name, registry.ATTACKS.get(name))
    return attack if isinstance(attack, Attack) else None


def _restarts(plan: Plan, attack: Attack) -> int:
    return plan.restarts if attack.steps is None else 1
