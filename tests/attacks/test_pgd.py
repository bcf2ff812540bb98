"""Gradient attacks: an independent loop, the identities of the scale-invariant loss, batches and cost."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import losses, models, objectives
from si_jax.attacks import pgd
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack
from si_jax.outputs import Outputs, cosine, scaled_cosine
from si_jax.threat import Threat

BATCH, SHAPE, CLASSES = 6, (5, 5, 2), 5
LINF, L2 = Threat('linf', 0.1), Threat('l2', 0.5)
STEPS = 6
FAMILY = ('pgd', 'cw', 'dlr', 'sipgd')
TRADES = Attack(objectives.kl)


def network(dtype=jnp.float64):
    """Weights of two convolutions and a linear layer, and a factor on the logits after it."""
    rng = np.random.default_rng(0)
    shapes = {'first': (3, 3, 2, 6), 'second': (3, 3, 6, 8), 'kernel': (8, CLASSES), 'bias': (CLASSES,)}
    weights = {name: rng.normal(size=shape) / np.prod(shape[:-1]) ** 0.5 for name, shape in shapes.items()}
    return {name: jnp.asarray(value, dtype) for name, value in (weights | {'factor': 1.0}).items()}


def forward(weights, images):
    def convolve(x, kernel):
        layout = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=layout)

    x = jnp.tanh(convolve(4 * images - 2, weights['first']))
    features = jnp.mean(jnp.tanh(convolve(x, weights['second'])), axis=(1, 2))
    kernel = weights['kernel']
    return Outputs(weights['factor'] * (features @ kernel + weights['bias']), features, kernel)


def hypersphere(weights, images):
    """The network with unit features and weights and without bias: its logits are cosines."""
    outputs = forward(weights, images)
    z, w = outputs.features, outputs.kernel
    z, w = z / jnp.linalg.norm(z, axis=1, keepdims=True), w / jnp.linalg.norm(w, axis=0)
    return Outputs(z @ w, z, w)


def batch(size=BATCH, seed=1, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(size=(size, *SHAPE)), dtype)
    labels = jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32)
    return images, labels, jax.random.split(jax.random.key(seed), size)


@functools.lru_cache
def compiled(attack, model, threat, steps):
    """Weights are an argument, so that tests which change them share a program."""

    def call(weights, *data):
        def classifier(images, keys):
            return model(weights, images)

        size = threat.eps / 4
        return pgd.run(attack, classifier, *data, threat=threat, steps=steps, step_size=size)

    return jax.jit(call)


def attacked(attack, weights, *data, model=forward, threat=LINF, steps=STEPS):
    return compiled(attack, model, threat, steps)(weights, *data)


# The losses again, one image at a time: (logits [K], cosines [K], label) -> a number.
def ce_by_hand(u, y):
    return jnp.log(jnp.sum(jnp.exp(u - jnp.max(u)))) + jnp.max(u) - u[y]


def margin_by_hand(u, y):
    return jnp.max(jnp.where(jnp.arange(CLASSES) == y, -jnp.inf, u)) - u[y]


def dlr_by_hand(u, y):
    ordered = jnp.sort(u)
    return margin_by_hand(u, y) / (ordered[-1] - ordered[-3] + 1e-12)


BY_HAND = {
    'pgd': lambda g, c, y: ce_by_hand(g, y),
    'cw': lambda g, c, y: margin_by_hand(g, y),
    'dlr': lambda g, c, y: dlr_by_hand(g, y),
    'sipgd': lambda g, c, y: ce_by_hand(15 * c, y),
}


def loss_by_hand(name, weights, x, y):
    outputs = forward(weights, x[None])
    z, w = outputs.features[0], outputs.kernel
    c = (z / jnp.sqrt(jnp.sum(z**2))) @ (w / jnp.sqrt(jnp.sum(w**2, axis=0)))
    return BY_HAND[name](outputs.logits[0], c, y)


@functools.lru_cache
def slopes_by_hand(name):
    slope = jax.grad(functools.partial(loss_by_hand, name), argnums=1)
    return jax.jit(jax.vmap(slope, in_axes=(None, 0, 0)))


@pytest.mark.parametrize(
    ('name', 'threat'),
    [*[(name, LINF) for name in FAMILY], ('pgd', L2), ('sipgd', L2)],
    ids=lambda value: getattr(value, 'norm', value),
)
def test_iterates_equal_an_independent_loop(name, threat):
    weights, (images, labels, keys) = network(), batch()
    ours = attacked(ATTACKS[name], weights, images, labels, keys, threat=threat)
    start = pgd.from_uniform(threat, jax.vmap(jax.random.split)(keys)[:, 0], images)

    x, original, size = np.asarray(start), np.asarray(images), threat.eps / 4
    for _ in range(STEPS):
        g = np.asarray(slopes_by_hand(name)(weights, x, labels))
        if threat.norm == 'linf':
            x = np.clip(x + size * np.sign(g), original - threat.eps, original + threat.eps)
        else:
            delta = x + size * g / np.sqrt((g**2).sum((1, 2, 3), keepdims=True)) - original
            length = np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
            x = original + delta * np.minimum(1, threat.eps / length)
        x = np.clip(x, 0, 1)
    np.testing.assert_allclose(ours.last, x, rtol=0, atol=1e-12)
    assert float(jnp.max(jnp.abs(ours.last - start))) > 0.02
    assert (np.asarray(threat.distance(ours.last, images)) <= threat.eps + 1e-12).all()


# Identity 1: scale invariance.


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
@pytest.mark.parametrize('factor', [2.0**-10, 2.0**10])
def test_sipgd_is_bit_equal_when_the_last_layer_is_scaled_by_a_power_of_two(factor, dtype):
    weights, data = network(dtype), batch(dtype=dtype)
    scaled = weights | {'kernel': factor * weights['kernel'], 'bias': factor * weights['bias']}
    one, other = (attacked(ATTACKS['sipgd'], w, *data) for w in (weights, scaled))
    assert one.last.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_pgd_gap_is_bit_equal_when_the_logits_are_multiplied_by_a_power_of_two():
    weights, data = network(jnp.float32), batch(dtype=jnp.float32)
    scaled = weights | {'factor': jnp.float32(2.0**12)}
    one, other = (attacked(ATTACKS['pgd-gap'], w, *data) for w in (weights, scaled))
    np.testing.assert_array_equal(one.last, other.last)
    np.testing.assert_array_equal(one.fooled, other.fooled)


@pytest.mark.parametrize('factor', [1e-3, 1e3])
def test_sipgd_does_not_see_the_scale_of_the_last_layer(factor):
    weights, data = network(), batch()
    scaled = weights | {'kernel': factor * weights['kernel'], 'bias': factor * weights['bias']}
    one, other = (attacked(ATTACKS['sipgd'], w, *data) for w in (weights, scaled))
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_sipgd_does_not_see_a_factor_on_the_logits_while_pgd_loses_its_gradient():
    weights, (images, _, keys) = network(jnp.float32), batch(dtype=jnp.float32)
    # The predicted class as the label: the case in which a large factor saturates the softmax.
    labels = jnp.argmax(forward(weights, images).logits, axis=1).astype(jnp.int32)
    data = images, labels, keys
    scaled = weights | {'factor': jnp.float32(1e5)}
    one, other = (attacked(ATTACKS['sipgd'], w, *data) for w in (weights, scaled))
    jax.tree.map(np.testing.assert_array_equal, one, other)

    def steepest(weights):
        gradient = jax.grad(lambda x: losses.cross_entropy(forward(weights, x).logits, labels).sum())(images)
        return np.abs(gradient).max(axis=(1, 2, 3))

    # Zero, or as near as the machine's exponential comes to it.
    assert steepest(weights).min() > 1e-4 and steepest(scaled).min() < 1e-30


# Identity 2: a network that returns cosines.


def by_phases(first, second, weights, start, images, labels, sizes):
    """Signed steps on `first` in the first half, then on `second`: the last, and the latest misclassified.

    The losses take logits [K] and a label; `sizes` are multiples of eps.
    """
    slopes = [
        jax.jit(jax.vmap(jax.grad(lambda x, y, f=f: f(forward(weights, x[None]).logits[0], y))))
        for f in (first, second)
    ]
    x, original, found = np.asarray(start), np.asarray(images), np.asarray(start).copy()
    for i, size in enumerate(sizes):
        fooled = np.argmax(forward(weights, x).logits, axis=1) != np.asarray(labels)
        found[fooled] = x[fooled]
        x = x + size * LINF.eps * np.sign(slopes[i >= len(sizes) // 2](x, labels))
        x = np.clip(np.clip(x, original - LINF.eps, original + LINF.eps), 0, 1)
    return x, found


def other_by_hand(u, y):
    return jnp.max(jnp.where(jnp.arange(CLASSES) == y, -jnp.inf, u))


def gap_scaled_ce_by_hand(u, y):
    ordered = jnp.sort(jax.lax.stop_gradient(u))
    return ce_by_hand(3 * u / (ordered[-1] - ordered[-3]), y)


@pytest.mark.parametrize(
    ('name', 'restart', 'first', 'periods'),
    [
        ('pgd-hybrid', 0, gap_scaled_ce_by_hand, 1),
        ('pgd-md', 0, lambda u, y: -u[y], 2),
        ('pgd-md', 1, other_by_hand, 2),
    ],
)
def test_attacks_in_two_phases_equal_an_independent_loop(name, restart, first, periods):
    weights, (images, labels, keys) = network(), batch()
    ours = attacked(ATTACKS[name].in_restart(restart), weights, images, labels, keys)
    start = pgd.from_uniform(LINF, jax.vmap(jax.random.split)(keys)[:, 0], images)
    period = STEPS // periods
    sizes = [1 + np.cos(np.pi * (i % period) / period) for i in range(STEPS)]
    last, found = by_phases(first, margin_by_hand, weights, start, images, labels, sizes)
    np.testing.assert_allclose(ours.last, last, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.fooled_image, found, rtol=0, atol=1e-12)
    assert ATTACKS[name].any_iterate and bool(ours.fooled.any())


def test_sipgd_with_scale_one_is_pgd_on_a_network_that_returns_cosines():
    si = ATTACKS['sipgd']._replace(score=scaled_cosine(1.0))
    one, other = (attacked(attack, network(), *batch(), model=hypersphere) for attack in (si, ATTACKS['pgd']))
    np.testing.assert_allclose(one.last, other.last, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.best_loss, other.best_loss, rtol=1e-12)


# Identity 5: s -> infinity.


def test_large_scale_gives_the_direction_of_the_cosine_margin():
    weights, (images, labels, keys) = network(), batch(512)
    cosines = jax.jit(lambda w, x: cosine(forward(w, x)))(weights, images)
    ordered = jnp.sort(cosines, axis=1)
    # Wrong label: any scale will do. Right label: 1 - p_y must stay above rounding, s (c_y - c_k) < 30, and
    # the third class must not count, so images whose first two classes are close are chosen.
    wrong = jnp.argmin(cosines, axis=1)
    right = jnp.argmax(cosines, axis=1)
    apart = (ordered[:, -1] - ordered[:, -2] < 0.02) & (ordered[:, -2] - ordered[:, -3] > 0.05)
    assert int(apart.sum()) >= 5

    def direction(objective, score, labels):
        def classifier(images, keys):
            return forward(weights, images)

        value = pgd.value_function(objective, score, classifier, labels, None, keys)
        return np.sign(np.asarray(jax.jit(value)(0, images)[1]))

    distinct = np.asarray((ordered[:, -1] - ordered[:, -2]) > 1e-3)
    for labels, rows, scale in ((wrong, distinct, 1e6), (right, np.asarray(apart), 1e3)):
        si = direction(objectives.adversarial_ce, scaled_cosine(scale), labels)[rows]
        cw = direction(objectives.margin, cosine, labels)[rows]
        assert (si == cw).mean() > 0.9999
        ce = direction(objectives.adversarial_ce, scaled_cosine(1.0), labels)[rows]
        assert (ce == cw).mean() < 0.99  # so the large scale made the difference


# Randomness and batches.


@pytest.mark.parametrize('attack', [ATTACKS['sipgd'], ATTACKS['dlr'], TRADES], ids=['sipgd', 'dlr', 'trades'])
def test_an_image_is_attacked_the_same_alone_and_in_a_batch(attack):
    weights, data = network(), batch()
    together = attacked(attack, weights, *data)
    order = jnp.array([4, 0, 3, 5, 2, 1])
    for rows in (order, order[4:5]):
        moved = attacked(attack, weights, *(part[rows] for part in data))
        np.testing.assert_array_equal(moved.last, together.last[rows])
        np.testing.assert_array_equal(moved.fooled, together.fooled[rows])
        np.testing.assert_array_equal(moved.fooled_image, together.fooled_image[rows])


def test_the_pgd_family_shares_its_random_starts():
    weights, (images, labels, keys) = network(), batch()
    starts = [attacked(ATTACKS[name], weights, images, labels, keys, steps=0).last for name in FAMILY]
    for start in starts[1:]:
        np.testing.assert_array_equal(start, starts[0])
    other = jax.random.split(jax.random.key(99), BATCH)
    fresh = attacked(ATTACKS['pgd'], weights, images, labels, other, steps=0).last
    assert (np.asarray(fresh != starts[0]).any(axis=(1, 2, 3))).all()
    assert len(np.unique(np.asarray(starts[0] - images)[:, 0, 0, 0])) == BATCH


def test_starts():
    images, _, keys = batch()
    np.testing.assert_array_equal(pgd.from_original(LINF, keys, images), images)
    # Not projected: of 300 entries of an image on the border half leave [0, 1].
    border = jnp.zeros((BATCH, *SHAPE))
    gaussian = np.asarray(pgd.from_gaussian(LINF, keys, border))
    assert gaussian.std() == pytest.approx(0.001, rel=0.15) and gaussian.min() < 0
    np.testing.assert_array_equal(pgd.from_gaussian(LINF, keys[3:], border[3:]), gaussian[3:])


def randomised(weights):
    def classifier(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE, images.dtype))(keys)
        return forward(weights, images + 0.3 * noise)

    return classifier


def test_eot_averages_the_gradients_of_its_samples():
    weights, (images, labels, keys) = network(), batch(12)
    samples, step = 5, 3
    value = pgd.value_function(
        objectives.adversarial_ce,
        lambda o: o.logits,
        randomised(weights),
        labels,
        None,
        keys,
        eot_samples=samples,
    )
    loss, slope, fooled = jax.jit(value)(step, images)

    @jax.jit
    def once(number):
        drawn = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

        def one(x, y, key):
            outputs = randomised(weights)(x[None], key[None])
            return ce_by_hand(outputs.logits[0], y), jnp.argmax(outputs.logits[0]) != y

        return jax.vmap(jax.value_and_grad(one, has_aux=True))(images, labels, drawn)

    # Sample k of step i is number 1 + 5 i + k; number 0 is for the natural score.
    (losses, wrong), slopes = jax.tree.map(
        lambda *x: np.stack(x), *[once(1 + samples * step + k) for k in range(samples)]
    )
    np.testing.assert_allclose(loss, losses.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(slope, slopes.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(fooled, wrong.sum(axis=0) > samples / 2)
    assert (losses.std(axis=0) > 1e-3).all()
    assert 0 < np.asarray(fooled).sum() < 12 and (wrong.any(axis=0) != np.asarray(fooled)).any()


def test_a_randomised_classifier_draws_anew_in_every_step():
    weights, (images, labels, keys) = network(), batch()
    value = jax.jit(
        pgd.value_function(
            objectives.adversarial_ce, lambda o: o.logits, randomised(weights), labels, None, keys
        )
    )
    losses = np.stack([value(i, images)[0] for i in range(3)])
    assert (np.abs(np.diff(losses, axis=0)) > 1e-6).all()
    np.testing.assert_array_equal(value(1, images)[0], losses[1])


# Cost: what is computed, and how often.


def jaxprs_in(value):
    if hasattr(value, 'eqns'):
        yield value
    elif hasattr(value, 'jaxpr'):
        yield value.jaxpr
    elif isinstance(value, tuple | list):
        for part in value:
            yield from jaxprs_in(part)


def operations(jaxpr, in_loop=False):
    """(inside a loop, name, shape of the result) of every convolution and matrix product."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ('conv_general_dilated', 'dot_general'):
            found.append((in_loop, name, equation.outvars[0].aval.shape))
        for inner in jaxprs_in(list(equation.params.values())):
            found += operations(inner, in_loop or name in ('while', 'scan'))
    return found


