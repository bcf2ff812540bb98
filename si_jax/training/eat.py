"""E-AT's training step: APGD in one of several threat models for each batch, the weaker ones more often.

A network that withstands the largest changes in Linf and those in L1 withstands L2's too, so E-AT trains in
these two, each batch in one of them, at the price of one. It draws the one in proportion to the share of
images that fell in it so far in the run. The images trained on are APGD's points of highest loss.

Source: Croce and Hein (2022), Adversarial robustness against multiple and single l_p-threat models via quick
fine-tuning of robust classifiers; details as in repository fra31/robust-finetuning, train.py and
autopgd_train.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from si_jax.attacks import apgd, apgd_l1, pgd
from si_jax.attacks.ascent import Ascent
from si_jax.defenses import WITHSTOOD
from si_jax.threat import Threat
from si_jax.training.step import Attacked, Step, make_train_step, register_step
from si_jax.training.update import Ingredients

Array = jax.Array

FIRST_SHARE = 0.05  # of the pixels in the first step in L1, where evaluation takes 0.2
UNKNOWN = 0.5  # the share that counts as fallen in each, until there was a batch in all of them
# Of batch.keys, after those of `segment`.
_CHOICE = 6


@register_step('apgd', awp=True, best_point=True)
def make_apgd_step(ingredients: Ingredients) -> Step:
    """The step of `make_train_step` with APGD, in a threat model that is drawn where there are several."""
    return make_train_step(ingredients, by_apgd)


def by_apgd(given: Attacked) -> tuple[Array, dict[str, Array]]:
    """APGD's points of highest loss, and how many images withstood in which threat model."""
    batch, threats = given.batch, (given.parts.threat, *given.parts.defense.others)
    if len(threats) == 1:
        return _ascent(given, threats[0]).best, {}

    def points(threat: Threat) -> Callable[[], tuple[Array, Array]]:
        def made() -> tuple[Array, Array]:
            ascent = _ascent(given, threat)
            return ascent.best, ascent.fooled

        return made

    key = jax.random.fold_in(batch.keys[0], _CHOICE)
    # Every device draws by its own first image; that of the first device holds for all.
    chosen = given.rows.gathered(drawn(key, given.memory[WITHSTOOD])[None])[0]
    images, fooled = jax.lax.switch(chosen, [points(threat) for threat in threats])
    seen = jnp.stack([jnp.sum(batch.mask & ~fooled), jnp.sum(batch.mask)]).astype(jnp.int32)
    return images, {WITHSTOOD: jnp.zeros((len(threats), 2), jnp.int32).at[chosen].set(seen)}


def drawn(key: Array, counts: Array) -> Array:
    """The number of a threat model, [] int32, in proportion to the share of images that fell in it.

    Args:
        key: A typed PRNG key.
        counts: [T, 2]: how many images withstood in each, and how many there were.
    """
    withstood, seen = counts[:, 0], counts[:, 1]
    # Where not one image fell, too, each is as likely as another.
    known = jnp.all(seen > 0) & jnp.any(withstood < seen)
    fallen = jnp.where(known, 1 - withstood / jnp.maximum(seen, 1), UNKNOWN).astype(jnp.float32)
    ends = jnp.cumsum(fallen)
    point = jax.random.uniform(key, (), jnp.float32) * ends[-1]
    return jnp.sum(point >= ends[:-1]).astype(jnp.int32)


def _ascent(given: Attacked, threat: Threat) -> Ascent:
    parts, images = given.parts, given.batch.images
    if threat.ball.sparse:
        rule = apgd_l1.rule(threat, images, parts.attack_steps, largereps=False, first_share=FIRST_SHARE)
    else:
        rule = apgd.rule(threat, parts.attack_steps)
    return pgd.run(
        given.attack._replace(rule=lambda step_size: rule),
        given.network,
        images,
        given.batch.labels,
        given.batch.keys,
        threat=threat,
        steps=parts.attack_steps,
        step_size=threat.eps,
        natural=given.natural_score,
        with_last=True,
    )
