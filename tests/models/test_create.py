"""The table of networks: sizes, initialisation, dtypes, variants and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import at_cifar10
from si_jax import models
from si_jax.errors import InputError

ALL = [(arch, variant) for arch, row in models.ARCHITECTURES.items() for variant in row.variants]
# One of each family, in a size that compiles in a second; test_parity.py has all variants.
SMALL = ['resnet18', 'preact_resnet18', 'wrn_10_2', 'small_cnn']


def small(arch, size=8, channels=3, **options):
    """A network of width 4 with random weights and statistics, and two images."""
    model = models.create(arch, num_classes=10, width=4, **options)
    images = np.random.default_rng(0).uniform(size=(2, size, size, channels)).astype(np.float32)
    rng = np.random.default_rng(1)

    def draw(leaf):  # Compiling model.init would take most of the time of these tests.
        if len(leaf.shape) > 1:
            return (rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5).astype(leaf.dtype)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)

    return model, jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), images)), images


def test_full_networks_have_the_published_number_of_parameters():
    counts = {}
    for arch, variant in ALL:
        model = models.create(arch, num_classes=10, variant=variant)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32))
        counts[arch, variant] = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
        assert models.ARCHITECTURES[arch].batch_norm == ('batch_stats' in shapes)
    small_cnn = counts.pop(('small_cnn', 'standard'))
    # 3-16-32-64 channels in 3x3 convolutions with bias, 8 * 8 * 64 -> 128 -> 10.
    assert small_cnn == (27 + 1) * 16 + (144 + 1) * 32 + (288 + 1) * 64 + 4097 * 128 + 129 * 10
    assert counts == {
        ('resnet18', 'standard'): 11_173_962,
        ('resnet18', 'gat'): 11_173_962,
        ('resnet50', 'standard'): 23_520_842,
        ('resnet50', 'imagenet'): 23_528_522,  # torchvision's 25,557,032 with 1,000 classes
        ('preact_resnet18', 'bag_of_tricks'): 11_172_170,
        ('preact_resnet18', 'fast_at'): 11_172_170,
        ('preact_resnet18', 'fast_at_2019'): 11_171_146,
        ('preact_resnet18', 'gradalign'): 11_171_146,
        ('wrn_28_10', 'standard'): 36_479_194,
        ('wrn_34_10', 'standard'): 46_160_474,
    }


@pytest.mark.parametrize('arch', SMALL)
def test_outputs_are_explained_by_features_and_kernel(arch):
    for size, channels in ((8, 1), (32, 3)):
        model, variables, images = small(arch, size, channels)
        outputs = jax.jit(model.apply)(variables, images)  # Evaluation mode needs nothing mutable.
        linear = variables['params']['fc' if arch.startswith('wrn') else 'linear']
        np.testing.assert_array_equal(outputs.kernel, linear['kernel'])
        expected = outputs.features @ outputs.kernel + linear['bias']
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-5, atol=1e-6)
        assert outputs.logits.shape == (2, 10)


@pytest.mark.parametrize('arch', SMALL)
def test_bfloat16_computes_narrow_and_returns_float32(arch):
    model, variables, images = small(arch, dtype='bfloat16')
    wide, _, _ = small(arch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))

    trained = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats']), variables, images
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trained))
    logits, expected = (jax.jit(net.apply)(variables, images).logits for net in (model, wide))
    assert logits.dtype == jnp.float32
    difference = jnp.linalg.norm(logits - expected) / jnp.linalg.norm(expected)
    assert 0 < difference < 0.05  # Not equal: something was computed in bfloat16.

    program = jax.make_jaxpr(lambda v, x: model.apply(v, x).logits)(variables, images)
    convolutions = [line for line in str(program).splitlines() if 'conv_general_dilated[' in line]
    assert convolutions
    assert all(':bf16[' in line for line in convolutions)


@pytest.mark.parametrize(
    ('arch', 'pairs'),
    [
        ('resnet18', [('standard', 'gat')]),
        ('preact_resnet18', [('bag_of_tricks', 'fast_at'), ('fast_at_2019', 'gradalign')]),
    ],
)
def test_variants_that_load_each_others_weights_are_told_apart(arch, pairs):
    for pair in pairs:
        (_, first, images), (_, second, _) = (small(arch, variant=variant) for variant in pair)
        jax.tree.map(np.testing.assert_array_equal, first, second)
        one, other = (
            jax.jit(small(arch, variant=variant)[0].apply)(first, images).logits for variant in pair
        )
        # 'fast_at_2019' and 'gradalign' are one network with two initialisations.
        assert (np.abs(one - other).max() > 1e-2) == ('gradalign' not in pair)


def test_the_first_variant_is_the_default():
    for arch, row in models.ARCHITECTURES.items():
        assert models.create(arch, num_classes=10) == models.create(
            arch, num_classes=10, variant=next(iter(row.variants))
        )


def test_inits_are_those_of_the_reference_code():
    def params(arch, **options):
        model = models.create(arch, num_classes=100, **options)
        return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.float32))['params']

    torch_like = params('resnet18', width=16)
    jax.tree.map(np.testing.assert_array_equal, torch_like, params('resnet18', width=16, variant='gat'))
    conv, linear = torch_like['layer4_1']['conv2']['kernel'], torch_like['linear']
    assert jnp.abs(conv).max() == pytest.approx((9 * 128) ** -0.5, rel=1e-3)
    assert jnp.abs(linear['kernel']).max() == pytest.approx(128**-0.5, rel=1e-3)
    assert 0.8 * 128**-0.5 < jnp.abs(linear['bias']).max() <= 128**-0.5

    gradalign = params('preact_resnet18', width=16, variant='gradalign')
    shortcut = gradalign['layer4_0']['shortcut_0']['kernel']
    assert jnp.std(shortcut) == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert jnp.std(gradalign['layer4_0']['conv1']['kernel']) == pytest.approx(
        (2 / (9 * 128)) ** 0.5, rel=0.05
    )
    assert jnp.std(gradalign['linear']['kernel']) == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert not gradalign['linear']['bias'].any()

    wide = params('wrn_10_2')
    assert jnp.std(wide['block2_layer_0']['conv1']['kernel']) == pytest.approx(
        (2 / (9 * 64)) ** 0.5, rel=0.05
    )
    assert jnp.std(wide['block2_layer_0']['convShortcut']['kernel']) == pytest.approx(
        (2 / 64) ** 0.5, rel=0.05
    )
    assert jnp.abs(wide['fc']['kernel']).max() == pytest.approx(128**-0.5, rel=1e-3)
    assert not wide['fc']['bias'].any()


@pytest.mark.parametrize('arch', ['resnet18', 'preact_resnet18', 'wrn_10_2'])
def test_mask_and_training_mode_reach_every_batch_norm(arch):
    model, variables, images = small(arch)
    images = jnp.concatenate([images, images[::-1, ::-1], jnp.ones_like(images)])
    mask = jnp.arange(6) < 4
    forward = jax.jit(
        lambda x, mask: model.apply(variables, x, train=True, mask=mask, mutable=['batch_stats'])
    )
    masked, masked_stats = forward(images, mask)
    alone, alone_stats = forward(images[:4], mask[:4])
    np.testing.assert_allclose(masked.logits[:4], alone.logits, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), masked_stats, alone_stats
    )
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), alone_stats['batch_stats'], variables['batch_stats']
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'arch': 'resnet19'}, "unknown architecture 'resnet19': did you mean resnet18"),
        ({'arch': 'wrn-34-10'}, "unknown architecture 'wrn-34-10': did you mean wrn_34_10"),
        ({'arch': 'wrn_33_10'}, r'depth 33 is not 6n \+ 4 with n >= 1: did you mean wrn_34_10'),
        ({'arch': 'wrn_4_1'}, 'depth 4 is not .*: did you mean wrn_10_1'),
        ({'variant': 'gta'}, "unknown variant of resnet18 'gta': did you mean gat"),
        ({'arch': 'resnet50', 'variant': 'gat'}, "unknown variant of resnet50 'gat'"),
        ({'normalise': 'cifar'}, "unknown normalisation 'cifar': did you mean cifar10"),
        ({'dtype': 'float16'}, "unknown dtype 'float16': did you mean .*bfloat16"),
        ({'dtype': jnp.int32}, "unknown dtype 'int32'"),
        ({'width': 0}, 'width=0 is not a positive whole number'),
        ({'width': 8.0}, 'width=8.0 is not a positive whole number'),
        ({'num_classes': -1}, 'num_classes=-1 is not a positive whole number'),
        ({'activation': 'swish'}, "unknown activation 'swish'.*silu"),
        ({'bn_momentum': 0.0}, r'bn_momentum=0 is not in \(0, 1\]'),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        models.create(**{'arch': 'resnet18', 'num_classes': 10, **options})


def test_a_config_describes_the_network_that_create_makes():
    config = at_cifar10.get_config().model
    assert models.from_config(config, num_classes=10) == models.create('resnet18', num_classes=10)
    config.update(width=8, normalise='cifar10', dtype='bfloat16', sync_bn=True)
    wanted = {'num_classes': 10, 'width': 8, 'normalise': 'cifar10'}
    assert models.from_config(config, num_classes=10, dtype='float32') == models.create('resnet18', **wanted)
    trained = models.create('resnet18', **wanted, dtype='bfloat16', bn_axis='devices')
    assert models.from_config(config, num_classes=10, bn_axis='devices') == trained


@pytest.mark.parametrize('arch', ['resnet18', 'resnet50', 'preact_resnet18', 'wrn_10_1', 'small_cnn'])
def test_another_activation_stands_in_place_of_every_relu(arch, monkeypatch):
    calls = []

    def uses(activation):
        """How often a forward pass calls it, and whether there is any ReLU in the pass."""
        function = models.ACTIVATIONS[activation]
        monkeypatch.setitem(models.ACTIVATIONS, activation, lambda x: calls.append(x.shape) or function(x))
        model = models.create(arch, num_classes=4, width=2, activation=activation)
        images = jnp.zeros((1, 8, 8, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        calls.clear()
        return '=relu' in str(jax.make_jaxpr(model.apply)(variables, images)), len(calls)

    there, count = uses('relu')
    assert there and count > 2
    for other in ('silu', 'softplus'):
        assert uses(other) == (False, count)


def test_activations_by_hand():
    x = jnp.array([-2.0, 0.0, 30.0])
    np.testing.assert_allclose(models.ACTIVATIONS['silu'](x), x / (1 + np.exp(-x)), rtol=1e-12)
    np.testing.assert_allclose(models.ACTIVATIONS['softplus'](x), np.log(1 + np.exp(x)), rtol=1e-12)


def test_batch_norm_momentum_reaches_every_layer():
    model = models.create('wrn_10_1', num_classes=4, width=2, bn_momentum=1.0)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    _, once = model.apply(variables, images, train=True, mutable=['batch_stats'])
    _, again = model.apply({**variables, **once}, images, train=True, mutable=['batch_stats'])
    # With a weight of 1 the running statistics are those of the batch, whatever they were.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), once, again)
