"""`evaluate` against loops written out here, and what its numbers must not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from si_jax import ATTACKS, Randomised, Threat, evaluate
from tests.helpers.problems import images_and_labels, net

NET = net()
IMAGES, LABELS = images_and_labels(30, NET)
NET64 = net(dtype='float64')
IMAGES64, LABELS64 = images_and_labels(30, NET64, 'float64')


def cross_entropy(u, y):
    return np.float64(0) - jax.nn.log_softmax(u)[y]


def margin(u, y):
    return jnp.max(jnp.delete(u, y, assume_unique_indices=True)) - u[y]


def difference_of_logits_ratio(u, y):
    ordered = jnp.sort(u)
    return margin(u, y) / (ordered[-1] - ordered[-3] + 1e-12)


def cosine_cross_entropy(z, w, y):
    cosines = jnp.stack(
        [z @ w[:, k] / (jnp.sqrt(z @ z) * jnp.sqrt(w[:, k] @ w[:, k])) for k in range(w.shape[1])]
    )
    return cross_entropy(15 * cosines, y)


LOSSES = {
    'pgd': lambda o, y: cross_entropy(o.logits[0], y),
    'cw': lambda o, y: margin(o.logits[0], y),
    'dlr': lambda o, y: difference_of_logits_ratio(o.logits[0], y),
    'sipgd': lambda o, y: cosine_cross_entropy(o.features[0], o.kernel, y),
}


def start_noise(
    seed: int, index: int, restart: int, norm: str, eps: float, shape: tuple[int, ...]
) -> np.ndarray:
    """The random start as it is specified: its key comes from (seed, image index, restart)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), restart)
    key = jax.random.split(key)[0]
    if norm == 'linf':
        return np.asarray(jax.random.uniform(key, shape, jnp.float64, -eps, eps))
    direction, radius = jax.random.split(key)
    noise = np.asarray(jax.random.normal(direction, shape, jnp.float64))
    length = float(jax.random.uniform(radius, (), jnp.float64)) ** (1 / noise.size)
    return eps * length * noise / np.sqrt(np.sum(noise**2))


@functools.cache
def gradient_of(name):
    return jax.jit(jax.grad(lambda x, label: LOSSES[name](NET64(x[None]), label)))


def plain_loop(name, norm, eps, steps, step_size, seed, index, restart):
    """One image, one step after the other, in NumPy but for the gradient."""
    original, label = IMAGES64[index], int(LABELS64[index])

    def project(x):
        if norm == 'linf':
            x = np.minimum(np.maximum(x, original - eps), original + eps)
        else:
            distance = np.sqrt(np.sum((x - original) ** 2))
            x = original + (x - original) * min(1.0, eps / max(distance, 1e-12))
        return np.clip(x, 0, 1)

    x = project(original + start_noise(seed, index, restart, norm, eps, original.shape))
    for _ in range(steps):
        g = np.asarray(gradient_of(name)(x, label))
        x = project(x + step_size * (np.sign(g) if norm == 'linf' else g / np.sqrt(np.sum(g**2))))
    return x


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 0.1), ('l2', 0.4)])
@pytest.mark.parametrize('name', LOSSES)
def test_iterates_equal_those_of_an_independent_loop(name, norm, eps):
    count = 6
    assert {'pgd', 'cw', 'dlr', 'sipgd'} == set(LOSSES)
    result = evaluate(
        NET64,
        IMAGES64[:count],
        LABELS64[:count],
        attacks=name,
        eps=eps,
        norm=norm,
        steps=7,
        seed=3,
        return_images=True,
    )
    expected = [plain_loop(name, norm, eps, 7, eps / 4, 3, i, 0) for i in range(count)]
    assert result.images[name].dtype == np.float64
    assert_allclose(result.images[name], expected, atol=1e-12)
    moved = np.argmax(NET64(jnp.asarray(np.stack(expected))).logits, axis=1)
    assert_array_equal(result.correct[name], moved == LABELS64[:count])


