"""Augmented copies of a batch, each a branch of the loss with batch normalisation of its own (DAJAT).

    loss = mean over the branches of the loss of each + w JS(p_0, p_1, ...)

with p_b the natural probabilities of branch b and JS the mean divergence KL(p_b || mean of them). Branch 0
is the batch as any defense sees it, and its set of statistics and affine parameters is evaluated; the
copies share the other set (`si_jax.models.batch_norm`). Each branch is attacked with its own set.

Source: Addepalli et al. (2022), repository val-iisc/DAJAT, train_DAJAT.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from si_jax.outputs import Outputs
from si_jax.training.state import Batch
from si_jax.training.update import Ingredients, Rows, weighted

Array = jax.Array
# Of batch.keys, after those of single branches and of E-AT; a copy's number is added.
_COPY = 7


def of(parts: Ingredients, batch: Batch) -> list[tuple[Ingredients, Batch]]:
    """The branches: each with the network that has its set, and with its images and random numbers."""
    found = [(parts, batch)]
    if batch.augmented:
        copies = parts.with_model(parts.model.clone(bn_branch=1))
        for number, images in enumerate(batch.augmented):
            keys = jax.vmap(lambda key: jax.random.fold_in(key, _COPY + number))(batch.keys)  # noqa: B023
            found.append((copies, batch._replace(images=images, keys=keys, augmented=())))
    return found


def joined(
    parts: Ingredients,
    metrics: Sequence[dict[str, Array]],
    outputs: Sequence[dict[str, Outputs]],
    batch: Batch,
    rows: Rows,
) -> dict[str, Array]:
    """The shard's part of the means of the terms over the branches, and of the terms between branches.

    `metrics` and `outputs` are those of each branch; accuracies are those of the first.
    """
    found = dict(metrics[0])
    for name, term in parts.defense.outer.items():
        if term.of_branches:
            scores = jnp.stack([term.score(of_branch['nat']) for of_branch in outputs])
            per_image = term.objective(None, scores, batch.labels)
            found[name] = rows.mean(per_image, weighted(parts, batch))
        else:
            values = [one[name] for one in metrics]
            found[name] = sum(values[1:], values[0]) / len(values)
    return found
