"""Sizes, corners and filters of the named preprocessings, each worked out by hand or from its formula."""

import numpy as np
import pytest
from PIL import Image

from si_jax.data import preprocessing
from si_jax.errors import InputError

RNG = np.random.default_rng(0)


def picture(width, height, mode='RGB'):
    shape = (height, width, 3) if mode == 'RGB' else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, np.uint8), mode=None)


def triangle(x):
    return np.maximum(1 - abs(x), 0)


def cubic(x, a=-0.5):
    x = abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(kernel, before, after):
    """[after, before]: a filter as wide as the reduction, normalised at the borders."""
    scale = before / after
    centres = (np.arange(after)[:, None] + 0.5) * scale
    table = kernel((np.arange(before)[None] + 0.5 - centres) / max(scale, 1))
    return table / table.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('name, kernel', [('Res32Crop32', triangle), ('BicubicRes32Crop32', cubic)])
@pytest.mark.parametrize('before', [80, 20])
def test_the_filter_is_that_of_its_formula(name, kernel, before):
    image = picture(before, before)
    pixels = np.asarray(image, np.float64)
    table = weights(kernel, before, 32)
    # Pillow rounds to bytes between the two directions.
    rows = np.clip(np.floor(np.einsum('ij,hjc->hic', table, pixels) + 0.5), 0, 255)
    wanted = np.clip(np.einsum('ij,jwc->iwc', table, rows), 0, 255)
    found = np.asarray(preprocessing.named(name)(image), np.float64)
    assert found.shape == (32, 32, 3) and abs(found - wanted).max() <= 1


def test_sizes_and_corners_by_hand():
    # 500 x 375: the shorter side to 256, the longer to int(341.3); the corner at round(58.5) = 58 and 16.
    image = picture(500, 375)
    whole = image.resize((341, 256), Image.Resampling.BILINEAR)
    cut = np.asarray(whole)[16:240, 58:282]
    np.testing.assert_array_equal(preprocessing.named('Res256Crop224')(image), cut)
    upright = image.transpose(Image.Transpose.TRANSPOSE)
    assert preprocessing.named('Res256Crop224')(upright).size == (224, 224)
    # 301 x 251 to 288: 37 rows are added, 18 of them above; (301 - 288) / 2 = 6.5 is rounded to 6.
    found = np.asarray(preprocessing.named('Crop288')(image.crop((0, 0, 301, 251))))
    assert found.shape == (288, 288, 3) and not found[:18].any() and not found[269:].any()
    np.testing.assert_array_equal(found[18:269], np.asarray(image)[:251, 6:294])
    assert preprocessing.named('Res224')(image).size == (224, 224)
    np.testing.assert_array_equal(
        preprocessing.named('Res224')(image), image.resize((224, 224), Image.Resampling.BILINEAR)
    )


def test_the_names_of_robustbench_are_there_and_others_are_not():
    shapes = {name: (named := preprocessing.named(name)) and named.shape for name in preprocessing.NAMES}
    assert shapes == {
        'None': None,
        'Res256Crop224': (224, 224, 3),
        'BicubicRes256Crop224': (224, 224, 3),
        'Crop288': (288, 288, 3),
        'Res224': (224, 224, 3),
    }
    for wrong in ('res224', 'Res', 'Bicubic', 'BicubicCrop224', 'Res0', 'Crop224Res256'):
        with pytest.raises(InputError, match='RobustBench has None, Res256Crop224'):
            preprocessing.named(wrong)
    with pytest.raises(InputError, match='has a side of 99999, 4096 is the limit'):
        preprocessing.named('Res99999')


def test_grey_becomes_colour_and_sixteen_bits_are_refused():
    grey = picture(40, 30, 'L')
    found = np.asarray(preprocessing.named('Crop20')(grey))
    np.testing.assert_array_equal(found, np.asarray(grey)[5:25, 10:30, None].repeat(3, axis=2))
    np.testing.assert_array_equal(found, preprocessing.named('Crop20').of(np.asarray(grey)[..., None]))
    with pytest.raises(ValueError, match='more than 8 bits'):
        preprocessing.named('Crop20')(Image.new('I;16', (40, 30)))