def test_fgsm_is_one_step_of_eps_from_the_image():
    result = evaluate(NET64, IMAGES64, LABELS64, attacks='fgsm', eps=0.05, return_images=True)
    gradients = jax.vmap(jax.grad(lambda x, y: LOSSES['pgd'](NET64(x[None]), y)))(
        jnp.asarray(IMAGES64), LABELS64
    )
    assert_allclose(result.images['fgsm'], np.clip(IMAGES64 + 0.05 * np.sign(gradients), 0, 1), atol=1e-15)
    record = result.attacks['fgsm']
    assert (record.steps, record.step_size, record.runs.shape) == (1, 0.05, (1, 30))


FAMILY = {'attacks': 'pgd,sipgd', 'eps': 0.06, 'steps': 5, 'restarts': 2, 'seed': 1}


@pytest.fixture(scope='module')
def whole():
    images, labels = images_and_labels(100, NET64, 'float64')
    return images, labels, evaluate(NET64, images, labels, **FAMILY, return_images=True)


def check_same(result, expected, order=slice(None)):
    for name, flags in expected.correct.items():
        assert 0 < flags.sum() < len(flags)
        assert_array_equal(result.correct[name], flags[order], err_msg=name)
    for name, record in expected.attacks.items():
        assert_array_equal(result.attacks[name].runs, record.runs[:, order])


@pytest.mark.parametrize('batch_size', [7, 64, 100])
@pytest.mark.parametrize('devices', [1, 8])
def test_flags_do_not_depend_on_batches_or_devices(whole, batch_size, devices):
    images, labels, expected = whole
    result = evaluate(
        NET64,
        images,
        labels,
        **FAMILY,
        batch_size=batch_size,
        devices=jax.local_devices()[:devices],
        return_images=True,
    )
    check_same(result, expected)
    for name in ('pgd', 'sipgd'):
        assert_allclose(result.images[name], expected.images[name], atol=1e-12)


def test_flags_follow_the_images_in_any_order_and_in_parts(whole):
    images, labels, expected = whole
    order = np.random.default_rng(0).permutation(100)[:60]
    result = evaluate(NET64, images[order], labels[order], **FAMILY, indices=order)
    check_same(result, expected, order)
    without = evaluate(NET64, images[order], labels[order], **FAMILY)
    assert (without.attacks['pgd'].runs != result.attacks['pgd'].runs).any()


def test_the_seed_moves_the_noise_and_attacks_share_it():
    settings = {'eps': 0.05, 'steps': 1, 'step_size': 1e-9, 'return_images': True}
    first, second = (
        evaluate(NET, IMAGES, LABELS, attacks='pgd,cw', **settings, seed=seed) for seed in (0, 1)
    )
    assert_allclose(first.images['pgd'], first.images['cw'], atol=1e-6)
    assert np.abs(first.images['pgd'] - second.images['pgd']).max() > 0.05


def test_worst_case_and_restarts():
    settings = {'eps': 0.06, 'steps': 2, 'return_images': True}
    result = evaluate(NET, IMAGES, LABELS, attacks=['cw', 'sipgd', 'fgsm'], **settings, restarts=4)
    runs = result.attacks['cw'].runs
    assert runs.shape == (4, 30) and len({int(run.sum()) for run in runs} | {int(runs.all(0).sum())}) > 1
    assert_array_equal(result.correct['cw'], runs.all(axis=0))
    assert result.single_run['cw'] == runs[0].mean()
    flags = [result.correct[name] for name in ('clean', 'cw', 'sipgd', 'fgsm')]
    assert_array_equal(result.correct['worst_case'], np.all(flags, axis=0))
    assert result.accuracy == {name: flags.mean() for name, flags in result.correct.items()}
    # The images that are returned are those that prove the flags.
    for name in result.attacks:
        predicted = np.argmax(NET(jnp.asarray(result.images[name])).logits, axis=1)
        assert_array_equal(result.correct[name], predicted == LABELS)
    one = evaluate(NET, IMAGES, LABELS, attacks='cw', **settings)
    assert_array_equal(one.correct['cw'], runs[0])


