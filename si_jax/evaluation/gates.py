"""All that must hold of an evaluation.

Before the attacks: whether they fit the classifier, and whether it is a function of the image alone. These
gates raise `InputError` with the value, the limit and the remedy. After them: what makes their numbers
doubtful. These give warnings. Every gate asks all attacks in the same way, by what is known of their parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.facts import Facts
from si_jax.attacks.registry import PRESETS
from si_jax.errors import InputError
from si_jax.evaluation.classifier import Classifier
from si_jax.evaluation.result import AttackRecord
from si_jax.outputs import Outputs

Array = jax.Array

# Two forward passes of the same images agree to this fraction of the logits' range. Another batch size or
# algorithm moves float32 logits by about 1e-6 of it; batch statistics or dropout move them by 1e-2 and more.
AGREEMENT = 1e-3
PROBE = 8  # images in a probe
NO_GRADIENT = 0.01  # the share of images without a gradient that is worth a warning
SHORT = 0.01  # how far a clean accuracy may be below the stated one
MASKED = 0.002  # the accuracy that black-box attacks may take off after the others


class Part(NamedTuple):
    """A part of an attack, as the gates see it: what runs, and what is known of it.

    Attributes:
        attack: What it is called in messages.
        facts: What is known of it; None for images from elsewhere, and for a callable of the user's.
        eot_samples: Gradients averaged in each step; None where nobody knows.
        elsewhere: Whether its images were made on another classifier.
    """

    attack: str
    facts: Facts | None
    eot_samples: int | None
    elsewhere: bool = False

    @property
    def without_gradient(self) -> bool | None:
        """Whether it does not see the gradient of the classifier; None if that is not known."""
        if self.facts is None:
            return True if self.elsewhere else None
        return not self.facts.uses_gradient


class Gated(Protocol):
    """An attack with its parts in order."""

    @property
    def name(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...


def check_labels_of(classes: int, labels: np.ndarray) -> None:
    """Whether labels [N] are among so many classes."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise InputError(
            f'labels[{i}]={labels[i]} is not in [0, {classes}): the classifier has {classes} classes'
        )


def check_fits(attack: Gated, outputs: Outputs, why_no_features: str) -> None:
    """Whether an attack can run on a classifier with outputs of these shapes.

    `why_no_features` says why features and kernel were not found, if they were looked for.
    """
    classes = outputs.logits.shape[1]
    for part in attack.parts:
        if part.facts is None:
            continue
        if classes < part.facts.least_classes:
            raise InputError(
                f'attack {attack.name!r} needs at least {part.facts.least_classes} classes, the classifier '
                f"has {classes}: use 'pgd' or 'cw'"
            )
        if part.facts.reads_features and outputs.features is None:
            raise InputError(
                f'attack {attack.name!r} needs the features and the kernel of the last linear layer'
                f'{why_no_features and f", and none was found: {why_no_features}"}: let the classifier return'
                ' si_jax.Outputs(logits, features, kernel), or leave this attack out'
            )


def probe(classifier: Classifier, images: np.ndarray, keys: Array) -> Outputs:
    """The outputs for images [P, H, W, C] with keys [P], followed by those for the inverted images.

    The classifier is called as given, in different batches. It is not compiled: randomness of the host would
    be frozen in a compiled program.

    Raises:
        InputError: Two calls on the same images disagree, or the logits of an image depend on the other
            images of its batch.
    """
    outputs, difference = repeated(classifier, images, keys)
    if difference:
        given, remedy = 'on the same images', 'switch dropout and other randomness off, or, if it belongs to '
        remedy += 'the defense, draw it from keys and wrap the function as si_jax.Randomised(function)'
        if classifier.randomised:
            given = 'with the same images and keys'
            remedy = 'a Randomised classifier must draw everything from its keys'
        raise InputError(f'two calls {given} disagree by {difference}: {remedy}')
    if difference := mixed(classifier, images, keys, outputs):
        raise InputError(
            f'the logits of an image change by {difference} with the other images of its batch: put batch '
            'normalisation into evaluation mode (train=False, running averages), and let each row of a '
            'Randomised classifier use its own key only'
        )
    return outputs


def repeated(classifier: Classifier, images: np.ndarray, keys: Array) -> tuple[Outputs, str]:
    """The outputs for images and inverted ones, and how far a second call's are from them, in words or ''."""
    both = jnp.asarray(np.concatenate([images, 1 - images]))
    outputs = classifier.function(both, jnp.concatenate([keys, keys]))
    again = classifier.function(both, jnp.concatenate([keys, keys]))
    return outputs, disagreement(outputs.logits, again.logits)