def trace(attack, images, labels, keys, calls):
    weights = network()

    def classifier(images, keys):
        calls.append(images.shape)
        return forward(weights, images)

    def call(images, labels, keys):
        return pgd.run(attack, classifier, images, labels, keys, threat=LINF, steps=STEPS, step_size=0.025)

    return operations(jax.make_jaxpr(call)(images, labels, keys).jaxpr)


@pytest.mark.parametrize(
    ('attack', 'before', 'inside'),
    [
        # Two convolutions and a matrix product, and as many again for the gradient of the images. The
        # weights' would be three more.
        (ATTACKS['pgd'], 0, 6),
        # One more product for the cosines; the logits decide on success and have no gradient.
        (ATTACKS['sipgd'], 0, 7),
        # The natural logits once, before the loop.
        (TRADES, 3, 6),
    ],
    ids=['pgd', 'sipgd', 'trades'],
)
def test_a_step_is_one_forward_pass_and_the_gradient_of_the_images(attack, before, inside):
    calls = []
    images, labels, keys = batch(7)
    found = trace(attack, images, labels, keys, calls)
    assert len(calls) == 1 + (before > 0)
    assert sum(not in_loop for in_loop, _, _ in found) == before
    assert sum(in_loop for in_loop, _, _ in found) == inside
    weight_shapes = {value.shape for value in network().values()}
    assert not weight_shapes & {shape for _, _, shape in found}


