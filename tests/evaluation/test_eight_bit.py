"""Images of 8 bits: rounding stays inside the ball, and what is judged is what is written."""

import jax
import numpy as np
import pytest
from PIL import Image

import si_jax
from benchmarks.selfcheck import problem
from si_jax import InputError, Threat
from si_jax.evaluation import eight_bit
from si_jax.evaluation.pixels import Pixels

ONE = jax.local_devices()[:1]


@pytest.mark.parametrize(
    ('norm', 'eps'), [('linf', 8 / 255), ('linf', 7.6 / 255), ('linf', 0.4 / 255), ('l2', 0.05), ('l1', 0.15)]
)
def test_rounding_stays_in_the_ball_and_in_the_range(norm, eps):
    rng, threat = np.random.default_rng(0), Threat(norm, eps)
    clean = (rng.integers(0, 256, (40, 3, 3, 1)) / 255).astype(np.float32)
    delta = threat.ball.sample(rng, clean.shape, eps, corners=True)
    delta[20:] = threat.ball.sample(rng, clean[20:].shape, eps, corners=False)
    found = np.clip(clean + delta, 0, 1).astype(np.float32)
    made = eight_bit.rounded(found, clean, threat)
    threat.audit(made, clean, source='rounding')
    eight_bit.check(made, np.arange(40))
    assert made.dtype == np.float32 and np.abs(made - found).max() < 1 / 255
    np.testing.assert_array_equal(eight_bit.rounded(made, clean, threat), made)
    # Where the nearest bytes are inside they are taken.
    nearest = np.rint(found * 255) / 255
    length = threat.ball.length(nearest - clean, np)
    near = np.abs(made - nearest).max(axis=(1, 2, 3)) < 1e-6
    assert near[length <= eps].all() and (norm != 'linf' or eps != 8 / 255 or near.all())


def test_by_hand():
    clean = np.array([0, 100, 255, 10], np.float32).reshape(1, 2, 2, 1) / 255
    moved = np.array([0.6, -7.4, -7.6, 7.5], np.float32).reshape(1, 2, 2, 1) / 255
    made = eight_bit.rounded(clean + moved, clean, Threat('linf', 7.6 / 255))
    np.testing.assert_array_equal(eight_bit.as_bytes(made).ravel(), [1, 93, 248, 17])


def test_what_is_judged_is_rounded_and_returned():
    p = problem(3, 'linf')
    given = {'attacks': 'pgd,apgd-ce', 'eps': 7.6 / 255, 'steps': 5, 'return_images': True, 'devices': ONE}
    found = si_jax.evaluate(p.logits, p.images, p.labels, eight_bit=True, **given)
    for name, images in found.images.items():
        eight_bit.check(images, found.indices)
        wrong = np.argmax(p.logits(images), axis=1) != p.labels
        np.testing.assert_array_equal(~wrong, found.correct[name])
        assert np.abs(images - p.images).max() <= 7 / 255 + 1e-6
    assert found.attacks['apgd-ce'].max_perturbation == pytest.approx(7 / 255, abs=1e-6)
    assert found.to_json()['eight_bit'] is True and 'rounded to 8 bits' in found.table()
    plain = si_jax.evaluate(p.logits, p.images, p.labels, **given)
    assert 'eight_bit' not in plain.to_json() and 'rounded' not in plain.table()
    assert plain.attacks['apgd-ce'].max_perturbation == pytest.approx(7.6 / 255, abs=1e-6)


def test_pictures(tmp_path):
    clean = (np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3)) / 255).astype(np.float32)
    eight_bit.write_png(tmp_path / 'a.json', {'pgd': clean}, np.array([7, 3]))
    for number, image in zip((7, 3), clean, strict=True):
        with Image.open(tmp_path / 'a_images' / 'pgd' / f'{number}.png') as picture:
            np.testing.assert_array_equal(np.asarray(picture) / np.float32(255), image)
    eight_bit.write_png(tmp_path / 'a.json', {'pgd': clean[..., :1]}, np.array([7, 3]))
    with Image.open(tmp_path / 'a_images' / 'pgd' / '7.png') as picture:
        assert picture.mode == 'L'
    with pytest.raises(InputError, match='2 channels, and a PNG has 1 or 3'):
        eight_bit.check_png((4, 4, 2))


def test_images_between_the_bytes_are_refused():
    images = np.full((3, 2, 2, 1), 10 / 255, np.float32)
    eight_bit.check(images, np.arange(3))
    images[1, 0, 0, 0] = 10.5 / 255
    with pytest.raises(InputError, match=r'image 5 has pixels between the bytes \(by up to 0.00196\)'):
        eight_bit.check(images, np.array([4, 5, 6]))
    stored = np.zeros((1, 2, 2, 1), np.uint8)
    eight_bit.check(Pixels(stored, 255), np.arange(1))
    with pytest.raises(InputError, match='between the bytes'):
        eight_bit.check(Pixels(stored + 1, 16), np.arange(1))
    with pytest.raises(InputError, match='multiples of 1/255, or leave eight_bit out'):
        si_jax.evaluate(lambda x: x[:, 0, :, 0], images, [0, 1, 0], attacks='pgd', eight_bit=True)