def mixed(classifier: Classifier, images: np.ndarray, keys: Array, outputs: Outputs) -> str:
    """How far the logits move if other images are in the batch than in that of `repeated`, in words or ''.

    The same images come last and in reverse, among copies of one image instead of the inverted ones.
    """
    count = len(images)
    batch = jnp.asarray(np.concatenate([np.repeat(images[:1], count, axis=0), images[::-1]]))
    elsewhere = classifier.function(batch, jnp.concatenate([keys, keys[::-1]]))
    return disagreement(outputs.logits[:count], elsewhere.logits[count:][::-1])


def disagreement(logits: Any, others: Any) -> str:
    """How far two passes over the same images [B, K] are apart, in words; '' if they agree to rounding."""
    # NaN as 0: that there are none is checked apart from this.
    logits, others = (np.nan_to_num(np.asarray(array, np.float64)) for array in (logits, others))
    spread = float(np.ptp(logits))
    largest = float(np.abs(logits - others).max())
    return '' if largest <= AGREEMENT * spread else f'{largest:.3g} (the range of the logits is {spread:.3g})'


def check_compiled(compiled: Any, eager: Any) -> None:
    """Whether the compiled classifier is the one that was given, by logits [B, K] for the same images."""
    if difference := disagreement(compiled, eager):
        raise InputError(
            f'compiled by JAX the classifier disagrees with itself by {difference}: it must depend on its '
            'arguments and on constant arrays only, not on the state of Python objects, files or the clock'
        )


def check_finite(logits: Any, indices: np.ndarray, what: str) -> None:
    """Raises InputError with the first of the images, by its index, whose logits [B, K] are not finite."""
    finite = np.isfinite(np.asarray(logits)).all(axis=1)
    if not finite.all():
        raise InputError(
            f'the classifier returns NaN or infinite logits for {what} {indices[np.argmin(finite)]}: no '
            'accuracy can be told; look for a division by zero, an overflow (half precision) or weights that '
            'have diverged'
        )


def check_explained(logits: Any, products: Any) -> None:
    """Whether features and kernel explain the logits up to one positive scale and one bias a class.

    SI attacks maximise the angle between features and kernel. If these are not what the logits are made of,
    the attack is blind, and the classifier would pass as robust.

    Raises:
        InputError: logits = alpha products + b with alpha > 0, where logits and products (features @ kernel)
            are [N, K], does not hold to 1e-3 of the logits' spread over images.
    """
    logits, products = np.asarray(logits, np.float64), np.asarray(products, np.float64)
    g, p = logits - logits.mean(axis=0), products - products.mean(axis=0)
    scale = float(np.sum(g * p) / max(np.sum(p * p), np.finfo(float).tiny))
    residual = float(np.abs(g - scale * p).max())
    spread = float(np.abs(g).max())
    # Float32 logits carry errors of about 1e-6 of their size, whatever their spread.
    allowed = AGREEMENT * spread + 1e-5 * float(np.abs(logits).max())
    if not (residual <= allowed and (scale > 0 or spread <= allowed)):
        raise InputError(
            f'features and kernel do not explain the logits: the best fit, logits = {scale:.4g} features @ '
            f'kernel + b, leaves a residual of {residual:.3g}, which is {residual / max(spread, 1e-300):.2g} '
            f'of their spread over images (limit {AGREEMENT:g}, and the scale must be positive). SI attacks '
            'would be blind: return the input of the last linear layer as features and its weights [F, K] as '
            'kernel'
        )


def after(
    logits: np.ndarray,
    clean: np.ndarray,
    attacks: Sequence[Gated],
    records: Mapping[str, AttackRecord],
    *,
    randomised: bool,
    zero: float,
) -> list[str]:
    """What makes the numbers of an evaluation doubtful.

    `logits` [N, K] and the flags `clean` [N] are those of the clean images; `zero` is the share of correctly
    classified images where the gradient of the cross-entropy is exactly zero.
    """
    found = outputs(logits) + losses_left_out(logits.shape[1], attacks)
    found += single_draws(attacks) if randomised else []
    return found + zero_gradients(zero, attacks) + masking(clean, attacks, records)


