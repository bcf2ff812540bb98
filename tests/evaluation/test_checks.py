"""Wrong arguments and unfit classifiers are refused, with the remedy, before any attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import InputError, Outputs, Randomised, evaluate
from si_jax.evaluation import arrays, tolerances
from si_jax.evaluation.pgd import Pgd
from tests.helpers.problems import SHAPE, images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(10)


@pytest.fixture(autouse=True)
def no_attack(monkeypatch):
    """An attack must never begin in these tests."""

    def fail(*args, **kwargs):
        raise AssertionError('an attack began')

    monkeypatch.setattr(Pgd, 'run', fail)


def refused(match, classifier=NET, images=IMAGES, labels=LABELS, attacks='pgd', **settings):
    with pytest.raises(InputError, match=match):
        evaluate(classifier, images, labels, attacks=attacks, **settings)


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'eps': 8}, r'eps=8 is not in \(0, 1\] for linf: did you mean 8/255\?'),
        ({'eps': 0.0}, 'eps=0 is not in'),
        ({'eps': float('nan')}, 'eps=nan is not in'),
        ({'eps': 9.0, 'norm': 'l2'}, r'eps=9 is not in \(0, 8.48528\] for l2'),
        ({'attacks': 'pdg'}, "unknown attack 'pdg': did you mean pgd"),
        ({'attacks': []}, 'no attack given'),
        ({'attacks': ['pgd', 'pgd']}, "'pgd' is given 2 times"),
        ({'steps': 0}, 'steps=0 must be an integer of at least 1'),
        ({'steps': 2.5}, 'steps=2.5 must be an integer'),
        ({'restarts': 0}, 'restarts=0'),
        ({'eot_samples': 0}, 'eot_samples=0'),
        ({'batch_size': 0}, 'batch_size=0'),
        ({'seed': -1}, 'seed=-1 must be an integer of at least 0'),
        ({'step_size': 2.0}, r'step_size=2 is not in \(0, 1\] for linf: did you mean 2/255\?'),
        ({'step_size': 0.0}, 'step_size=0 is not in'),
        ({'images': IMAGES[0]}, r'images have shape \(6, 6, 2\): they must be \[N, H, W, C\]'),
        ({'images': IMAGES[:0], 'labels': LABELS[:0]}, 'at least one image'),
        ({'images': (255 * IMAGES).astype(np.uint8)}, 'images are uint8.*divide 8-bit images by 255'),
        ({'images': 255 * IMAGES}, r'not in \[0, 1\]: divide 8-bit pixel values by 255'),
        ({'images': 4 * IMAGES - 2}, r'not in \[0, 1\]: give them unnormalised'),
        (
            {'images': np.where(np.arange(10)[:, None, None, None] == 3, np.nan, IMAGES)},
            r'images\[3\] holds NaN',
        ),
        ({'labels': LABELS.astype('m8[s]')}, r'labels are timedelta64\[s\]: they must be integers'),
        ({'indices': np.arange(10).astype('m8[s]')}, r'indices are timedelta64\[s\].*must be integers'),
        ({'labels': LABELS[:9]}, r'labels have shape \(9,\): they must be \[10\]'),
        ({'labels': LABELS.astype(float)}, 'labels are float64: they must be integers'),
        ({'labels': np.where(np.arange(10) == 7, 4, LABELS)}, r'labels\[7\]=4 is not in \[0, 4\)'),
        ({'labels': np.where(np.arange(10) == 7, -1, LABELS)}, r'labels\[7\]=-1 is not in \[0, 4\)'),
        ({'indices': np.arange(9)}, r'they must be integers \[10\]'),
        ({'indices': np.arange(10) - 1}, r'indices lie in \[-1, 8\]'),
        ({'classifier': 'resnet18'}, 'a classifier is a callable'),
        ({'classifier': lambda x: x}, 'must return logits'),
        (
            {'classifier': lambda x: (NET(x).logits, NET(x).features, None)},
            'features and kernel belong together',
        ),
    ],
)
def test_wrong_arguments(settings, match):
    refused(match, **settings)


def test_a_network_of_the_wrong_size_fails_before_compute_with_the_shapes():
    refused(
        r'cannot take images of shape \[\d, 6, 4, 2\] .*48.*72.*any number of images',
        NET,
        np.zeros((3, 6, 4, 2), np.float32),
        LABELS[:3],
    )


def test_attacks_that_a_classifier_is_unfit_for():
    refused("'sipgd' needs the features", lambda x: NET(x).logits ** 3, attacks='pgd,sipgd')


def test_nan_logits_name_the_first_image():
    def fails_on_one(x):
        return Outputs(NET(x).logits / jnp.where(x[:, :1, 0, 0] == IMAGES[6, 0, 0, 0], 0.0, 1.0))

    refused('NaN or infinite logits for image 6:', fails_on_one)
    refused('NaN or infinite logits for image 106:', fails_on_one, indices=np.arange(100, 110))


def test_batch_normalisation_in_training_mode():
    def batch_statistics(x):
        outputs = NET(x)
        z = (outputs.features - outputs.features.mean(0)) / (outputs.features.std(0) + 1e-5)
        return Outputs(z @ NET.w + NET.b, z, NET.w)

    match = r'logits of an image change by .* with the other images of its batch.*evaluation mode'
    refused(match, batch_statistics)
    refused(match, jax.jit(batch_statistics))
    refused(match, batch_statistics, images=IMAGES[:1], labels=LABELS[:1])


def test_host_randomness():
    rng = np.random.default_rng(0)

    def noisy(x):
        return NET(x + 0.01 * rng.normal(size=x.shape).astype(np.float32))

    refused(r'two calls on the same images disagree.*si_jax.Randomised', noisy)


def test_a_classifier_that_differs_once_compiled():
    def depends_on_tracing(x):
        return NET(x if isinstance(x, jax.core.Tracer) else 0.9 * x)

    refused('compiled by JAX the classifier disagrees with itself', depends_on_tracing)


def test_randomised_classifiers_must_use_each_images_own_key():
    def noise_of(place):
        return lambda x, keys: NET(x + 0.05 * jax.random.normal(keys[place], x.shape))

    rng = np.random.default_rng(0)

    def host_noise(x, keys):
        return NET(x + 0.05 * rng.normal(size=x.shape).astype(np.float32))

    for place in (0, 3, -1):
        refused('with the other images of its batch.*own key', Randomised(noise_of(place)))
    refused('must draw everything from its keys', Randomised(host_noise))


@pytest.mark.parametrize(
    ('name', 'wrong'),
    [
        ('another kernel', lambda o: o._replace(kernel=jnp.roll(o.kernel, 1, axis=1))),
        ('a negative scale', lambda o: o._replace(logits=-o.logits)),
        ('a scale per class', lambda o: o._replace(logits=o.logits * jnp.arange(1.0, 5.0))),
        (
            'a scale per image',
            lambda o: o._replace(logits=o.logits / jnp.linalg.norm(o.features, axis=1)[:, None]),
        ),
        ('probabilities', lambda o: o._replace(logits=jax.nn.softmax(o.logits))),
        (
            'features before the nonlinearity',
            lambda o: o._replace(features=o.features - 1.0 * (o.features == 0)),
        ),
        ('constant features', lambda o: o._replace(features=jnp.ones_like(o.features))),
        ('NaN features', lambda o: o._replace(features=o.features * jnp.nan)),
    ],
)
def test_features_that_do_not_explain_the_logits(name, wrong):
    match = r'features and kernel do not explain the logits.*residual of'
    refused(match, lambda x: wrong(NET(x)), attacks='sipgd')
    # A single image leaves nothing to fit but the bias; it must be found all the same.
    refused(match, lambda x: wrong(NET(x)), IMAGES[:1], LABELS[:1], attacks='sipgd')


def test_features_that_explain_the_logits():
    outputs = NET(jnp.asarray(IMAGES))
    products = outputs.features @ outputs.kernel
    for scale, shift in ((1.0, 0.0), (1e3, 5.0), (1e-3, -2.0), (1.0, np.arange(4))):
        tolerances.check_explained(scale * products + shift, products)
    tolerances.check_explained(np.zeros((10, 4)), np.zeros((10, 4)))  # a dead network has nothing to hide
    limit = tolerances.AGREEMENT * np.abs(products - products.mean(0)).max()
    off = np.zeros((10, 4))
    off[3, 1] = 2 * limit
    with pytest.raises(InputError, match='do not explain'):
        tolerances.check_explained(products + off, products)


def test_images_keep_float64_only_where_it_is_enabled():
    assert arrays.check_images(IMAGES.astype(np.float64))[0].dtype == np.float64
    assert arrays.check_images(IMAGES.astype(np.float16))[0].dtype == np.float32
    assert arrays.check_images(jnp.zeros((2, *SHAPE), jnp.bfloat16))[0].dtype == np.float32
    with jax.enable_x64(False):
        assert arrays.check_images(IMAGES.astype(np.float64))[0].dtype == np.float32
