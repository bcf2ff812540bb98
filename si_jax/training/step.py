"""The training step: attack and update in one pure function, written for one shard of the batch.

A defense names its step, and `STEPS` has it. This one serves every defense that attacks, then updates.
TRADES, for example, is the row

    'trades': Defense(
        outer={'natural_ce': Term(1.0, natural_ce), 'kl': Term(6.0, kl)},
        inner=kl, passes=('nat', 'adv'), start='uniform', attack_bn='eval',
    )

of `si_jax.defenses`, where kl = KL(p(natural) || p(adversarial)) is one of `si_jax.objectives`. From it
the step does, in this order:

    x' = x + uniform noise of the ball                     `_images`: start
    10 times: x' = project(x' + eps/4 sign(grad of kl))    `by_pgd`: inner, with attack_bn's statistics
    forward passes of x, then of x', in train mode         `_passes`: each moves the running statistics
    loss = mean(natural_ce) + 6 mean(kl)                   `evaluate_terms`: outer
    parameters and statistics, unless one is not finite    `guarded_update`

A defense with augmented copies (`si_jax.training.branches`) does the first four lines for each of them.

With adversarial weight perturbation (AWP) the last two happen at w + gamma v, where v climbs the same loss
from w (`si_jax.training.awp`).

The function `step` in `make_train_step` is these lines in code; the functions below it say how each is done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from si_jax.attacks import pgd
from si_jax.attacks.pgd import Attack, KeyedClassifier
from si_jax.defenses import HELPED, SEGMENT, Defense
from si_jax.errors import InputError, unknown
from si_jax.objectives import with_soft_labels
from si_jax.outputs import Outputs, as_outputs, scaled_logits
from si_jax.training import branches, helper, segment
from si_jax.training.state import Batch, TrainState
from si_jax.training.update import Ingredients, Rows, evaluate_terms, guarded_update, rows_of, total

Array = jax.Array
Carry = Any
Step = Callable[[TrainState, Carry, Batch], tuple[TrainState, Carry, dict[str, Array]]]
StepMaker = Callable[[Ingredients], Step]
Maker = TypeVar('Maker', bound=StepMaker)


class Attacked(NamedTuple):
    """What the attack inside a step has before it.

    Attributes:
        parts: The ingredients as they are in this step.
        attack: What is climbed, from where.
        network: The network as the attack sees it.
        batch: The shard of the batch.
        rows: Its rows among those of all devices.
        start: [B, H, W, C], where the attack starts in the ball of `parts.threat`.
        natural: The outputs of a natural pass before the attack; None without one.
        memory: That of the state.
    """

    parts: Ingredients
    attack: Attack
    network: KeyedClassifier
    batch: Batch
    rows: Rows
    start: Array
    natural: Outputs | None
    memory: Any

    @property
    def natural_score(self) -> Any:
        """What the attack compares with; None if nothing, or if it has to compute it."""
        if self.natural is None or 'nat' not in self.attack.objective.uses:
            return None
        return self.attack.score(self.natural)


# -> the adversarial images [B, H, W, C], and what the memory is updated from, by name: of the shard.
Adversary = Callable[[Attacked], tuple[Array, dict[str, Array]]]


class Registered(NamedTuple):
    """A training step that a defense can name.

    Attributes:
        make: Makes the step of its ingredients.
        carry: (batch size, (H, W, C)) -> what the step carries before the first step, in global row order.
        persistent: Whether the step moves a perturbation that is kept from batch to batch, as
            `Defense.persistent` says too.
        awp: Whether it perturbs the weights where `Ingredients.awp` says so.
        best_point: Whether it trains on points of highest loss, as `Defense.best_point` says too.
    """

    make: StepMaker
    carry: Callable[[int, tuple[int, ...]], Carry]
    persistent: bool
    awp: bool = False
    best_point: bool = False


STEPS: dict[str, Registered] = {}


def register_step(
    name: str,
    *,
    carry: Callable[[int, tuple[int, ...]], Carry] = lambda batch_size, shape: (),
    persistent: bool = False,
    awp: bool = False,
    best_point: bool = False,
) -> Callable[[Maker], Maker]:
    """Decorates a function that makes a training step: a defense asks for it by this name."""

    def add(make: Maker) -> Maker:
        STEPS[name] = Registered(make, carry, persistent, awp, best_point)
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
    for name in ('persistent', 'best_point'):
        right, given = getattr(step, name), getattr(defense, name)
        if right != given:
            raise InputError(
                f'a defense with step={defense.step!r} has {name}={right}, not {given}: give {name}={right}'
            )
    return step


def by_pgd(given: Attacked) -> tuple[Array, dict[str, Array]]:
    """The last points of PGD from the start."""
    parts = given.parts
    ascent = pgd.run(
        given.attack,
        given.network,
        given.batch.images,
        given.batch.labels,
        given.batch.keys,
        threat=parts.threat,
        steps=parts.attack_steps,
        step_size=parts.attack_step_size,
        start=given.start,
        natural=given.natural_score,
    )
    return ascent.last, {}


@register_step('attack', awp=True)
def make_train_step(ingredients: Ingredients, adversary: Adversary = by_pgd) -> Step:
    """The step (state, carry, batch) -> (state, carry, metrics) of a defense that attacks, then updates.

    It is a pure function. `carry` is per-device state that a method may keep; here it passes through. The
    `adversary` makes the adversarial images.
    """
    defense, calendar = ingredients.defense, ingredients.calendar
    assert calendar is not None or not defense.scheduled, 'a defense whose weights change needs the calendar'

    def step(state: TrainState, carry: Carry, batch: Batch) -> tuple[TrainState, Carry, dict[str, Array]]:
        parts = ingredients.at(state.step, batch.images.dtype)
        rows = rows_of(batch.mask, parts.axis_name)
        position = calendar.at(state.step, state.memory) if calendar else None

        def attack_with(score: Callable[[Any], Array] | None = None) -> Attack | None:
            attack = defense.attack_at(position, rows, score)
            if attack is not None and batch.soft is not None:
                attack = attack._replace(objective=with_soft_labels(attack.objective, batch.soft))
            return attack

        attacked, before = [], state.batch_stats
        counted: dict[str, Array] = {}
        for of_branch, copy in branches.of(parts, batch):
            branch, before, seen = _attacked(of_branch, attack_with, adversary, state, before, copy, rows)
            attacked.append(branch)
            counted = counted or seen

        def gradient_at(name: str, params: Any) -> Array:
            network = _attacked_network(parts, params, before, batch.mask)
            return _image_gradient(attacked[0].attack, network, batch, attacked[0].images[name])

        natural_gradient = gradient_at('nat', state.params) if defense.aligned else None

        def loss(
            params: Any, passes: tuple[str, ...] = defense.passes, among: int | None = None
        ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            stats, outputs, values = before, [], []
            for branch in attacked[:among]:
                stats, found = _passes(branch.parts, params, stats, passes, branch.images, batch.mask)
                pair = None if natural_gradient is None else (gradient_at('random', params), natural_gradient)
                given = found, pair, branch.batch, rows, position, branch.labels
                values.append(evaluate_terms(parts, *given))
                outputs.append(found)
            value, metrics = values[0]
            if len(values) > 1:
                metrics = branches.joined(parts, [terms for _, terms in values], outputs, batch, rows)
                value = total(defense, metrics, position)
            return value, (stats, metrics)

        params, offset = state.params, None
        if parts.awp is not None:
            # Of several branches the weights climb the loss of the first.
            climbed = jax.grad(lambda params: loss(params, defense.read_passes, 1)[0])
            offset = parts.awp.offset(state.step, params, climbed, rows.total)
            params = optax.tree.add(params, offset)
        (value, (stats, metrics)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        metrics = {'loss': value, **metrics, **counted}
        new, metrics, _ = guarded_update(parts, rows, state, gradients, stats, metrics, offset)
        return new, carry, metrics

    return step


class Branch(NamedTuple):
    """The batch or an augmented copy of it, attacked: what the update sees of it.

    Attributes:
        parts: With the network of its branch.
        batch: With the images of its branch.
        attack: The attack on them.
        images: Of each pass.
        labels: Of the passes that have labels of their own.
    """

    parts: Ingredients
    batch: Batch
    attack: Attack | None
    images: dict[str, Array]
    labels: dict[str, Array]


def _attacked(
    parts: Ingredients,
    attack_with: Callable[..., Attack | None],
    adversary: Adversary,
    state: TrainState,
    stats: Any,
    batch: Batch,
    rows: Rows,
) -> tuple[Branch, Any, dict[str, Array]]:
    """A branch with its adversarial images, the running statistics after the passes before the attack, and
    what the adversary counted."""
    defense, labels, attack = parts.defense, {}, attack_with()
    counted: dict[str, Array] = {}
    images = _images(parts, attack, batch)
    before, seen = _passes(parts, state.params, stats, defense.before, images, batch.mask)
    if attack is not None:
        # In train mode the running statistics only say around which mean the batch's are summed. With those
        # from before the pass at 'start', the attack's first pass equals that one, and XLA makes it once.
        around = stats if defense.attack_bn == 'train' else before
        network = _attacked_network(parts, state.params, around, batch.mask)
        if defense.calibrated:
            factor = _calibration(network(batch.images, batch.keys).logits, rows)
            attack = attack_with(scaled_logits(factor))
            assert attack is not None
        known = Attacked(parts, attack, network, batch, rows, images['start'], seen.get('nat'), state.memory)
        images['adv'], counted = jax.lax.stop_gradient(adversary(known))
    if HELPED in defense.passes:
        assert parts.helper is not None
        given = defense, parts.helper, state.memory, batch.images, images['adv']
        images[HELPED], labels[HELPED] = helper.beyond(*given)
    return Branch(parts, batch, attack, images, labels), before, counted


# Of batch.keys, whose two halves are the attack's.
_RANDOM_POINT = 2


def _images(parts: Ingredients, attack: Attack | None, batch: Batch) -> dict[str, Array]:
    """The images known before the attack: of every pass but 'adv', and 'start', where they are needed."""
    images = {'nat': batch.images}
    if attack is not None:
        images['start'] = pgd.starting_points(attack.start, parts.threat, batch.images, batch.keys)
    if 'random' in parts.defense.passes:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _RANDOM_POINT))(batch.keys)
        images['random'] = batch.images + parts.threat.uniform_noise(keys, batch.images)
    if 'segment' in parts.defense.passes:
        images['segment'] = segment.points(parts.threat, batch)
    return images


def _passes(
    parts: Ingredients, params: Any, stats: Any, names: tuple[str, ...], images: dict[str, Array], mask: Array
) -> tuple[Any, dict[str, Outputs]]:
    """Forward passes in train mode, one after another: running statistics, and the first outputs of each."""
    outputs: dict[str, Outputs] = {}
    for name in names:
        real = jnp.tile(mask, SEGMENT) if name == 'segment' else mask
        stats, result = parts.train_pass(params, stats, images[name], real)
        outputs.setdefault(name, result)
    return stats, outputs


def _attacked_network(parts: Ingredients, params: Any, stats: Any, mask: Array) -> KeyedClassifier:
    """The network as the attack inside training sees it; its running statistics stay as they are."""

    def classifier(images: Array, keys: Array) -> Outputs:
        del keys
        # Without `mutable` the running statistics stay as they are in either mode.
        variables, train = {'params': params, 'batch_stats': stats}, parts.defense.attack_bn == 'train'
        outputs = as_outputs(parts.model.apply(variables, images, train=train, mask=mask))

        def real(x: Array) -> Array:
            # In train mode the loss of a padded row would reach the real ones through the statistics.
            return jnp.where(mask[:, None], x, jax.lax.stop_gradient(x))

        features = None if outputs.features is None else real(outputs.features)
        return outputs._replace(logits=real(outputs.logits), features=features)

    return classifier


def _image_gradient(attack: Attack | None, network: KeyedClassifier, batch: Batch, images: Array) -> Array:
    """The gradient of the inner objective with respect to these images."""
    assert attack is not None
    value = pgd.value_function(attack.objective, attack.score, network, batch.labels, None, batch.keys)
    return value(jnp.asarray(0), images)[1]


def _calibration(logits: Array, rows: Rows) -> Array:
    """2 / (median gap of the two highest logits over the real rows of all devices), without a gradient."""
    top = jax.lax.top_k(jax.lax.stop_gradient(logits), 2)[0]
    gaps = jnp.sort(rows.gathered(jnp.where(rows.mask, top[:, 0] - top[:, 1], jnp.inf)))
    median = (gaps[(rows.real - 1) // 2] + gaps[rows.real // 2]) / 2
    return 2 / jnp.maximum(median, 1e-12)
