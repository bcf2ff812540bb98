import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import data

PIXELS = np.random.default_rng(0).integers(
    1, 256, (64, 32, 32, 3), np.uint8
)  # no zeros: padding is told apart


def keys(n, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))


def every_crop(image, crop, flip):
    """All images that augmentation may return, made by numpy."""
    h, w, _ = image.shape
    padded = np.pad(image, ((crop, crop), (crop, crop), (0, 0)))
    crops = [padded[i : i + h, j : j + w] for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
    return crops + ([c[:, ::-1] for c in crops] if flip else [])


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    image=hypothesis.extra.numpy.arrays(np.uint8, (5, 6, 2)),
    seed=st.integers(0, 2**31 - 1),
    crop=st.integers(0, 2),
    flip=st.booleans(),
)
def test_result_is_one_of_the_crops(image, seed, crop, flip):
    out = np.asarray(data.augment(jnp.asarray(image[None]), keys(1, seed), crop=crop, flip=flip)[0])
    assert out.dtype == np.uint8
    assert any(np.array_equal(out, choice) for choice in every_crop(image, crop, flip))


def test_all_crops_and_both_flips_come_equally_often():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    n = 1800
    out = np.asarray(data.augment(jnp.tile(image, (n, 1, 1, 1)), keys(n), crop=1, flip=True))
    counts = [(out == choice).all((1, 2, 3)).sum() for choice in every_crop(image, 1, True)]
    assert sum(counts) == n
    assert min(counts) > 60 and max(counts) < 140  # 18 choices, 100 expected each, 4 standard deviations


def test_depends_on_key_and_image_only():
    augment = jax.jit(lambda x, k: data.augment(x, k, crop=4, flip=True))
    whole = augment(PIXELS, keys(64))
    order = np.random.default_rng(1).permutation(64)[:10]
    np.testing.assert_array_equal(augment(PIXELS[order], keys(64)[order]), whole[order])
    np.testing.assert_array_equal(augment(PIXELS[3:4], keys(64)[3:4]), whole[3:4])
    np.testing.assert_array_equal(data.augment(PIXELS, keys(64), crop=4, flip=True), whole)
    assert not np.array_equal(augment(PIXELS, keys(64, seed=1)), whole)


def test_works_under_vmap_over_devices_rows():
    whole = data.augment(PIXELS, keys(64), crop=4, flip=True)
    stacked = jax.vmap(lambda x, k: data.augment(x, k, crop=4, flip=True))(
        PIXELS.reshape(8, 8, 32, 32, 3), keys(64).reshape(8, 8)
    )
    np.testing.assert_array_equal(stacked.reshape(whole.shape), whole)


def test_float64_switch_does_not_change_the_crops():
    wide = data.augment(PIXELS, keys(64), crop=4, flip=True)
    with jax.enable_x64(False):
        narrow = data.augment(PIXELS, keys(64), crop=4, flip=True)
    np.testing.assert_array_equal(wide, narrow)


def test_without_crop_and_flip_images_stay():
    np.testing.assert_array_equal(data.augment(PIXELS, keys(64), crop=0, flip=False), PIXELS)


def test_flip_alone():
    out = np.asarray(data.augment(PIXELS, keys(64), crop=0, flip=True))
    flipped = [not np.array_equal(a, b) for a, b in zip(out, PIXELS, strict=True)]
    assert 16 < sum(flipped) < 48
    np.testing.assert_array_equal(out[flipped], PIXELS[flipped][:, :, ::-1])


@pytest.mark.parametrize('scale', [255, 16])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_to_unit_divides(scale, dtype):
    stored = np.arange(scale + 1, dtype=np.uint8)
    for function in (data.to_unit, jax.jit(data.to_unit, static_argnums=(1, 2))):
        unit = function(stored, scale, dtype)
        assert unit.dtype == dtype
        assert unit[0] == 0 and unit[-1] == 1  # exactly: an attack's ball is clipped to [0, 1]
        np.testing.assert_allclose(
            unit, stored.astype(np.float64) / scale, rtol=2e-7 if dtype == jnp.float32 else 1e-15
        )


def test_to_unit_is_float32_by_default():
    assert data.to_unit(PIXELS, 255).dtype == jnp.float32


def test_pixels_on_the_host_are_those_of_the_device():
    """Of every scale: digests of results that are there are of these numbers."""
    stored = np.arange(256, dtype=np.uint8)
    for scale in range(1, 256):
        on_device = data.to_unit(jnp.asarray(stored[: scale + 1]), scale)
        np.testing.assert_array_equal(data.to_unit_on_host(stored[: scale + 1], scale), on_device)
