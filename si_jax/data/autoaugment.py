"""AutoAugment's policy for CIFAR-10 inside a compiled step, on images in [0, 1].

The policy is 25 pairs of operations, each with a probability and a strength. One pair is drawn for each
image, and each of its two operations is applied with its probability; most have a random sign. All operations
are computed and one is kept, which costs little beside a network. They are Pillow's, without its rounding to
bytes after each operation.

Source: Cubuk et al. (2019); the policy as in DeepVoltaire/AutoAugment, which val-iisc/DAJAT uses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Operation = Callable[[Array, Array], Array]  # (image [H, W, C], signed strength []) -> image
FILL = 128 / 255  # of what comes from outside of the image


def _gray(image: Array) -> Array:
    """The luminance [H, W, 1], of colours as Pillow weighs them."""
    channels = image.shape[-1]
    weights = np.array([19595, 38470, 7471]) / 65536 if channels == 3 else np.full(channels, 1 / channels)
    return jnp.sum(image * weights.astype(image.dtype), axis=-1, keepdims=True)


def _blend(other: Array, image: Array, strength: Array) -> Array:
    """From `other` (strength -1) over the image (0) beyond it."""
    return jnp.clip(other + (1 + strength) * (image - other), 0, 1)


def _bytes(image: Array) -> Array:
    return jnp.round(255 * image).astype(jnp.int32)


def _taken(image: Array, rows: Array, columns: Array) -> Array:
    """The pixels at these places [H, W], or `FILL` outside."""
    height, width = image.shape[:2]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    found = image[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
    return jnp.where(inside[..., None], found, jnp.asarray(FILL, image.dtype))


def _grid(image: Array) -> tuple[Array, Array]:
    """The centres of the pixels, rows and columns [H, W]."""
    height, width = image.shape[:2]
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')
    return rows + 0.5, columns + 0.5


def translate(image: Array, down: Array, right: Array) -> Array:
    """Moves the window by so many pixels, to the nearest one."""
    rows, columns = _grid(image)
    return _taken(
        image, jnp.floor(rows + down).astype(jnp.int32), jnp.floor(columns + right).astype(jnp.int32)
    )


def rotate(image: Array, degrees: Array) -> Array:
    """Turns the image counter-clockwise about its middle, to the nearest pixel."""
    rows, columns = _grid(image)
    middle = image.shape[0] / 2, image.shape[1] / 2
    y, x = rows - middle[0], columns - middle[1]
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    found = sin * x + cos * y + middle[0], cos * x - sin * y + middle[1]
    return _taken(image, *(jnp.floor(place).astype(jnp.int32) for place in found))


def shear_y(image: Array, strength: Array) -> Array:
    """Row y of column x comes from y + strength x, by a cubic of four neighbours; edges are repeated."""
    height, width = image.shape[:2]
    rows, columns = _grid(image)
    place = rows + strength * columns
    inside = (place >= 0) & (place < height)
    below = jnp.floor(place - 0.5).astype(jnp.int32)
    d = (place - 0.5 - below)[..., None]
    column = jnp.arange(width)[None]
    v = [image[jnp.clip(below + offset, 0, height - 1), column] for offset in (-1, 0, 1, 2)]
    a, b = 2 * (v[0] - v[1]) + v[2] - v[3], -v[0] + v[1] - v[2] + v[3]
    value = v[1] + d * (v[2] - v[0] + d * (a + d * b))
    return jnp.where(inside[..., None], jnp.clip(value, 0, 1), jnp.asarray(FILL, image.dtype))


def color(image: Array, strength: Array) -> Array:
    """Less or more colourful."""
    return _blend(_gray(image), image, strength)


def brightness(image: Array, strength: Array) -> Array:
    """Darker or brighter."""
    return _blend(jnp.zeros_like(image), image, strength)


def contrast(image: Array, strength: Array) -> Array:
    """Away from the mean luminance, or towards it."""
    mean = jnp.round(255 * jnp.mean(_gray(image))) / 255
    return _blend(jnp.broadcast_to(mean, image.shape), image, strength)


def sharpness(image: Array, strength: Array) -> Array:
    """Away from a smoothed image, or towards it; the border stays."""
    height, width = image.shape[:2]
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    smooth = (sum(shifted[1:], shifted[0]) + 4 * image) / 13
    inner = jnp.pad(jnp.ones((height - 2, width - 2, 1), bool), ((1, 1), (1, 1), (0, 0)))
    return _blend(jnp.where(inner, smooth, image), image, strength)


def posterize(image: Array, bits: Array) -> Array:
    """Keeps the highest bits of each byte."""
    value, step = _bytes(image), 2 ** (8 - bits.astype(jnp.int32))
    return ((value - value % step) / 255).astype(image.dtype)


def solarize(image: Array, threshold: Array) -> Array:
    """Inverts what is not below the threshold, in bytes."""
    return jnp.where(_bytes(image) < threshold, image, 1 - image)


def invert(image: Array, strength: Array) -> Array:
    """The negative."""
    return 1 - image


def autocontrast(image: Array, strength: Array) -> Array:
    """Stretches each channel to [0, 1]."""
    low, high = (edge(image, axis=(0, 1)) for edge in (jnp.min, jnp.max))
    flat = high <= low
    return jnp.where(flat, image, (image - low) / jnp.where(flat, 1, high - low))


def equalize(image: Array, strength: Array) -> Array:
    """Makes the bytes of each channel equally frequent, as far as a map of the bytes can."""
    value = _bytes(image)

    def channel(value: Array) -> Array:
        histogram = jnp.zeros(256, jnp.int32).at[value].add(1)
        last = histogram[255 - jnp.argmax(histogram[::-1] > 0)]
        step = (value.size - last) // 255
        before = jnp.cumsum(histogram) - histogram
        table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[value], value)

    return (jax.vmap(channel, in_axes=-1, out_axes=-1)(value) / 255).astype(image.dtype)


def _pixels(side: int) -> Callable[[Array, Array], Array]:
    """A move along an axis, by a share of its length."""

    def move(image: Array, strength: Array) -> Array:
        by = strength * image.shape[side]
        return translate(image, by if side == 0 else jnp.zeros(()), by if side == 1 else jnp.zeros(()))

    return move


# By name: the operation, its strengths 0 to 9, and whether their sign is random.
OPERATIONS: dict[str, tuple[Operation, np.ndarray, bool]] = {
    'shearY': (shear_y, np.linspace(0, 0.3, 10), True),
    'translateX': (_pixels(1), np.linspace(0, 150 / 331, 10), True),
    'translateY': (_pixels(0), np.linspace(0, 150 / 331, 10), True),
    'rotate': (rotate, np.linspace(0, 30, 10), False),
    'color': (color, np.linspace(0, 0.9, 10), True),
    'contrast': (contrast, np.linspace(0, 0.9, 10), True),
    'sharpness': (sharpness, np.linspace(0, 0.9, 10), True),
    'brightness': (brightness, np.linspace(0, 0.9, 10), True),
    'posterize': (posterize, np.round(np.linspace(8, 4, 10)), False),
    'solarize': (solarize, np.linspace(256, 0, 10), False),
    'autocontrast': (autocontrast, np.zeros(10), False),
    'equalize': (equalize, np.zeros(10), False),
    'invert': (invert, np.zeros(10), False),
}

# Two operations a line: name, probability, strength.
POLICY = (
    (('invert', 0.1, 7), ('contrast', 0.2, 6)),
    (('rotate', 0.7, 2), ('translateX', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
    (('shearY', 0.5, 8), ('translateY', 0.7, 9)),
    (('autocontrast', 0.5, 8), ('equalize', 0.9, 2)),
    (('shearY', 0.2, 7), ('posterize', 0.3, 7)),
    (('color', 0.4, 3), ('brightness', 0.6, 7)),
    (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
    (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('color', 0.7, 7), ('translateX', 0.5, 8)),
    (('equalize', 0.3, 7), ('autocontrast', 0.4, 8)),
    (('translateY', 0.4, 3), ('sharpness', 0.2, 6)),
    (('brightness', 0.9, 6), ('color', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 3)),
    (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
    (('color', 0.9, 9), ('equalize', 0.6, 6)),
    (('autocontrast', 0.8, 4), ('solarize', 0.2, 8)),
    (('brightness', 0.1, 3), ('color', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 3)),
    (('translateY', 0.9, 9), ('translateY', 0.7, 9)),
    (('autocontrast', 0.9, 2), ('solarize', 0.8, 3)),
    (('equalize', 0.8, 8), ('invert', 0.1, 3)),
    (('translateY', 0.7, 9), ('autocontrast', 0.9, 1)),
)

_NAMES = list(OPERATIONS)
_INDEX = np.array([[_NAMES.index(name) for name, _, _ in pair] for pair in POLICY], np.int32)
_CHANCE = np.array([[chance for _, chance, _ in pair] for pair in POLICY], np.float32)
_STRENGTH = np.array([[OPERATIONS[name][1][level] for name, _, level in pair] for pair in POLICY], np.float32)
_SIGNED = np.array([[OPERATIONS[name][2] for name, _, _ in pair] for pair in POLICY])


def autoaugment(images: Array, keys: Array) -> Array:
    """Images [B, H, W, C] in [0, 1], each after a random pair of operations of the policy.

    An image depends on its own key and pixels alone, as in `si_jax.data.augment`.

    Args:
        images: At least 3 x 3 pixels.
        keys: One PRNG key an image [B].
    """
    return jax.vmap(_one)(images, keys)


def _one(image: Array, key: Array) -> Array:
    for_pair, for_chance, for_sign = jax.random.split(key, 3)
    pair = jax.random.randint(for_pair, (), 0, len(POLICY), jnp.int32)
    chance = jax.random.uniform(for_chance, (2,), jnp.float32)
    sign = jnp.where(jax.random.uniform(for_sign, (2,), jnp.float32) < 0.5, 1, -1).astype(image.dtype)

    def of_one_type(operation: Operation) -> Operation:
        return lambda image, strength: operation(image, strength).astype(image.dtype)

    operations = [of_one_type(operation) for operation, _, _ in OPERATIONS.values()]
    for place in range(2):
        which, likely, strength, signed = (
            jnp.asarray(table)[pair, place] for table in (_INDEX, _CHANCE, _STRENGTH, _SIGNED)
        )
        strength = strength.astype(image.dtype) * jnp.where(signed, sign[place], 1)
        image = jnp.where(chance[place] < likely, jax.lax.switch(which, operations, image, strength), image)
    return image