def test_every_image_is_attacked_and_the_last_iterate_counts():
    wrong = (np.argmax(NET(jnp.asarray(IMAGES)).logits, axis=1) + 1) % 4
    result = evaluate(NET, IMAGES, wrong, attacks='pgd', eps=1e-4, steps=1, return_images=True)
    assert result.accuracy['clean'] == result.accuracy['pgd'] == 0
    assert (np.abs(result.images['pgd'] - IMAGES).max(axis=(1, 2, 3)) > 0).all()
    # Without a slope nothing moves, and nothing may be counted.
    flat = evaluate(lambda x: NET(0 * x + 0.3), IMAGES, LABELS, attacks='pgd', eps=0.5, steps=1)
    assert_array_equal(flat.correct['pgd'], flat.correct['clean'])


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_an_attack_that_leaves_its_threat_model_is_never_counted(monkeypatch, norm):
    attack = ATTACKS['pgd']._replace(
        start=lambda threat, keys, images: images + 2 * threat.eps, steps=0, step_size=1.0
    )
    monkeypatch.setitem(ATTACKS, 'pgd', attack)
    with pytest.raises(AssertionError, match='pgd left its threat model on image 0'):
        evaluate(NET, IMAGES, LABELS, attacks='pgd', eps=0.1, norm=norm)


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 8 / 255), ('linf', 1.0), ('l2', 0.5)])
def test_the_largest_perturbation_is_reported(norm, eps):
    on_grid = np.round(IMAGES * 255).astype(np.float32) / np.float32(255)
    result = evaluate(NET, on_grid, LABELS, attacks='pgd', eps=eps, norm=norm, steps=3, return_images=True)
    expected = Threat(norm, eps).distance(
        jnp.asarray(result.images['pgd'], jnp.float64), jnp.asarray(on_grid, jnp.float64)
    )
    assert_allclose(result.attacks['pgd'].max_perturbation, np.max(expected), rtol=1e-12)
    assert result.attacks['pgd'].max_perturbation <= eps + 1e-6


class TestScale:
    """Figure 1 of the paper: PGD sees the scale of the logits, SI-PGD does not."""

    def test_si_pgd_is_blind_to_a_factor_on_the_logits_and_pgd_is_not(self):
        images, labels = images_and_labels(60, NET)

        def accuracy(factor):
            def rescaled(x):
                outputs = NET(x)
                return outputs._replace(logits=factor * outputs.logits)

            return evaluate(rescaled, images, labels, attacks='pgd,sipgd', eps=0.06, steps=10)

        results = [accuracy(factor) for factor in (1e-3, 1e-1, 1.0, 30.0, 1e3)]
        si = [result.accuracy['sipgd'] for result in results]
        assert 0 < si[0] < results[0].accuracy['clean'] and max(si) - min(si) == 0
        for result in results:
            assert_array_equal(result.correct['sipgd'], results[0].correct['sipgd'])
        pgd = [result.accuracy['pgd'] for result in results]
        # Saturated: the gradient is exactly zero and the random start is all that moves the image.
        assert pgd[-1] > pgd[2] + 0.1

    @pytest.mark.parametrize('factor', [2.0**-12, 2.0**12])
    def test_si_pgd_is_bit_equal_when_the_last_layer_is_scaled_by_a_power_of_two(self, factor):
        scaled = NET._replace(w=factor * NET.w, b=factor * NET.b)
        settings = {'attacks': 'sipgd', 'eps': 0.06, 'steps': 6, 'return_images': True}
        results = [evaluate(classifier, IMAGES, LABELS, **settings) for classifier in (NET, scaled)]
        assert_array_equal(results[0].images['sipgd'], results[1].images['sipgd'])


