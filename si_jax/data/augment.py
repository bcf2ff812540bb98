"""Random crop and flip of uint8 images, and the boxes of CutMix, inside a compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


def augment(images: Array, keys: Array, *, crop: int, flip: bool) -> Array:
    """Pads with zeros, crops back at random, and mirrors every second image on average.

    An augmented image depends on its own key and pixels alone, so neither the batch size nor the number of
    devices changes it.

    Args:
        images: Pixels [B, H, W, C], of any dtype.
        keys: One PRNG key an image [B].
        crop: Padding on each side; all (2 crop + 1)^2 positions are equally likely. 0 leaves images in place.
        flip: Whether to flip left and right with probability 1/2.

    Returns:
        Images [B, H, W, C] of the same dtype.

    References:
        The recipe of TRADES, MART and AT_HE: zero padding of 4, a random 32 x 32 crop, a flip with p = 0.5.
    """
    if not crop and not flip:
        return images
    return jax.vmap(lambda image, key: _augment_one(image, key, crop, flip))(images, keys)


def _augment_one(image: Array, key: Array, crop: int, flip: bool) -> Array:
    # The dtype is explicit: the same key gives the same crop whether or not float64 is enabled.
    choices = jnp.array([2 * crop + 1, 2 * crop + 1, 2 if flip else 1], jnp.int32)
    top, left, mirrored = jax.random.randint(key, (3,), 0, choices, jnp.int32)
    padded = jnp.pad(image, ((crop, crop), (crop, crop), (0, 0)))
    image = jax.lax.dynamic_slice(padded, (top, left, jnp.int32(0)), image.shape)
    return jnp.where(mirrored == 1, image[:, ::-1], image)


def random_box(key: Array, height: int, width: int) -> tuple[Array, Array]:
    """The box of a CutMix mixture: `box` of lambda ~ Beta(1, 1), the uniform law, and a uniform centre."""
    for_share, for_centre = jax.random.split(key)
    share = jax.random.uniform(for_share, (), jnp.float32)
    sizes = jnp.array([height, width], jnp.int32)
    centre = jax.random.randint(for_centre, (2,), 0, sizes, jnp.int32)
    return box(share, centre, height, width)


def box(share: Array, centre: Array, height: int, width: int) -> tuple[Array, Array]:
    """Where a CutMix mixture takes the other image, and the share of the first one in it.

    Args:
        share: lambda: the box has the sides sqrt(1 - lambda) of the image's, rounded down to even ones.
        centre: (row, column), int32; what lies outside of the image is cut off.
        height: Of the image.
        width: Of the image.

    Returns:
        [H, W] bool, True in the box; and 1 - (area of the box in the image) / (H W).

    Source: Yun et al. (2019); wzekai99/DM-Improves-AT, gowal21uncovering/utils/cutmix.py.
    """
    limits = jnp.array([height, width], jnp.int32)
    half = (limits * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    first, last = (jnp.clip(centre + sign * half, 0, limits) for sign in (-1, 1))
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = (first[0] <= row) & (row < last[0]) & (first[1] <= column) & (column < last[1])
    sides = last - first
    return inside, 1 - sides[0] * sides[1] / jnp.float32(height * width)


def to_unit(images: Array, scale: int, dtype: DTypeLike = jnp.float32) -> Array:
    """Stored pixels, integers in [0, scale], as pixels in [0, 1].

    `scale` is the stored value of white: 255, or 16 for the digits.
    """
    return jnp.asarray(images).astype(dtype) / scale


def to_unit_on_host(images: np.ndarray, scale: int) -> np.ndarray:
    """`to_unit` in float32, with the same numbers on every machine.

    XLA takes the quotient as a product with 1 / scale on the CPU, and other devices may round it otherwise.
    Digests of images are of these numbers.
    """
    return images.astype(np.float32) * (np.float32(1) / np.float32(scale))
