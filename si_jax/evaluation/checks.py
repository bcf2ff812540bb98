"""What is checked before an attack: the arguments before any compute, then how the classifier behaves.

Each check raises `InputError` with the value, the limit and the remedy.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.registry import LEAST_CLASSES, NEEDS_FEATURES
from si_jax.errors import InputError
from si_jax.evaluation.classifier import Classifier
from si_jax.outputs import Outputs
from si_jax.threat import ball_of

Array = jax.Array

# Two forward passes of the same images agree to this fraction of the logits' range. Another batch size or
# algorithm moves float32 logits by about 1e-6 of it; batch statistics or dropout move them by 1e-2 and more.
AGREEMENT = 1e-3
PROBE = 8  # images in a probe


def check_images(images: Any) -> np.ndarray:
    """The images [N, H, W, C] on the host, as float32, or as float64 if they are and JAX has it enabled."""
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f'images have shape {images.shape}: they must be [N, H, W, C], with at least one image'
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f'images are {images.dtype}: they must be floating and in [0, 1]; divide 8-bit images by 255'
        )
    lowest, highest = images.min(), images.max()
    if not np.isfinite(lowest) or not np.isfinite(highest):
        i = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3))))
        raise InputError(f'images[{i}] holds NaN or infinite values: remove or repair it')
    if lowest < 0 or highest > 1:
        if lowest >= 0 and highest <= 255:
            advice = 'divide 8-bit pixel values by 255'
        else:
            advice = 'give them unnormalised and let the classifier subtract mean and divide by std itself'
        raise InputError(f'images lie in [{lowest:g}, {highest:g}], not in [0, 1]: {advice}')
    wide = jax.dtypes.canonicalize_dtype(images.dtype) == np.float64
    return np.ascontiguousarray(images, np.float64 if wide else np.float32)


def check_labels(labels: Any, count: int) -> np.ndarray:
    """The labels [N] on the host, int32; `check_classes` holds them against the number of classes."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise InputError(
            f'labels have shape {labels.shape}: they must be [{count}], one class for each image'
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f'labels are {labels.dtype}: they must be integers from 0 to K - 1')
    return labels.astype(np.int64)


def check_indices(indices: Any, count: int) -> np.ndarray:
    """The number of each image [N], which its random numbers come from: its position unless given."""
    indices = np.arange(count) if indices is None else np.asarray(indices)
    if indices.shape != (count,) or not np.issubdtype(indices.dtype, np.integer):
        raise InputError(f'indices are {indices.dtype} {indices.shape}: they must be integers [{count}]')
    if indices.min() < 0 or indices.max() >= 2**32:
        raise InputError(f'indices lie in [{indices.min()}, {indices.max()}]: they must be in [0, 2**32)')
    return indices.astype(np.uint32)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """An integer setting of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f'{name}={value!r} must be an integer of at least {least}')
    return int(value)


def check_step_size(step_size: float, norm: str, image_shape: tuple[int, ...]) -> float:
    """A step size, as a fraction of the pixel range like eps."""
    limit = ball_of(norm).limit(image_shape)
    if not 0 < step_size <= limit:
        advice = f'did you mean {step_size:g}/255?' if 1 < step_size <= 255 else 'the default is eps / 4'
        raise InputError(f'step_size={step_size:g} is not in (0, {limit:g}] for {norm}: {advice}')
    return float(step_size)


def check_classes(
    shape: Outputs,
    labels: np.ndarray,
    names: tuple[str, ...],
    why_no_features: str = '',
    needs_features: frozenset[str] = NEEDS_FEATURES,
) -> None:
    """Whether labels and attacks suit a classifier whose outputs have this shape.

    `why_no_features` says why there are none, if they were looked for, `needs_features` which attacks read
    them.
    """
    classes = shape.logits.shape[1]
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise InputError(
            f'labels[{i}]={labels[i]} is not in [0, {classes}): the classifier has {classes} classes'
        )
    for name in names:
        if classes < LEAST_CLASSES.get(name, 2):
            raise InputError(
                f'attack {name!r} needs at least {LEAST_CLASSES.get(name, 2)} classes, the classifier has '
                f"{classes}: use 'pgd' or 'cw'"
            )
        if name in needs_features and shape.features is None:
            raise InputError(
                f'attack {name!r} needs the features and the kernel of the last linear layer'
                f'{why_no_features and f", and none was found: {why_no_features}"}: let the classifier return'
                ' si_jax.Outputs(logits, features, kernel), or leave this attack out'
            )


def probe(classifier: Classifier, images: np.ndarray, keys: Array) -> Outputs:
    """Calls the classifier as given, without compiling it, on a few images in different batches.

    Args:
        classifier: Called eagerly: randomness of the host would be frozen in a compiled program.
        images: [P, H, W, C].
        keys: [P].

    Returns:
        The outputs for the images, followed by those for the inverted images.

    Raises:
        InputError: Two calls on the same images disagree, or the logits of an image depend on the other
            images of its batch.
    """
    outputs, difference = repeated(classifier, images, keys)
    if difference and classifier.randomised:
        raise InputError(
            f'two calls with the same images and keys disagree by {difference}: a Randomised classifier '
            'must draw everything from its keys'
        )
    if difference:
        raise InputError(
            f'two calls on the same images disagree by {difference}: switch dropout and other randomness '
            'off, or, if it belongs to the defense, draw it from keys and wrap the function as '
            'si_jax.Randomised(function)'
        )
    if difference := mixed(classifier, images, keys, outputs):
        raise InputError(
            f'the logits of an image change by {difference} with the other images of its batch: put batch '
            'normalisation into evaluation mode (train=False, running averages), and let each row of a '
            'Randomised classifier use its own key only'
        )
    return outputs


def repeated(classifier: Classifier, images: np.ndarray, keys: Array) -> tuple[Outputs, str]:
    """Calls the classifier twice on the images [P, H, W, C], with the inverted ones behind them.

    Returns:
        The first outputs, and how far the logits of the second are from them, in words; '' if they agree.
    """
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
    """Raises InputError with the first image whose logits [B, K] are NaN or infinite.

    Args:
        logits: [B, K].
        indices: [B], the number of each image.
        what: What these images are, for the message.
    """
    finite = np.isfinite(np.asarray(logits)).all(axis=1)
    if not finite.all():
        raise InputError(
            f'the classifier returns NaN or infinite logits for {what} {indices[np.argmin(finite)]}: no '
            'accuracy can be told; look for a division by zero, an overflow (half precision) or weights that '
            'have diverged'
        )


def check_explained(logits: Any, products: Any) -> None:
    """Whether features and kernel explain the logits up to one positive scale and one bias a class.

    SI attacks climb the angle between features and kernel. If these are not what the logits are made of, the
    attack is blind, and the classifier would pass as robust.

    Args:
        logits: [N, K].
        products: [N, K], features @ kernel.

    Raises:
        InputError: logits = alpha products + b with alpha > 0 does not hold to 1e-3 of the logits' spread
            over images.
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
