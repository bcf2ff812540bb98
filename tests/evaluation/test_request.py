"""Arguments of the wrong kind are refused with a remedy that works, and layouts are told apart."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import InputError, evaluate
from si_jax.evaluation.arrays import check_images, check_labels, layout_of
from si_jax.evaluation.request import Request
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(10, NET)
SQUARE = np.random.default_rng(0).uniform(size=(10, 6, 6, 3)).astype(np.float32)
ONE = {'eps': 0.04, 'devices': jax.local_devices()[:1]}


def of_colour(x):
    return NET(x[..., :2]).logits


def channels_first(x):
    assert x.shape[1] == 3
    return of_colour(x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize('channels', [1, 3])
def test_images_with_channels_first_are_refused_with_the_transpose(channels):
    wrong = np.moveaxis(SQUARE[..., :channels], 3, 1)
    with pytest.raises(
        InputError, match=r'looks like \[N, C, H, W\].*transpose\(0, 2, 3, 1\).*layout='
    ) as error:
        Request.of(wrong, LABELS)
    assert 'permute(0, 2, 3, 1)' in str(error.value)
    assert_array_equal(check_images(wrong.transpose(0, 2, 3, 1))[0], SQUARE[..., :channels])
    assert_array_equal(check_images(wrong, 'nchw')[0], SQUARE[..., :channels])


def test_images_that_only_resemble_them_are_taken():
    for shape in ((2, 3, 32, 5), (2, 1, 72, 1), (2, 1, 72, 40), (2, 4, 4, 4), (2, 3, 3, 3), (2, 6, 6, 2)):
        assert check_images(np.zeros(shape, np.float32))[0].shape == shape


def test_channels_first_give_the_same_result_in_their_own_layout():
    def momentless(classifier, images, labels, threat, key):
        assert images.shape[1] == 3 or images.shape[3] == 3
        gradient = jax.grad(lambda x: -classifier(x).logits[jnp.arange(len(x)), labels].sum())(images)
        return threat.project(images + threat.eps * jnp.sign(gradient), images)

    settings = {'attacks': momentless, 'return_images': True, **ONE}
    labels = np.argmax(of_colour(SQUARE), axis=1)
    expected = evaluate(of_colour, SQUARE, labels, transfer_from={'other': of_colour}, **settings)
    first = np.moveaxis(SQUARE, 3, 1)
    found = evaluate(
        channels_first, first, labels, layout='nchw', transfer_from={'other': channels_first}, **settings
    )
    for name in expected.correct:
        assert_array_equal(found.correct[name], expected.correct[name])
    for name, images in expected.images.items():
        np.testing.assert_allclose(np.moveaxis(found.images[name], 1, 3), images, atol=1e-6)


def test_layouts_are_told_or_recognised():
    with pytest.raises(InputError, match="unknown layout 'NCHW'"):
        layout_of('NCHW', NET, IMAGES)
    with pytest.raises(InputError, match=r"looks like \[N, C, H, W\].*layout='nhwc' if they are as"):
        layout_of(None, NET, np.moveaxis(SQUARE, 3, 1))
    with pytest.raises(InputError, match=r'shape \(2, 3, 224, 160\), which looks like'):
        layout_of(None, NET, np.zeros((2, 3, 224, 160)))
    assert layout_of('nhwc', NET, np.moveaxis(SQUARE, 3, 1)) == 'nhwc'
    assert layout_of(None, NET, SQUARE) == 'nhwc'
    assert layout_of('nchw', NET, IMAGES) == 'nchw'


@pytest.mark.parametrize(
    ('shape', 'layout'),
    [
        ((32, 32, 3), 'nhwc'),
        ((3, 32, 32), 'nchw'),
        ((3, 2, 2), 'nchw'),
        ((13, 8, 8), 'nchw'),
        ((8, 8, 13), 'nhwc'),
        ((4, 32, 64), 'nchw'),
        ((1, 64, 1), 'nhwc'),
        ((3, 8, 3), None),
    ],
)
def test_layouts_for_networks_that_take_channels_first(shape, layout):
    nn = pytest.importorskip('torch').nn
    if layout is None:
        with pytest.raises(
            InputError, match="cannot be told whether channels come first. Give layout='nchw'"
        ):
            layout_of(None, nn.Flatten(), np.zeros((2, *shape)))
    else:
        assert layout_of(None, nn.Flatten(), np.zeros((2, *shape))) == layout


def test_labels_as_a_column_get_a_remedy_that_is_right():
    with pytest.raises(InputError, match=r'give labels\[:, 0\]$'):
        check_labels(np.arange(4)[:, None], 4)
    with pytest.raises(InputError, match=r'give labels.argmax\(axis=1\)'):
        check_labels(np.eye(4), 4)


def test_pixels_that_rounding_put_outside_are_clipped_with_a_note():
    images = IMAGES.copy()
    images[3, 0, 0, 0], images[5, 1, 1, 1] = 1 + 1.2e-7, -3e-8
    found, (note,) = check_images(images)
    assert found.min() >= 0 and found.max() <= 1
    assert (
        note.startswith('2 of 10 images were outside of [0, 1] by rounding, in [-2.9')
        and '1.00000012' in note
    )
    assert evaluate(NET, images, LABELS, attacks='fgsm', **ONE).warnings == [note]
    images[3, 0, 0, 0] = 1.0001
    with pytest.raises(InputError, match=r', 1.0001\d+\], not in \[0, 1\]: .*clip them'):
        check_images(images)
    assert check_images(np.clip(images, 0, 1))[1] == ()


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'eps': [0.01, 0.02]}, r'eps=\[0.01, 0.02\] must be one number.*once for each'),
        ({'eps': '8/255'}, "eps='8/255' must be a number: write it without quotes"),
        ({'eps': None}, 'eps=None must be one number'),
        ({'eps': 0}, r"eps=0 is not in .*accuracy\['clean'\]"),
        ({'step_size': '2/255'}, "step_size='2/255' must be a number"),
        ({'attacks': None}, 'None is no attack: give a name'),
        ({'attacks': 7}, '7 is no attack'),
        ({'seed': 2**70}, r'seed=1180591620717411303424 is too large: it must be below 2\*\*32'),
        ({'devices': []}, r'devices=\[\] is no list of devices.*leave it out'),
        ({'devices': 'cpu'}, "devices='cpu' is no list of devices"),
        ({'devices': jax.local_devices()[0]}, r'is no list of devices, as jax.local_devices\(\)\[:1\] is'),
        ({'indices': [0, 1, 2, 3, 4, 5, 6, 7, 8, 5]}, r'indices\[5\] and indices\[9\] are both 5'),
        ({'labels': np.array([datetime.timedelta(days=1)] * 10, 'm8[ns]')}, r'labels are timedelta64\[ns\]'),
        ({'labels': np.eye(4)[LABELS]}, r'they must be \[10\].*labels.argmax\(axis=1\)'),
        ({'images': IMAGES.reshape(10, -1)}, r'images.reshape\(len\(images\), 1, -1, 1\)'),
        ({'images': IMAGES[..., 0]}, r'images\[\.\.\., None\]'),
    ],
)
def test_arguments_of_the_wrong_kind(settings, match):
    arguments = {'images': IMAGES, 'labels': LABELS, **settings}
    with pytest.raises(InputError, match=match):
        Request.of(arguments.pop('images'), arguments.pop('labels'), **arguments)


def test_vectors_are_evaluated_as_the_error_says():
    vectors = IMAGES.reshape(len(IMAGES), -1)

    def model(x):
        return (x - 0.5) @ NET.v @ NET.v.T @ NET.v @ NET.w

    images = vectors.reshape(len(vectors), 1, -1, 1)
    labels = np.argmax(model(vectors), axis=1)
    found = evaluate(lambda x: model(x.reshape(len(x), -1)), images, labels, attacks='fgsm', **ONE)
    assert found.accuracy['clean'] == 1.0
