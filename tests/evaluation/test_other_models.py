"""Other models in an evaluation: whose gradient is taken, and whose adversarial images are tried."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from si_jax import InputError, Outputs, Randomised, evaluate
from si_jax.evaluation.surrogate import backward_of
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(40, NET)
ONE = jax.local_devices()[:1]


def run(classifier, attacks='pgd', **settings):
    settings = {'eps': 0.04, 'steps': 4, 'devices': ONE, **settings}
    return evaluate(classifier, IMAGES, LABELS, attacks=attacks, **settings)


def staircase(x):
    return NET(jnp.round(x * 40) / 40)


def host_staircase(x):
    """Without any derivative, even forward."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return NET(jax.pure_callback(lambda x: np.round(np.asarray(x) * 40) / 40, shape, x)).logits


def test_values_of_one_and_derivatives_of_the_other():
    function = backward_of(lambda x, keys: staircase(x), lambda x, keys: NET(x))
    x, keys = jnp.asarray(IMAGES[:4]), None
    assert_array_equal(function(x, keys).logits, staircase(x).logits)

    def loss(outputs):
        return jnp.sum(outputs.logits**3) + jnp.sum(outputs.features**3)

    gradient = jax.grad(lambda x: loss(function(x, keys)))(x)
    # The chain rule by hand: the loss's derivative at the values of one, pulled back through the other.
    value = staircase(x)
    _, pull = jax.vjp(lambda x: tuple(NET(x)[:2]), x)
    (expected,) = pull((3 * value.logits**2, 3 * value.features**2))
    assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_step_without_a_gradient_is_seen_through(monkeypatch):
    quicken(monkeypatch)
    attacks = 'pgd,pgd-cal,sipgd,apgd-ce'
    blind, seeing = run(staircase, attacks), run(staircase, attacks, gradient_of=NET, return_images=True)
    zero = ['exactly zero' in ' '.join(result.warnings) for result in (blind, seeing)]
    assert zero == [True, False]
    # Its cosines decide otherwise than its logits, which is the only thing that is said.
    assert all(warning.startswith('sipgd may be weak') for warning in seeing.warnings)
    for name in attacks.split(','):
        assert seeing.accuracy[name] < blind.accuracy[name], name
        # The staircase itself decides.
        predicted = np.argmax(staircase(jnp.asarray(seeing.images[name])).logits, axis=1)
        assert_array_equal(predicted == LABELS, seeing.correct[name])
    assert seeing.to_json()['gradient_of'].keys() == {'weights'} and 'gradient_of' not in blind.to_json()
    # A classifier that JAX cannot differentiate at all.
    assert_array_equal(run(host_staircase, gradient_of=NET).correct['pgd'], seeing.correct['pgd'])
    # Its own gradient in place of its own changes nothing.
    own, plain = (run(NET, gradient_of=other, return_images=True).images['pgd'] for other in (NET, None))
    assert_allclose(own, plain, atol=1e-6)


def test_a_gradient_that_nobody_takes_is_refused():
    with pytest.raises(InputError, match=r'gradient_of is given, and square, rays take no gradient: .*pgd'):
        run(staircase, 'square,rays', gradient_of=NET, steps=None)


@pytest.mark.parametrize(
    ('other', 'attacks', 'message'),
    [
        (net(classes=5), 'pgd', r'gradient_of returns logits \(\d+, 5\), the classifier logits \(\d+, 4\)'),
        (net(width=30), 'sipgd', r'gradient_of returns logits .*features \(\d+, 30\), the classifier .*24\)'),
        (lambda x: NET(x).logits ** 3, 'sipgd', 'gradient_of returns .*features None, the classifier'),
        (
            lambda x: NET(x[:, :3]),
            'pgd',
            r'gradient_of: the classifier cannot take images of shape \[\d+, 6, 6, 2\]',
        ),
        (lambda x: NET(x - x.mean(axis=0)), 'pgd', 'gradient_of: the logits of an image change by'),
        (3, 'pgd', 'a classifier is a callable'),
    ],
)
def test_what_cannot_stand_in(other, attacks, message):
    with pytest.raises(InputError, match=message):
        run(NET, attacks, gradient_of=other)


def test_states_tell_whose_gradient_it_was(tmp_path):
    run(NET, state_path=tmp_path)
    with pytest.raises(InputError, match='weights was .* and is'):
        run(NET, state_path=tmp_path, gradient_of=net(seed=1))


def test_what_breaks_a_relative_breaks_the_blind(tmp_path):
    result = run(staircase, transfer_from={'plain': NET}, return_images=True, state_path=tmp_path)
    record = result.attacks['transfer-plain']
    transferred, started = record.stages
    assert result.accuracy['transfer-plain'] < result.accuracy['pgd']
    assert transferred['attacked'] == result.clean.sum() and transferred['broken'] > 0
    assert started['attacked'] == transferred['attacked'] - transferred['broken']
    flags = result.correct['transfer-plain']
    assert_array_equal(record.broken_by >= 0, result.clean & ~flags)
    predicted = np.argmax(staircase(jnp.asarray(result.images['transfer-plain'])).logits, axis=1)
    assert_array_equal((predicted == LABELS)[result.clean], flags[result.clean])
    assert result.accuracy['worst_case'] <= result.accuracy['transfer-plain']
    assert any(warning.startswith('transfer-plain broke') for warning in result.warnings)
    assert record.max_perturbation <= 0.04 + 1e-6 and record.protocol['name'] == 'transfer'
    entry = result.to_json()['attacks']['transfer-plain']
    assert [stage['attack'] for stage in entry['stages']] == ['transferred', 'started there']
    assert 'transferred' in result.table()
    # It is PGD's images on the relative that are tried first.
    source = run(NET, 'pgd-gap', return_images=True)
    taken = staircase(jnp.asarray(source.images['pgd-gap'])).logits.argmax(axis=1) == LABELS
    assert_array_equal(record.broken_by == 0, result.clean & ~np.asarray(taken))
    again = run(staircase, transfer_from={'plain': NET}, return_images=True, state_path=tmp_path)
    assert_array_equal(again.correct['transfer-plain'], flags)
    with pytest.raises(InputError, match='transfer from was'):
        run(staircase, transfer_from={'plain': net(seed=2)}, return_images=True, state_path=tmp_path)


def test_sources_without_names_are_numbered():
    result = run(NET, transfer_from=[net(seed=1), net(seed=2, width=16)])
    assert list(result.attacks) == ['pgd', 'transfer-0', 'transfer-1']
    # An honest classifier is not accused of masking its gradient by what does not break it.
    assert result.warnings == []


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ({'wide': net(classes=5)}, 'transfer-wide: the source has 5 classes, the classifier 4'),
        (
            {'small': lambda x: NET(x[:, :3])},
            r'transfer-small: the classifier cannot take images of shape \[\d+, 6, 6',
        ),
        ({'nan': lambda x: NET(x).logits / 0}, 'transfer-nan: the classifier returns NaN or infinite logits'),
        ({'a b': NET}, "'a b' cannot be a name"),
        ({'none': 7}, 'a classifier is a callable'),
        (
            {'random': Randomised(lambda x, keys: Outputs(NET(x[:, ::-1, :3]).logits))},
            r'transfer-random: the classifier cannot take images',
        ),
    ],
)
def test_what_cannot_be_a_source(source, message):
    with pytest.raises(InputError, match=message):
        run(NET, transfer_from=source)
