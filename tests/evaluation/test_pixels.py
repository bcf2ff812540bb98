"""Images that stay bytes: the same results as of floating ones, in less memory, also of large images."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import InputError, data, evaluate
from si_jax.evaluation import network, pixels, result
from si_jax.evaluation.pixels import Pixels, alike
from si_jax.evaluation.settings import images_at_once
from si_jax.storage.trees import digest
from tests.helpers.problems import net
from tests.helpers.searches import quicken

NET = net()
BYTES = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 2), np.uint8)
FLOATS = np.asarray(data.to_unit(BYTES, 255))
LABELS = np.asarray(jnp.argmax(NET(jnp.asarray(FLOATS)).logits, axis=1)) % 4


@pytest.mark.parametrize('scale', [255, 16])
def test_what_is_taken_has_the_values_of_the_whole(scale):
    stored = np.minimum(BYTES, np.uint8(scale))
    whole, lazy = np.asarray(data.to_unit(stored, scale)), Pixels(stored, scale)
    assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (whole.shape, whole.dtype, 4, len(whole))
    for rows in (3, slice(2, 9), np.array([5, 1]), LABELS == 0):
        assert_array_equal(lazy[rows], whole[rows])
    assert_array_equal(np.asarray(lazy), whole)


def test_digests_are_those_of_the_floating_images(monkeypatch):
    monkeypatch.setattr(pixels, 'PART', 5 * 4 * BYTES[0].size)  # bytes of five images
    lazy = Pixels(BYTES, 255)
    assert [len(part) for part in lazy.parts()] == [5, 5, 5, 5, 4]
    assert digest(lazy, LABELS) == digest(FLOATS, LABELS)
    assert result.data_digest(lazy, LABELS) == result.data_digest(FLOATS, LABELS)


def test_copies_of_one_image_are_told():
    assert alike(Pixels(BYTES[[2, 2, 2]], 255)) and alike(FLOATS[[2, 2]])
    assert not alike(Pixels(BYTES, 255)) and not alike(FLOATS)


def test_flags_are_those_of_floating_images_whatever_is_done_at_once(monkeypatch, tmp_path):
    """Also in units of a chunk, as of large images; and a state that floating images began goes on."""
    quicken(monkeypatch)
    settings = {'attacks': 'pgd,apgd-ce', 'eps': 0.04, 'steps': 2, 'devices': jax.local_devices()[:1]}
    whole = evaluate(NET, FLOATS, LABELS, batch_size=8, state_path=tmp_path / 'state', **settings)
    read = evaluate(NET, BYTES, LABELS, batch_size=8, scale=255, state_path=tmp_path / 'state', **settings)
    monkeypatch.setattr(network, 'GROUP_BYTES', {'cpu': 1})
    small = evaluate(NET, BYTES, LABELS, batch_size=4, scale=255, return_images=True, **settings)
    assert 0 < whole.accuracy['worst_case'] < 1
    for other in (read, small):
        assert other.dataset == whole.dataset
        for name, flags in whole.correct.items():
            assert_array_equal(other.correct[name], flags)
    assert small.images['pgd'].dtype == np.float32


def test_channels_may_come_first():
    first = {'attacks': 'fgsm', 'eps': 0.04, 'layout': 'nchw', 'devices': jax.local_devices()[:1]}
    told = evaluate(
        lambda x: NET(jnp.moveaxis(x, 1, 3)).logits, np.moveaxis(BYTES, 3, 1), LABELS, scale=255, **first
    )
    assert told.dataset['digest'] == result.data_digest(FLOATS, LABELS)


@pytest.mark.parametrize(
    ('images', 'scale', 'words'),
    [
        (BYTES, None, 'images are uint8.*or give scale=255'),
        (FLOATS, 255, 'scale=255 is for uint8 images, these are float32: leave it out'),
        (BYTES, 16, 'images go up to 255, and scale=16 says that white is 16'),
        (BYTES, 256, 'scale=256 is no whole number from 1 to 255'),
        (BYTES, 0.5, 'scale=0.5 is no whole number'),
    ],
)
def test_a_wrong_scale(images, scale, words):
    with pytest.raises(InputError, match=words):
        evaluate(NET, images, LABELS, attacks='pgd', scale=scale)


def test_images_at_once_follow_their_size():
    devices = jax.devices()[:2]
    chosen = [images_at_once(None, 500, devices, None, (side, side, 3)) for side in (32, 64, 96, 224, 448)]
    assert chosen == [32, 32, 14, 2, 2]
    assert images_at_once(6, 500, devices, None, (224, 224, 3)) == 6  # who asks is given


MEASURED = """
import resource
import jax, jax.numpy as jnp, numpy as np
from si_jax import evaluate

def network(images):
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(16, 16, 3, 4)), jnp.float32)
    space = jax.lax.conv_general_dilated(images, kernel, (16, 16), 'VALID',
                                         dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jnp.mean(space, axis=(1, 2))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

images = np.random.default_rng(0).integers(0, 256, (1200, 96, 96, 3), np.uint8)
labels = np.arange(len(images)) % 4
ask = dict(attacks='fgsm', eps=0.01, batch_size=32, scale=255)
evaluate(network, images[:320], labels[:320], **ask)  # more than are worked on together
before = peak()
evaluate(network, images, labels, **ask)
print(round(images.nbytes / 2**20), round(peak() - before))
"""


def test_many_large_images_take_no_more_memory_than_few():
    """1,200 images of 96 x 96 x 3: 32 MiB of bytes, which would be 127 MiB of floats."""
    done = subprocess.run(
        [sys.executable, '-c', MEASURED], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    held, grown = map(int, done.stdout.split()[-2:])
    assert held == 32 and grown < 40, f'{grown} MiB more than for 320 images'
