"""The training step: attack and update in one pure function, written for one shard of the batch.

A defense names its step, and `STEPS` has it. This one serves every defense that attacks, then updates.
TRADES, for example, is the row

    'trades': Defense(
        outer={'natural_ce': Term(1.0, natural_ce), 'kl': Term(6.0, kl)},
        inner=kl, passes=('nat', 'adv'), start='uniform', attack_bn='eval',
    )

of `si_jax.defenses`, where kl = KL(p(natural) || p(adversarial)) is one of `si_jax.objectives`. From it
the step does, in this order:

    x' = x + uniform noise of the ball                     start
    10 times: x' = project(x' + eps/4 sign(grad of kl))    inner, with the running statistics (attack_bn)
    forward passes of x, then of x', in train mode         passes, each moves the running statistics
    loss = mean(natural_ce) + 6 mean(kl)                   outer
    parameters and statistics, unless one is not finite    guarded_update
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from si_jax.attacks import pgd
from si_jax.attacks.pgd import Attack, KeyedClassifier
from si_jax.defenses import Defense
from si_jax.errors import InputError, unknown
from si_jax.outputs import Outputs, as_outputs, scaled_logits
from si_jax.threat import Threat
from si_jax.training.state import Batch, TrainState
from si_jax.training.update import Calendar, Rows, evaluate_terms, guarded_update, rows_of

Array = jax.Array
Carry = Any
Step = Callable[[TrainState, Carry, Batch], tuple[TrainState, Carry, dict[str, Array]]]


class Registered(NamedTuple):
    """A training step that a defense can name.

    Attributes:
        make: (defense, model, optimiser, *, ...) -> the step, with the parameters of `make_train_step`.
        carry: (batch size, (H, W, C)) -> what the step carries before the first step, in global row order.
        persistent: Whether the step moves a perturbation that is kept from batch to batch, as
            `Defense.persistent` says too.
    """

    make: Callable[..., Step]
    carry: Callable[[int, tuple[int, ...]], Carry]
    persistent: bool


STEPS: dict[str, Registered] = {}


def register_step(
    name: str,
    *,
    carry: Callable[[int, tuple[int, ...]], Carry] = lambda batch_size, shape: (),
    persistent: bool = False,
) -> Callable[[Callable[..., Step]], Callable[..., Step]]:
    """Decorates a function that makes a training step: a defense asks for it by this name."""

    def add(make: Callable[..., Step]) -> Callable[..., Step]:
        STEPS[name] = Registered(make, carry, persistent)
        return make

    return add


def step_of(defense: Defense) -> Registered:
    """The training step that a defense names.

    Raises:
        InputError: There is no such step, or it is not of the kind that the defense says.
    """
    if defense.step not in STEPS:
        raise unknown('training step', defense.step, STEPS)
    step = STEPS[defense.step]
    if step.persistent != defense.persistent:
        raise InputError(
            f'a defense with step={defense.step!r} has persistent={step.persistent}, not '
            f'{defense.persistent}: give persistent={step.persistent}'
        )
    return step


# Of batch.keys, whose two halves are the attack's.
_RANDOM_POINT = 2


@register_step('attack')
def make_train_step(
    defense: Defense,
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    threat: Threat,
    attack_steps: int,
    attack_step_size: float,
    axis_name: str | None,
    sync_bn: bool = True,
    calendar: Calendar | None = None,
) -> Step:
    """The step (state, carry, batch) -> (state, carry, metrics) of a defense that attacks, then updates.

    Args:
        defense: A row of `si_jax.defenses.DEFENSES`.
        model: `model.apply(variables, images, train=..., mask=...)` returns Outputs.
        optimiser: An optax transformation.
        threat: The ball of the training attack.
        attack_steps: Steps of the training attack.
        attack_step_size: As a fraction of the pixel range.
        axis_name: The axis to reduce over, as given to pmap or shard_map; None on one device without either.
        sync_bn: Whether the model's batch normalisation reduces over that axis. If not, the devices' running
            statistics are averaged after each step, so that all copies of the state stay equal.
        calendar: The length of the run; None where no weight of the defense changes over it.

    Returns:
        A pure function. `carry` is per-device state that a method may keep; here it passes through.
    """
    assert calendar is not None or not defense.scheduled, 'a defense whose weights change needs the calendar'

    def passes(
        params: Any, stats: Any, names: tuple[str, ...], images: dict[str, Array], mask: Array
    ) -> tuple[Any, dict[str, Outputs]]:
        """Forward passes in train mode, one after another: running statistics and outputs."""
        outputs: dict[str, Outputs] = {}
        for name in names:
            result, updates = model.apply(
                {'params': params, 'batch_stats': stats},
                images[name],
                train=True,
                mask=mask,
                mutable=['batch_stats'],
            )
            stats = updates.get('batch_stats', stats)
            outputs.setdefault(name, result)
        return stats, outputs

    def attacked_network(params: Any, stats: Any, mask: Array) -> KeyedClassifier:
        def classifier(images: Array, keys: Array) -> Outputs:
            del keys
            # Without `mutable` the running statistics stay as they are in either mode.
            variables, train = {'params': params, 'batch_stats': stats}, defense.attack_bn == 'train'
            outputs = as_outputs(model.apply(variables, images, train=train, mask=mask))

            def real(x: Array) -> Array:
                # In train mode the loss of a padded row would reach the real ones through the statistics.
                return jnp.where(mask[:, None], x, jax.lax.stop_gradient(x))

            features = None if outputs.features is None else real(outputs.features)
            return outputs._replace(logits=real(outputs.logits), features=features)

        return classifier

    def step(state: TrainState, carry: Carry, batch: Batch) -> tuple[TrainState, Carry, dict[str, Array]]:
        rows = rows_of(batch.mask, axis_name)
        position = calendar.at(state.step) if calendar else None
        attack = defense.attack_at(position)
        images = {'nat': batch.images}
        if attack is not None:
            images['start'] = pgd.starting_points(attack.start, threat, batch.images, batch.keys)
        if 'random' in defense.passes:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, _RANDOM_POINT))(batch.keys)
            images['random'] = batch.images + threat.uniform_noise(keys, batch.images)
        before, seen = passes(state.params, state.batch_stats, defense.before, images, batch.mask)

        def image_gradient(params: Any, name: str) -> Array:
            """Of the inner objective, at images of that name."""
            assert attack is not None
            network = attacked_network(params, before, batch.mask)
            value = pgd.value_function(
                attack.objective, attack.score, network, batch.labels, None, batch.keys
            )
            return value(jnp.asarray(0), images[name])[1]

        if attack is not None:
            network = attacked_network(state.params, before, batch.mask)
            if defense.calibrated:
                attack = attack._replace(
                    score=scaled_logits(_calibration(network(batch.images, batch.keys).logits, rows))
                )
            ascent = pgd.run(
                attack,
                network,
                batch.images,
                batch.labels,
                batch.keys,
                threat=threat,
                steps=attack_steps,
                step_size=attack_step_size,
                start=images['start'],
                natural=_score(attack, seen.get('nat')),
            )
            images['adv'] = jax.lax.stop_gradient(ascent.last)
        natural_gradient = image_gradient(state.params, 'nat') if defense.aligned else None

        def loss(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            stats, outputs = passes(params, before, defense.passes, images, batch.mask)
            gradients = None
            if natural_gradient is not None:
                gradients = image_gradient(params, 'random'), natural_gradient
            value, metrics = evaluate_terms(defense, outputs, gradients, batch, rows, position)
            return value, (stats, metrics)

        (value, (stats, metrics)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        new, metrics, _ = guarded_update(
            state,
            gradients,
            stats,
            {'loss': value, **metrics},
            defense=defense,
            optimiser=optimiser,
            rows=rows,
            sync_bn=sync_bn,
        )
        return new, carry, metrics

    return step


def _score(attack: Attack, natural: Outputs | None) -> Any:
    """The attack's score of natural outputs that a pass before it made."""
    return None if natural is None or 'nat' not in attack.objective.uses else attack.score(natural)


def _calibration(logits: Array, rows: Rows) -> Array:
    """2 / (median gap of the two highest logits over the real rows of all devices), without a gradient."""
    top = jax.lax.top_k(jax.lax.stop_gradient(logits), 2)[0]
    gaps = jnp.sort(rows.gathered(jnp.where(rows.mask, top[:, 0] - top[:, 1], jnp.inf)))
    median = (gaps[(rows.real - 1) // 2] + gaps[rows.real // 2]) / 2
    return 2 / jnp.maximum(median, 1e-12)