class TestRandomised:
    @staticmethod
    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
        return NET(images + 0.05 * noise)

    def test_a_randomised_classifier_draws_from_its_keys(self):
        settings = {'attacks': 'pgd', 'eps': 0.05, 'steps': 5}
        first = evaluate(Randomised(self.noisy), IMAGES, LABELS, **settings)
        again = evaluate(Randomised(self.noisy), IMAGES, LABELS, **settings, batch_size=8)
        other = evaluate(Randomised(self.noisy), IMAGES, LABELS, **settings, seed=1)
        for name in first.correct:
            assert_array_equal(first.share[name], again.share[name])
        assert (first.share['clean'] != other.share['clean']).any()
        assert 'eot_samples' in first.warnings[0]

    def test_averaged_gradients_are_stronger(self):
        images, labels = images_and_labels(200, NET)
        settings = {'attacks': 'pgd', 'eps': 0.06, 'steps': 8, 'step_size': 0.02}
        one, many = (
            evaluate(Randomised(self.noisy), images, labels, **settings, eot_samples=samples)
            for samples in (1, 10)
        )
        assert many.accuracy['pgd'] < one.accuracy['pgd']
        assert many.warnings == [] and many.attacks['pgd'].eot_samples == 10


def test_logits_alone_are_enough_for_attacks_on_logits():
    settings = {'attacks': 'pgd,cw,dlr,fgsm', 'eps': 0.05, 'steps': 3}
    result = evaluate(lambda x: NET(x).logits, IMAGES, LABELS, **settings)
    full = evaluate(lambda x: tuple(NET(x)), IMAGES, LABELS, **settings)
    assert result.accuracy == full.accuracy
    two = net(classes=2)
    labels = np.argmax(two(jnp.asarray(IMAGES)).logits, axis=1)
    binary = evaluate(lambda x: two(x).logits, IMAGES, labels, attacks='pgd,cw', eps=0.05, steps=3)
    assert binary.accuracy['clean'] == 1 > binary.accuracy['cw']


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float64'])
def test_networks_of_other_precisions(dtype):
    other = net(dtype=dtype)
    settings = {'attacks': 'pgd,sipgd', 'eps': 0.05, 'steps': 3, 'return_images': True}

    def classifier(x):
        z = other(x.astype(dtype)).features
        # As such networks should: no sum of the last layer in half precision.
        logits = (
            jnp.matmul(z, other.w, preferred_element_type=jnp.promote_types(dtype, jnp.float32)) + other.b
        )
        return logits, z, other.w

    result = evaluate(classifier, IMAGES, LABELS, **settings)
    assert result.images['sipgd'].dtype == np.float32
    assert abs(result.accuracy['pgd'] - evaluate(NET, IMAGES, LABELS, **settings).accuracy['pgd']) < 0.2


def test_inputs_as_lists_and_other_dtypes():
    settings = {'attacks': 'pgd', 'eps': 0.05, 'steps': 2}
    expected = evaluate(NET, IMAGES[:3], LABELS[:3], **settings)
    for labels in (LABELS[:3].tolist(), LABELS[:3].astype(np.uint8), jnp.asarray(LABELS[:3])):
        result = evaluate(NET, jnp.asarray(IMAGES[:3]), labels, **settings)
        assert_array_equal(result.correct['pgd'], expected.correct['pgd'])
    assert result.precision == {'search': 'float32', 'verification': 'float32', 'matmul': 'highest'}


def test_products_are_at_highest_precision():
    seen = set()

    def classifier(x):
        seen.add((isinstance(x, jax.core.Tracer), jax.config.jax_default_matmul_precision))
        return NET(x)

    evaluate(classifier, IMAGES, LABELS, attacks='pgd', eps=0.05, steps=2)
    assert seen == {(True, 'highest'), (False, 'highest')}


def test_each_attack_is_compiled_once(caplog):
    settings = {'attacks': 'pgd,cw', 'eps': 0.05, 'steps': 2, 'restarts': 3, 'batch_size': 8}
    evaluate(NET, IMAGES, LABELS, **settings)  # the programs of keys and starts outlive a call
    with jax.log_compiles():
        evaluate(NET, IMAGES, LABELS, **settings)
    compiled = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith('Compiling')
    ]
    on_images = [message for message in compiled if '[8,1,6,6,2]' in message]
    # The classifier and two attacks, for four chunks and three restarts.
    assert len(on_images) == 3
