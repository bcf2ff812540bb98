"""Searches in `evaluate`, alone and in cascades: who is attacked, from where, and what counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from si_jax import InputError, Outputs, evaluate
from si_jax.attacks.presets import PRESETS, Stage
from si_jax.attacks.searches import SEARCHES
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken, row, told

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)
ONE = jax.local_devices()[:1]
AUTOATTACK = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def run(attacks, classifier=NET, images=IMAGES, labels=LABELS, eps=0.04, **settings):
    return evaluate(classifier, images, labels, attacks=attacks, eps=eps, **{'devices': ONE, **settings})


@pytest.fixture(scope='module')
def wide():
    """In float64, where no flag may depend on rounding."""
    network = net(dtype='float64')
    return network, *images_and_labels(40, network, 'float64')


def test_batches_devices_order_and_parts_of_the_data_do_not_matter(wide):
    network, images, labels = wide
    whole = run('autoattack,spsa', *wide, batch_size=40, return_images=True)
    assert 0 < whole.accuracy['autoattack'] < whole.accuracy['clean']
    for settings in ({'batch_size': 7}, {'batch_size': 16, 'devices': jax.local_devices()}):
        other = run('autoattack,spsa', *wide, **settings, return_images=True)
        for name in ('autoattack', 'spsa'):
            for key in ('broken_by', 'queries'):
                assert_array_equal(
                    getattr(other.attacks[name], key), getattr(whole.attacks[name], key), f'{name} {key}'
                )
            assert_allclose(other.images[name], whole.images[name], atol=1e-9)
    chosen = np.random.default_rng(1).permutation(40)[:23]
    part = run('autoattack', network, images[chosen], labels[chosen], indices=chosen, batch_size=7)
    assert_array_equal(part.attacks['autoattack'].broken_by, whole.attacks['autoattack'].broken_by[chosen])


def test_a_cascade_is_its_stages_on_what_is_left(wide):
    alone = run(AUTOATTACK, *wide)
    cascade, individual = run('autoattack', *wide), run('autoattack', *wide, individual=True)
    left = alone.correct['clean']
    for number, (name, stage, own) in enumerate(
        zip(
            AUTOATTACK,
            cascade.attacks['autoattack'].stages,
            individual.attacks['autoattack'].stages,
            strict=True,
        )
    ):
        assert stage['attack'] == own['attack'] == name
        assert stage['attacked'] == left.sum() and own['attacked'] == alone.correct['clean'].sum()
        new = left & ~alone.correct[name]
        assert_array_equal(cascade.attacks['autoattack'].broken_by == number, new)
        left = left & alone.correct[name]
        assert stage['broken'] == new.sum() and stage['accuracy'] == pytest.approx(left.mean())
        assert own['accuracy'] == pytest.approx(alone.accuracy[name])
    assert_array_equal(cascade.correct['autoattack'], left)
    assert_array_equal(individual.correct['autoattack'], left)
    assert cascade.attacks['autoattack'].protocol['cascade']
    assert not individual.attacks['autoattack'].protocol['cascade']


def test_every_image_that_counts_as_broken_is_misclassified_and_in_the_ball():
    for norm, eps in (('linf', 0.04), ('l2', 0.2)):
        result = run('autoattack,square', eps=eps, norm=norm, return_images=True)
        for name in ('autoattack', 'square'):
            images, flags = result.images[name], result.correct[name]
            assert 0 < flags.mean() < result.accuracy['clean']
            predicted = np.argmax(NET(jnp.asarray(images)).logits, axis=1)
            assert_array_equal(predicted == LABELS, flags)
            delta = np.abs(images.astype(np.float64) - IMAGES).reshape(40, -1)
            size = delta.max(axis=1) if norm == 'linf' else np.sqrt((delta**2).sum(axis=1))
            assert size.max() <= eps + 1e-6 and images.min() >= 0 and images.max() <= 1
            assert result.attacks[name].max_perturbation == pytest.approx(size.max(), rel=1e-9)
            # Whatever was not broken by it stays the original.
            assert not delta[flags | ~result.correct['clean']].any()


def step(classes: int = 4):
    """A classifier of the first pixel: class 0 below a half, else 1; further classes rank by number."""

    def classifier(images):
        edge = 10 * (images[:, 0, 0, 0] - 0.5)
        rest = [jnp.full_like(edge, -float(k)) for k in range(2, classes)]
        return jnp.stack([-edge, edge, *rest], axis=1)

    return classifier


BELOW = np.full((6, 2, 2, 1), 0.45, np.float32)


def use(monkeypatch, search, name='apgd-t', **settings):
    monkeypatch.setitem(SEARCHES, name, row(search, **settings))


def test_targets_come_in_the_order_of_the_clean_logits_and_survivors_alone_go_on(monkeypatch):
    # Image i gives up at the target of rank i + 2; the last at none.
    images = BELOW.copy()
    images[:, 1, 1, 0] = np.arange(6) / 10

    def answer(x, targets):
        wanted = 1 + jnp.round(10 * x[:, 1, 1, 0]).astype(jnp.int32)
        return jnp.where(targets == wanted, 0, 99)

    use(monkeypatch, told(targeted=True, answer=answer))
    result = run('apgd-t', step(6), images, np.zeros(6, int), eps=0.1)
    assert_array_equal(result.correct['apgd-t'], [False] * 5 + [True])
    # 12 iterations for each target before, one for the last.
    assert_array_equal(result.attacks['apgd-t'].queries, [1, 13, 25, 37, 49, 60])
    assert result.attacks['apgd-t'].stages[0]['runs'] == 5
    many = run('apgd-t', step(30), images, np.zeros(6, int), eps=0.1)
    assert many.attacks['apgd-t'].stages[0]['runs'] == 9


def test_restarts_are_for_survivors_and_have_their_own_keys(wide):
    stages = (Stage('square', restarts=3),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, 'autoattack', stages)
        three = run('autoattack', *wide, eps=0.03)
    one = run('square', *wide, eps=0.03)
    survivors = one.correct['square']
    assert survivors.sum() > three.correct['autoattack'].sum()
    assert not (three.correct['autoattack'] & ~survivors).any()
    # 121 queries a run, and whoever fell in the first run was not attacked again.
    assert_array_equal(three.attacks['autoattack'].queries[three.correct['autoattack']], 363)
    first = ~survivors & one.correct['clean']
    assert_array_equal(three.attacks['autoattack'].queries[first], one.attacks['square'].queries[first])


def test_a_success_that_is_none_is_not_counted(monkeypatch):
    images = BELOW.copy()
    images[:3] = 0.2  # 0.1 further is still class 0
    use(monkeypatch, told(answer=lambda x, targets: jnp.zeros(len(x), jnp.int32)), 'square', gradients=0.0)
    result = run('square', step(), images, np.zeros(6, int), eps=0.1)
    assert_array_equal(result.correct['square'], [True] * 3 + [False] * 3)
    assert result.attacks['square'].stages[0]['refused'] == 9  # claimed again after each of three parts


def test_a_search_that_leaves_its_threat_model_is_an_error(monkeypatch):
    search = told(answer=lambda x, targets: jnp.zeros(len(x), jnp.int32))
    far = search._replace(
        advance=lambda *arguments: search.advance(*arguments)._replace(
            found=jnp.ones_like(arguments[1].images)
        )
    )
    use(monkeypatch, far, 'square')
    with pytest.raises(AssertionError, match='square left its threat model on image 3'):
        run('square', step(), BELOW, [1, 1, 1, 0, 0, 0], eps=0.1)


def test_linear_models_break_where_they_must():
    # evaluation.md's closed form: |mean - 1/2| is the exact distance while no pixel meets its bound.
    rng = np.random.default_rng(2)
    images = rng.uniform(0.3, 0.7, size=(20, 5, 5, 2)).astype(np.float32)
    images += rng.uniform(-0.1, 0.1, size=(20, 1, 1, 1)).astype(np.float32)
    mean = images.mean(axis=(1, 2, 3))

    def linear(x):
        value = x.mean(axis=(1, 2, 3)) - 0.5
        return jnp.stack([-value, value, jnp.full_like(value, -1), jnp.full_like(value, -2)], axis=1)

    labels = (mean > 0.5).astype(int)
    exact = np.abs(mean - 0.5)
    attacks = ('autoattack', 'apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'rays')
    broken = run(attacks, linear, images, labels, eps=float(1.25 * exact.max()))
    assert {broken.accuracy[name] for name in attacks} == {0.0}
    safe = run(attacks, linear, images, labels, eps=float(0.99 * exact.min()))
    assert safe.accuracy['worst_case'] == 1
    half = float(np.sort(exact)[9:11].mean())
    result = run('autoattack,rays', linear, images, labels, eps=half)
    assert_array_equal(result.correct['autoattack'], exact > half)
    # The ray of all equal signs is the nearest, and RayS finds its distance.
    assert_allclose(result.attacks['rays'].distances, exact, atol=2e-4)
    table = result.attacks['rays'].stages[0]
    assert table['average_distance'] == pytest.approx(exact.mean(), abs=2e-4)
    assert table['median_queries'] == np.median(result.attacks['rays'].queries[~result.correct['rays']]) < 40


@pytest.mark.parametrize('classes', [2, 3])
def test_few_classes(classes):
    network = net(classes=classes)
    labels = np.argmax(network(jnp.asarray(IMAGES)).logits, axis=1)
    result = run('autoattack,autoattack-plus', network, labels=labels)
    assert 0 < result.accuracy['autoattack'] < 1
    undefined = {2: 'apgd-t, apgd-dlr', 3: 'apgd-t'}[classes]
    assert result.warnings == [
        f'with {classes} classes the loss of {undefined} is not defined: they used the margin instead'
    ]
    targets = [stage['targets'] for stage in result.attacks['autoattack'].protocol['stages']]
    assert targets == [0, classes - 1, classes - 1, 0]


def test_all_presets_and_logits_alone_are_enough():
    result = run('autoattack,autoattack-plus,autoattack-rand', lambda x: NET(x).logits)
    accuracy = result.accuracy
    assert accuracy['worst_case'] <= accuracy['autoattack'] <= accuracy['autoattack-rand']
    assert accuracy['autoattack-plus'] <= accuracy['clean'] and result.warnings == []
    plus = result.attacks['autoattack-plus'].protocol['stages']
    assert [(stage['attack'], stage['restarts']) for stage in plus] == [
        ('apgd-ce', 5),
        ('apgd-dlr', 5),
        ('fab', 5),
        ('square', 1),
        ('apgd-t', 1),
        ('fab-t', 1),
    ]
    rand = result.attacks['autoattack-rand'].protocol['stages']
    assert [(stage['attack'], stage['eot_samples']) for stage in rand] == [('apgd-ce', 20), ('apgd-dlr', 20)]
    json = result.to_json()
    assert json['robustbench'] == {
        'clean_acc': 100 * accuracy['clean'],
        'autoattack_acc': pytest.approx(100 * accuracy['autoattack']),
        'eps': 0.04,
        'norm': 'Linf',
    }
    assert json['attacks']['autoattack']['protocol']['follows'] == 'fra31/auto-attack a392200'
    assert 'robustbench' not in run('square').to_json()


class TestSearchPrecision:
    def test_what_the_search_claims_in_bfloat16_is_verified_in_float32(self):
        exact = run('autoattack')
        result = run('autoattack', search_precision='bfloat16', return_images=True)
        assert exact.precision == {'search': 'float32', 'verification': 'float32', 'matmul': 'highest'}
        assert result.precision == exact.precision | {'search': 'bfloat16'}
        predicted = np.argmax(NET(jnp.asarray(result.images['autoattack'])).logits, axis=1)
        assert_array_equal(predicted == LABELS, result.correct['autoattack'])
        assert abs(result.accuracy['autoattack'] - exact.accuracy['autoattack']) <= 0.1

    def test_the_products_of_a_convolutional_network_and_of_its_gradient_are_bfloat16(self):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4)), jnp.float32)

        def convolutional(x):
            y = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
            return jnp.mean(jax.nn.relu(y), axis=(1, 2))

        result = run('pgd,apgd-ce', convolutional, search_precision='bfloat16', steps=3)
        assert result.accuracy['worst_case'] <= result.accuracy['clean']
        text = {}

        from si_jax.evaluation.classifier import classifier_of, lift

        shape = jax.ShapeDtypeStruct((8, 6, 6, 2), jnp.float32)
        lifted = lift(classifier_of(convolutional).function, shape, jax.ShapeDtypeStruct((8,), jnp.uint32))
        for precision in ('float32', 'bfloat16'):

            def loss(x, weights, precision=precision):
                keys = jnp.zeros(8, jnp.uint32)
                return lifted.apply(weights, x, keys, precision=precision).logits.sum()

            text[precision] = str(
                jax.make_jaxpr(jax.grad(loss))(jnp.zeros(shape.shape, jnp.float32), lifted.weights)
            )
        assert 'bf16' in text['bfloat16'] and 'bf16' not in text['float32']

    @pytest.mark.parametrize(
        ('settings', 'match'),
        [
            ({'search_precision': 'float16'}, "unknown search_precision 'float16'"),
            ({'search_precision': 'tf32'}, 'known to GPUs only'),
            (
                {'search_precision': 'float32', 'images': IMAGES.astype(np.float64)},
                'these are float64: leave it out',
            ),
        ],
    )
    def test_what_cannot_be(self, settings, match):
        with pytest.raises(InputError, match=match):
            run('square', **settings)


def test_attacks_keep_to_correct_images_and_cost_what_they_say():
    result = run('square,spsa,rays,apgd-ce', eps=0.03)
    clean = result.correct['clean']
    for name in ('square', 'spsa', 'rays', 'apgd-ce'):
        record = result.attacks[name]
        assert not record.queries[~clean].any() and (record.queries[clean] > 0).all()
        assert record.stages[0]['attacked'] == clean.sum() and len(record.runs) == 1
        # RayS spends all its queries; `queries` counts those up to its first success.
        spent = 200 * clean.sum() if name == 'rays' else record.queries.sum()
        assert record.stages[0]['forward_passes'] == spent
        backward = record.queries.sum() if name == 'apgd-ce' else 0
        assert record.stages[0]['backward_passes'] == backward
    assert (result.attacks['square'].queries[result.correct['square']] == 121).all()
    assert (result.attacks['apgd-ce'].queries[result.correct['apgd-ce']] == 11).all()
    assert (result.attacks['spsa'].queries[result.correct['spsa']] == 91).all()
    assert result.attacks['square'].steps == 120 and result.attacks['apgd-ce'].steps == 10


def test_outputs_of_a_search_can_be_saved(tmp_path):
    result = run('autoattack,rays')
    result.save(tmp_path / 'r.json')
    arrays = np.load(tmp_path / 'r.npz')
    for key in ('broken_by_autoattack', 'queries_autoattack', 'queries_rays', 'distances_rays'):
        assert arrays[key].shape == (40,)
    assert 'distances_autoattack' not in arrays
    assert 'apgd-t' in result.table()


def test_a_constant_model_is_not_robust_without_a_word():
    result = run('autoattack', lambda x: Outputs(jnp.tile(jnp.arange(4.0, dtype=x.dtype), (len(x), 1))))
    assert result.accuracy['autoattack'] == result.accuracy['clean']
    assert any('same logits for every image' in warning for warning in result.warnings)
    assert any(
        'zero where attacks start' in warning and 'fab-t on 3 of 3 images' in warning
        for warning in result.warnings
    )
