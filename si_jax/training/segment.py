"""ELLE's random segments of the ball: is the loss a straight line along them?

Source: Abad Rocamora et al. (2024), repository LIONS-EPFL/ELLE, core/utils/train.py.
"""

import jax
import jax.numpy as jnp

from si_jax.defenses import SEGMENT, Defense
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from si_jax.training.state import Batch

Array = jax.Array
# Of batch.keys, after those of the attack and of the pass 'random'.
_ENDS, _SHARE = (3, 4), 5


def _keys(batch: Batch, number: int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(batch.keys)


def _shares(batch: Batch) -> Array:
    """How far the middle lies from the first end, as a share of the segment: uniform in [0, 1), [B]."""
    dtype = batch.images.dtype
    return jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(_keys(batch, _SHARE))


def points(threat: Threat, batch: Batch) -> Array:
    """Two uniform points of the ball for each image, then one between them: [3 B, H, W, C], not clipped."""
    first, last = (
        batch.images + threat.uniform_noise(_keys(batch, number), batch.images) for number in _ENDS
    )
    share = _shares(batch)[:, None, None, None]
    return jnp.concatenate([first, last, (1 - share) * first + share * last])


def losses(defense: Defense, outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
    """The loss of the attack at the middles, and the straight line's value there, each [B].

    `outputs` are those of `points`.
    """
    assert defense.inner is not None
    labels = jnp.tile(batch.labels, SEGMENT)
    values = defense.inner(defense.inner_score(outputs), None, labels).reshape(SEGMENT, -1)
    share = _shares(batch)
    return values[2], (1 - share) * values[0] + share * values[1]
