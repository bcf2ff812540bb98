"""AutoAugment's operations are Pillow's, up to its rounding to bytes; the policy is drawn image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from si_jax.data.autoaugment import OPERATIONS, POLICY, autoaugment

FILL = (128, 128, 128)


def affine(image, matrix, resample=Image.Resampling.NEAREST):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)


def rotated(image, degrees):
    turned = image.convert('RGBA').rotate(degrees)
    return Image.composite(turned, Image.new('RGBA', turned.size, (128,) * 4), turned).convert(image.mode)


def enhanced(kind):
    return lambda image, strength: kind(image).enhance(1 + strength)


# By name: Pillow's operation, and how many bytes its rounding may be off.
PILLOW = {
    'shearY': (lambda i, m: affine(i, (1, 0, 0, m, 1, 0), Image.Resampling.BICUBIC), 1),
    'translateX': (lambda i, m: affine(i, (1, 0, m * i.size[0], 0, 1, 0)), 0),
    'translateY': (lambda i, m: affine(i, (1, 0, 0, 0, 1, m * i.size[1])), 0),
    'rotate': (rotated, 0),
    'color': (enhanced(ImageEnhance.Color), 2),
    'contrast': (enhanced(ImageEnhance.Contrast), 2),
    'sharpness': (enhanced(ImageEnhance.Sharpness), 2),
    'brightness': (enhanced(ImageEnhance.Brightness), 1),
    'posterize': (lambda i, m: ImageOps.posterize(i, int(m)), 0),
    'solarize': (lambda i, m: ImageOps.solarize(i, m), 0),
    'autocontrast': (lambda i, m: ImageOps.autocontrast(i), 1),
    'equalize': (lambda i, m: ImageOps.equalize(i), 0),
    'invert': (lambda i, m: ImageOps.invert(i), 0),
}


def pictures():
    """A smooth one, a noisy one of few bytes, a flat one."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:32, :32]
    smooth = np.stack([5 * x + y, 2 * y + 60, 200 - 3 * x + y], -1)
    return [
        smooth.astype(np.uint8),
        rng.integers(40, 180, (32, 32, 3), np.uint8),
        np.full((32, 32, 3), 9, np.uint8),
    ]


def test_every_operation_of_the_policy_is_compared():
    used = {(name, level) for pair in POLICY for name, _, level in pair}
    assert len(POLICY) == 25 and {name for name, _ in used} == set(OPERATIONS) == set(PILLOW)
    compiled = {name: jax.jit(operation) for name, (operation, _, _) in OPERATIONS.items()}
    for name, level in sorted(used):
        _, strengths, signed = OPERATIONS[name]
        theirs, most = PILLOW[name]
        for sign in (1, -1) if signed else (1,):
            strength = sign * strengths[level]
            for picture in pictures():
                found = compiled[name](jnp.asarray(picture / np.float32(255)), jnp.float32(strength))
                wanted = np.asarray(theirs(Image.fromarray(picture), float(strength)), np.float32)
                off = np.abs(255 * np.asarray(found) - wanted)
                assert off.max() <= most + 0.02, (name, level, sign)
                assert found.min() >= 0 and found.max() <= 1


def test_an_image_depends_on_its_key_alone_and_the_draws_follow_the_policy():
    images = jnp.asarray(np.stack([pictures()[1]] * 400) / np.float32(255))
    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.jit(autoaugment)(images, keys)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert 0 <= float(found.min()) and float(found.max()) <= 1
    alone = jax.jit(autoaugment)(images[7:9], keys[7:9])
    np.testing.assert_allclose(alone, found[7:9], atol=1e-6)
    changed = np.abs(np.asarray(found - images)).max((1, 2, 3)) > 1e-6
    # Chances that one of the two does something; some change nothing, such as colour of strength 0.
    likely = np.mean([1 - (1 - p) * (1 - q) for (_, p, _), (_, q, _) in POLICY])
    assert likely - 0.12 < changed.mean() < likely + 0.06


@pytest.mark.parametrize('channels', [1, 3])
def test_images_of_the_digits_too(channels):
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(6, 8, 8, channels)))
    found = jax.jit(autoaugment)(images, jax.random.split(jax.random.key(1), 6))
    assert found.shape == images.shape and found.dtype == images.dtype and bool(jnp.all(jnp.isfinite(found)))
