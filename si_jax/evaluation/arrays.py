"""Images, labels, targets and indices as a caller gives them, checked; and the layout of the images.

Each check raises `InputError` with the value, the limit and the remedy.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.errors import InputError, unknown
from si_jax.evaluation.classifier import as_array, takes_channels_first
from si_jax.evaluation.pixels import Images, Pixels

LAYOUTS = ('nhwc', 'nchw')
TARGETS = ('random', 'least-likely', 'all')  # beside one class for each image
CHANNELS = (1, 3)  # of gray and of colour images
SIDE = 16  # pixels of the short side of images that are not square, from which three rows are channels
SLACK = 1e-6  # by which rounding may put a pixel outside of [0, 1]


def check_devices(devices: Any) -> list[jax.Device]:
    """The devices to use, all of this process for None."""
    if devices is None:
        return jax.local_devices()
    given = list(devices) if isinstance(devices, Iterable) else []
    if not given or not all(isinstance(one, jax.Device) for one in given):
        raise InputError(
            f'devices={devices!r} is no list of devices, as jax.local_devices()[:1] is: leave it out for all'
        )
    return given


def layout_of(layout: str | None, classifier: Any, images: Any) -> str:
    """The layout of images: as told, else 'nhwc', unless PyTorch's or Equinox's networks get [N, C, H, W]."""
    if layout not in (None, *LAYOUTS):
        raise unknown('layout', layout, LAYOUTS)
    shape = shape_of(images)
    if layout is None and takes_channels_first(classifier) and len(shape) == 4:
        return _told_by_network(shape)
    return layout or told_from(shape)


def _told_by_network(shape: tuple[int, ...]) -> str:
    """The layout of images for a network that takes [N, C, H, W], which they may have or not.

    Raises:
        InputError: It can be either.
    """
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:  # else by which sides are equal, or longer
        first, last = shape[2] == shape[3], shape[1] == shape[2]
    if first == last:
        first, last = shape[1] < min(shape[2:]), shape[3] < min(shape[1:3])
    if first == last and not shape[1] == shape[3] == 1:
        raise InputError(
            f'images have shape {shape}, and the network takes [N, C, H, W]: it cannot be told whether '
            "channels come first. Give layout='nchw' if they do, layout='nhwc' if they come last"
        )
    return 'nchw' if first and not last else 'nhwc'


def shape_of(images: Any) -> tuple[int, ...]:
    """The shape of an array of any library, or of nested lists."""
    return tuple(np.shape(images) if isinstance(images, list | tuple) else getattr(images, 'shape', ()))


def told_from(shape: tuple[int, ...]) -> str:
    """The layout of images that nobody told: 'nhwc', if they do not look like [N, C, H, W].

    Raises:
        InputError: They do.
    """
    first = len(shape) == 4 and shape[1] in CHANNELS and min(shape[2:]) > shape[1]
    # Of other sides only in colour and of a usual size: signals are one pixel high.
    if first and (shape[2] == shape[3] or (shape[1] == 3 and min(shape[2:]) >= SIDE)):
        raise InputError(
            f'images have shape {shape}, which looks like [N, C, H, W]: they must be [N, H, W, C]. '
            "Give images.transpose(0, 2, 3, 1) (in PyTorch images.permute(0, 2, 3, 1)), or layout='nchw' if "
            "the classifier takes [B, C, H, W] too; layout='nhwc' if they are as they must be"
        )
    return 'nhwc'


def check_images(
    images: Any, layout: str = 'nhwc', scale: int | None = None
) -> tuple[Images, tuple[str, ...]]:
    """The images [N, H, W, C] on the host, and what was done to them, in words.

    They are float32, or float64 if they are and JAX has it enabled. Bytes of a known `scale` stay bytes.
    """
    if isinstance(images, Pixels) and scale is None:
        return images, ()
    images = as_array(images)
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f'images have shape {images.shape}: they must be [N, H, W, C], with at least one image'
            f'{_advice_on_shape(images)}'
        )
    if layout == 'nchw':
        images = np.moveaxis(images, 1, 3)
    if scale is not None:
        return Pixels(images, scale), ()
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f'images are {images.dtype}: they must be floating and in [0, 1]; divide 8-bit images by 255, or '
            'give scale=255, and they stay bytes until they are attacked'
        )
    lowest, highest = float(images.min()), float(images.max())
    if not np.isfinite(lowest) or not np.isfinite(highest):
        i = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3))))
        raise InputError(f'images[{i}] holds NaN or infinite values: remove or repair it')
    notes: tuple[str, ...] = ()
    if lowest < -SLACK or highest > 1 + SLACK:
        if lowest >= -SLACK and 2 <= highest <= 255 + SLACK:
            advice = 'divide 8-bit pixel values by 255'
        elif lowest > -1e-3 and highest < 1 + 1e-3:
            advice = 'this is more than rounding (1e-6): clip them to [0, 1]'
        else:
            advice = 'give them unnormalised and let the classifier subtract mean and divide by std itself'
        raise InputError(f'images lie in [{lowest:.9g}, {highest:.9g}], not in [0, 1]: {advice}')
    if lowest < 0 or highest > 1:
        outside = int(((images < 0) | (images > 1)).any(axis=(1, 2, 3)).sum())
        notes = (
            f'{outside} of {len(images)} images were outside of [0, 1] by rounding, in [{lowest:.9g}, '
            f'{highest:.9g}]: they were clipped',
        )
        images = np.clip(images, 0, 1)
    wide = jax.dtypes.canonicalize_dtype(images.dtype) == np.float64
    return np.ascontiguousarray(images, np.float64 if wide else np.float32), notes


def _advice_on_shape(images: np.ndarray) -> str:
    if images.ndim == 2:
        return (
            '. For vectors give images.reshape(len(images), 1, -1, 1), and let the classifier take '
            'images.reshape(len(images), -1)'
        )
    if images.ndim == 3:
        return '. Give images[..., None] if they have no channels, images[None] if this is one image'
    return ''


def check_labels(labels: Any, count: int) -> np.ndarray:
    """The labels [N] on the host, int64; `gates.check_labels_of` holds them against the number of classes."""
    labels = as_array(labels)
    if labels.shape != (count,):
        advice = ''
        if labels.ndim == 2:
            marks = '; give labels.argmax(axis=1) if each row marks a class'
            advice = '; give labels[:, 0]' if labels.shape[1] == 1 else marks
        raise InputError(
            f'labels have shape {labels.shape}: they must be [{count}], one class for each image{advice}'
        )
    if labels.dtype.kind not in 'iu':
        raise InputError(f'labels are {labels.dtype}: they must be integers from 0 to K - 1')
    return labels.astype(np.int64)


def check_targets(targets: Any, labels: np.ndarray) -> np.ndarray | str | None:
    """The targets [N] on the host, int64, none of them the label; or one of `TARGETS`, or None."""
    if targets is None or (isinstance(targets, str) and targets in TARGETS):
        return targets
    if isinstance(targets, str):
        raise unknown('targets', targets, TARGETS)
    targets = as_array(targets)
    if targets.shape != labels.shape or targets.dtype.kind not in 'iu':
        raise InputError(
            f'targets are {targets.dtype} {targets.shape}: they must be integers [{len(labels)}], a wrong '
            f'class for each image, or one of {", ".join(TARGETS)}'
        )
    if (same := targets == labels).any():
        i = int(np.argmax(same))
        raise InputError(
            f'targets[{i}]={targets[i]} is the label of that image: a target must be a wrong class '
            f'({int(same.sum())} of {len(labels)} are not); give another, or leave these images out'
        )
    return targets.astype(np.int64)


def check_indices(indices: Any, count: int) -> np.ndarray:
    """The number of each image [N], which its random numbers come from: its position unless given."""
    indices = np.arange(count) if indices is None else as_array(indices)
    if indices.shape != (count,) or indices.dtype.kind not in 'iu':
        raise InputError(f'indices are {indices.dtype} {indices.shape}: they must be integers [{count}]')
    if indices.min() < 0 or indices.max() >= 2**32:
        raise InputError(f'indices lie in [{indices.min()}, {indices.max()}]: they must be in [0, 2**32)')
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        twice = np.argmax(counts > 1)
        where = np.flatnonzero(indices == values[twice])[:2]
        raise InputError(
            f'indices[{where[0]}] and indices[{where[1]}] are both {values[twice]}: give each image a number '
            'of its own, from which its random numbers come'
        )
    return indices.astype(np.uint32)
