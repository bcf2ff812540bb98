"""Whether an accuracy under SI attacks can be believed: how cosines and logits of the clean images differ.

SI attacks climb the cosines between the features z and the weights W_k of each class. The logits, which
decide, also depend on the lengths |W_k| and on the bias b. Where the class of the largest cosine is another
than that of the largest logit, the attack aims at the wrong class. Where the cosines lie close together, its
softmax is nearly uniform and its gradient looks at all classes alike. Both make it weak, and say nothing
about the robustness of the classifier.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.tolerances import gaps
from si_jax.outputs import SI_SCALE

# Below these SI-PGD was found weaker than PGD: on cnn_a_adv4 (agreement 0.5, gap 0.2) by 7 points.
AGREEMENT = 0.9
GAP = 1.0


# The names of what `measure` returns.
FIELDS = (
    'agreement',
    'scaled_gap',
    'weight_norm_spread',
    'bias_spread',
    'logit_gap',
    'mean_feature_norm',
    'mean_true_cosine',
)


def norms(vectors: jax.Array, axis: int) -> jax.Array:
    """Lengths along an axis, without overflow: squares of 1e20 are infinite in float32."""
    largest = jnp.abs(vectors).max(axis=axis, keepdims=True)
    unit = vectors / jnp.where(largest > 0, largest, 1)
    return jnp.squeeze(largest, axis) * jnp.linalg.norm(unit, axis=axis)


def measure(
    logits: np.ndarray,
    products: np.ndarray,
    feature_norms: np.ndarray,
    weight_norms: np.ndarray,
    labels: np.ndarray,
) -> dict[str, float]:
    """The numbers that belong to every result of an SI attack, as `Result.si` holds them.

    Args:
        logits: [M, K]. The first N rows are of the clean images; more may follow, for the fit alone.
        products: [M, K], features @ kernel.
        feature_norms: [M], |z|.
        weight_norms: [M, K], |W_k|, the same in every row.
        labels: [N].
    """
    count = len(labels)
    logits, products = np.asarray(logits, np.float64), np.asarray(products, np.float64)
    g, p = logits - logits.mean(axis=0), products - products.mean(axis=0)
    scale = np.sum(g * p) / max(np.sum(p * p), np.finfo(float).tiny)
    bias = (logits - scale * products)[:count].mean(axis=0)
    logits, lengths = logits[:count], np.asarray(feature_norms[:count], np.float64)
    weights = np.asarray(weight_norms[0], np.float64)
    # The floors are those of `outputs.cosine`.
    cosines = products[:count] / (np.maximum(lengths, 1e-12)[:, None] * np.maximum(weights, 1e-12))
    return {
        'agreement': float(np.mean(cosines.argmax(axis=1) == logits.argmax(axis=1))),
        'scaled_gap': float(SI_SCALE * np.median(gaps(cosines))),
        'weight_norm_spread': float(weights.std() / max(weights.mean(), 1e-12)),
        'bias_spread': float(bias.std()),
        'logit_gap': float(np.median(gaps(logits))),
        'mean_feature_norm': float(lengths.mean()),
        'mean_true_cosine': float(cosines[np.arange(count), labels].mean()),
    }


def note(si: dict[str, float], count: int) -> str:
    """What `measure` found on so many images, for the lines under a table."""
    weights = 100 * si['weight_norm_spread']
    return (
        f'of the SI attacks, on the clean images: the largest cosine is of the same class as the largest '
        f'logit on {round(si["agreement"] * count)} of {count}; {SI_SCALE:g} x the median gap of the two '
        f'largest cosines is {si["scaled_gap"]:.3g}; |W_k| has std/mean {weights:.3g} %, b a std of '
        f'{si["bias_spread"]:.3g} where the median gap of the two largest logits is {si["logit_gap"]:.3g}; '
        f'mean |z| {si["mean_feature_norm"]:.4g}, mean cosine of the true class '
        f'{si["mean_true_cosine"]:.3g}'
    )


def warnings(si: dict[str, float] | None, count: int, names: Sequence[str]) -> list[str]:
    """Where SI attacks of these names are known to be weak, from what `measure` found on so many images."""
    if si is None or not names:
        return []
    found = []
    if si['agreement'] < AGREEMENT:
        agreeing = round(si['agreement'] * count)
        low, high = (100 * bound for bound in wilson(agreeing, count))
        found.append(
            f'the largest cosine is of the same class as the largest logit on only {agreeing} of {count} '
            f'clean images ({low:.1f} to {high:.1f} % of others like them; below {100 * AGREEMENT:g} % '
            'SI attacks are known to be weak)'
        )
    if si['scaled_gap'] < GAP:
        found.append(
            f'{SI_SCALE:g} times the median gap between the two largest cosines is {si["scaled_gap"]:.3g} on '
            f'{count} clean images (below {GAP:g} the softmax of the cosines is nearly uniform)'
        )
    if not found:
        return []
    return [
        f'{", ".join(names)} may be weak on this classifier and its accuracy too high: {"; ".join(found)}. '
        'Trust autoattack, or the worst case together with attacks on the logits (pgd, cw)'
    ]