# Single steps.


def test_fgsm_is_one_sign_step_of_eps_from_the_original():
    weights, (images, labels, keys) = network(), batch()
    ours = attacked(ATTACKS['fgsm'], weights, images, labels, keys)  # whatever steps and step size are given
    slopes = slopes_by_hand('pgd')(weights, images, labels)
    by_hand = np.clip(np.asarray(images) + LINF.eps * np.sign(slopes), 0, 1)
    np.testing.assert_allclose(ours.last, by_hand, rtol=0, atol=1e-15)


def linear(weights, images):
    """Logits of three images: ordinary slopes, slopes of 1e-30, slopes of exactly zero."""
    size = jnp.array([1.0, 1e-30, 0.0], images.dtype)[:, None, None, None]
    slope = jnp.cos(jnp.arange(50.0)).reshape(SHAPE).astype(images.dtype)
    u = jnp.sum(size * slope * images, axis=(1, 2, 3))
    return Outputs(jnp.stack([jnp.zeros_like(u), u, -1 + jnp.zeros_like(u)], axis=1))


@pytest.mark.parametrize('threat', [Threat('linf', 0.01), Threat('l2', 0.01)], ids=['linf', 'l2'])
def test_steepest_step_has_full_length_unless_the_gradient_is_zero(threat):
    images = jnp.full((3, *SHAPE), 0.5, jnp.float32)
    keys, labels = jax.random.split(jax.random.key(0), 3), jnp.zeros(3, jnp.int32)
    attack = Attack(objectives.margin, start=pgd.from_original)
    last = attacked(attack, None, images, labels, keys, model=linear, threat=threat, steps=1).last
    slope = np.cos(np.arange(50.0)).reshape(SHAPE)
    direction = np.sign(slope) if threat.norm == 'linf' else slope / np.linalg.norm(slope)
    for i in range(2):
        np.testing.assert_allclose(last[i] - images[i], 0.0025 * direction, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(last[2], images[2])


def test_gama_equals_an_independent_loop():
    """Starts at signs of eps, which is the reference; w falls from 50 to 0 in 25 steps; three step sizes."""
    images, labels, keys = batch()
    weights = network()
    start = pgd.starting_points(ATTACKS['gama'].start, LINF, images, keys)
    moved = np.asarray(start - images)
    inner = (np.asarray(images) > LINF.eps) & (np.asarray(images) < 1 - LINF.eps)
    assert np.allclose(np.abs(moved[inner]), LINF.eps) and 0.3 < np.mean(moved > 0) < 0.7
    reference = jax.nn.softmax(forward(weights, start).logits)
    others = ~np.eye(CLASSES, dtype=bool)[np.asarray(labels)]

    @jax.jit
    def slope(x, weight):
        def total(x):
            p = jax.nn.softmax(forward(weights, x).logits)
            margin = jnp.max(jnp.where(others, p, -1.0), axis=1) - p[jnp.arange(BATCH), labels]
            return jnp.sum(margin + weight * jnp.sum((reference - p) ** 2, axis=1))

        return jax.grad(total)(x)

    x, original = np.asarray(start), np.asarray(images)
    for i in range(100):
        size = 2 * LINF.eps / 10 ** ((i >= 60) + (i >= 85))
        x = x + size * np.sign(slope(x, max(50.0 - 2 * i, 0.0)))
        x = np.clip(np.clip(x, original - LINF.eps, original + LINF.eps), 0, 1)
    ours = attacked(ATTACKS['gama'], weights, images, labels, keys)
    np.testing.assert_allclose(ours.last, x, atol=1e-12)


def test_sipgd_with_scale_one_is_pgd_on_a_network_trained_with_hypersphere_embedding():
    model = models.create('small_cnn', num_classes=CLASSES, width=2, hypersphere=True)
    images, labels, keys = batch()
    variables = jax.tree.map(jnp.float64, model.init(jax.random.key(0), images))
    si = ATTACKS['sipgd']._replace(score=scaled_cosine(1.0))
    runs = [
        attacked(attack, variables, images, labels, keys, model=model.apply)
        for attack in (si, ATTACKS['pgd'])
    ]
    np.testing.assert_array_equal(runs[0].last, runs[1].last)
    assert np.any(runs[0].last != pgd.starting_points(si.start, LINF, images, keys))
    logits = model.apply(variables, images).logits
    np.testing.assert_allclose(logits, cosine(model.apply(variables, images)), atol=1e-6)


def test_an_attack_is_traced_once_for_many_batches():
    weights = network()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def attacked(images, labels, keys):
        classifier = lambda x, _: forward(weights, x)  # noqa: E731
        return pgd.run(
            ATTACKS['pgd'], classifier, images, labels, keys, threat=LINF, steps=2, step_size=0.05
        ).last

    for seed in range(3):
        attacked(*batch(seed=seed))


def test_an_objective_that_mixes_the_images_of_a_batch_is_refused():
    mean = objectives.on_adversarial(lambda score, labels: losses.margin(score, labels).mean())
    images, labels, keys = batch()
    with pytest.raises(AssertionError, match='shape'):
        pgd.run(
            Attack(mean),
            lambda x, _: forward(network(), x),
            images,
            labels,
            keys,
            threat=LINF,
            steps=1,
            step_size=0.05,
        )