def maximise_cross_entropy(attacks: Sequence[Gated]) -> list[str]:
    """The names of the attacks that maximise the cross-entropy of the logits, alone or as a stage."""
    return [
        attack.name
        for attack in attacks
        if any(part.facts is not None and part.facts.maximises_cross_entropy for part in attack.parts)
    ]


def single_draws(attacks: Sequence[Gated]) -> list[str]:
    """For a randomised classifier: the attacks must average over its draws."""
    single = [attack.name for attack in attacks if any(part.eot_samples == 1 for part in attack.parts)]
    found = []
    if not set(single) <= set(PRESETS):
        found.append(
            'the classifier is randomised and the attacks follow single draws of it, so these accuracies are '
            'too high: set eot_samples (20 is usual)'
        )
    return found + [
        f'the classifier is randomised and {name} follows single draws of it, so its accuracy is too '
        'high: use autoattack-rand'
        for name in PRESETS
        if name in single
    ]


def outputs(logits: np.ndarray) -> list[str]:
    """For the logits of the clean images [N, K]: whether they look like logits."""
    if len(logits) > 1 and np.ptp(logits, axis=0).max() == 0:
        return [
            'the classifier returns the same logits for every image: no attack can change its mind, and its '
            'robust accuracy says nothing'
        ]
    if logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(axis=1), 1, rtol=0, atol=1e-4):
        return [
            'the outputs look like probabilities (all in [0, 1], and each row sums to 1), and gradients of '
            'the losses vanish through them: return the logits before the softmax'
        ]
    return []


def clean(accuracy: float, highest: float, classes: int, stated: float | None, hint: str) -> list[str]:
    """Whether a checkpoint's clean accuracy tells that it was loaded as something else than it is.

    `highest` is the upper end of its 95 % interval, and `hint` what to try. Where the authors state no
    accuracy, only one near chance is suspicious.
    """
    if stated is not None and stated > max(highest, accuracy + SHORT):
        return [
            f'the clean accuracy is {100 * accuracy:.2f} %, far below the stated {100 * stated:.2f} %: {hint}'
        ]
    if highest < 2 / classes or accuracy <= 1 / classes:
        return [f'the clean accuracy, {100 * accuracy:.2f} %, is near chance ({100 / classes:g} %): {hint}']
    return []


def zero_gradients(share: float, attacks: Sequence[Gated]) -> list[str]:
    """For the share of images where the gradient of the cross-entropy is exactly zero."""
    blind = maximise_cross_entropy(attacks)
    if share <= NO_GRADIENT or not blind:
        return []
    return [
        f'the gradient of the cross-entropy is exactly zero on {100 * share:.1f} % of the correctly '
        f'classified images, where {", ".join(blind)} cannot see a way (logits too large for softmax, '
        'or a masked gradient): trust sipgd, dlr or apgd-t, which do not depend on the scale of the logits'
    ]


def losses_left_out(count: int, attacks: Sequence[Gated]) -> list[str]:
    """For the number of classes: which attacks took another loss than their own."""
    parts = [part for attack in attacks for part in attack.parts]
    margin = dict.fromkeys(part.attack for part in parts if part.facts and count < part.facts.loss_classes)
    if not margin:
        return []
    return [
        f'with {count} classes the loss of {", ".join(margin)} is not defined: they used the margin instead'
    ]


def masking(clean: np.ndarray, attacks: Sequence[Gated], records: Mapping[str, AttackRecord]) -> list[str]:
    """Whether attacks that do not see the classifier's gradient broke what those that do had left."""
    left, breaking, white = clean.copy(), np.zeros(len(clean), bool), False
    culprits: list[str] = []
    for attack in attacks:
        record = records[attack.name]
        for number, part in enumerate(attack.parts):
            # Where there are no stages, whatever fooled the classifier in any run.
            fell = (
                ~np.logical_and.reduce(record.runs)
                if record.broken_by is None
                else record.broken_by == number
            )
            if part.without_gradient:
                breaking |= fell
                culprits += [part.attack] * (part.attack not in culprits)
            else:
                left = left & ~fell
                white = white or part.without_gradient is False
    share = float(np.mean(left & breaking))
    if not white or share <= MASKED:
        return []
    return [
        f'{", ".join(culprits)} broke {100 * share:.2f} % of the images after the attacks with gradients had '
        'failed on them: gradients are masked, and the true robust accuracy may be lower still'
    ]
