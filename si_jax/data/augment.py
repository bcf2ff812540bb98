"""Random crop and flip of uint8 images, inside a compiled step."""

import jax
import jax.numpy as jnp
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


def to_unit(images: Array, scale: int, dtype: DTypeLike = jnp.float32) -> Array:
    """Stored pixels, integers in [0, scale], as pixels in [0, 1].

    `scale` is the stored value of white: 255, or 16 for the digits.
    """
    return jnp.asarray(images).astype(dtype) / scale
