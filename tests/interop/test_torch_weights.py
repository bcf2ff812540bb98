"""Checkpoints of the named architectures, in and out, against independent PyTorch definitions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import models
from si_jax.errors import InputError
from si_jax.interop import export, torch_weights
from si_jax.interop.loading import load_torch_checkpoint
from si_jax.interop.torch_weights import from_torch, state_arrays

torch = pytest.importorskip('torch', reason="the checkpoints are PyTorch's")

from tests.helpers.parity import assert_parity, random_images  # noqa: E402
from tests.helpers.torch_references import NETWORKS, ImageNetResNet50, randomised  # noqa: E402

SHAPE = (12, 12, 3)


class Whole(torch.nn.Module):
    """One of the reference networks with a forward, behind its normalisation."""

    def __init__(self, network, normalise='none'):
        super().__init__()
        self.network, self.row = network, models.NORMALISATIONS[normalise]

    def forward(self, x):
        if self.row is not None:
            mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (self.row.mean, self.row.std))
            x = (x - mean) / std
        return self.network.linear(self.network.features(x))


def network(name):
    return randomised(NETWORKS[name][2]()).eval()


def state(name):
    return network(name).state_dict()


def load_module(path):
    """What the exported file's build() returns; the file is run alone, as its user would."""
    namespace = {'__file__': str(path), '__name__': 'model'}
    exec(compile(path.read_text(), path, 'exec'), namespace)
    return namespace['build']()


@pytest.mark.parametrize('name', NETWORKS)
def test_round_trip(name, tmp_path):
    arch, options, _ = NETWORKS[name]
    normalise = {'resnet18': 'cifar10', 'fast_at': '2x-1', 'wrn_16_2': 'cifar10'}.get(name, 'none')
    reference = network(name)
    torch.save({'state_dict': reference.state_dict(), 'epoch': 3}, tmp_path / 'in.pt')
    classifier = load_torch_checkpoint(
        tmp_path / 'in.pt',
        arch,
        variant=options.get('variant', 'standard' if name == 'resnet18' else None),
        normalise=normalise,
        image_shape=SHAPE,
    )
    whole = Whole(reference, normalise)
    images = random_images((2, *SHAPE))
    outputs = assert_parity(classifier, whole, images, 1e-9)
    assert outputs.features is not None

    _, variables = classifier.args
    path = export.export(
        variables, tmp_path, arch=arch, variant=options.get('variant'), normalise=normalise, format='torch'
    )
    back = torch.load(tmp_path / 'weights.pt', weights_only=True)
    for key, value in reference.state_dict().items():
        if not key.endswith('num_batches_tracked'):
            np.testing.assert_array_equal(back[key].numpy(), value.numpy(), err_msg=key)
    module = load_module(path)
    assert not module.training
    tensor = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(module.double()(tensor), whole(tensor), rtol=1e-5, atol=1e-5)


def test_a_resnet50_of_imagenet_with_the_names_of_torchvision(tmp_path):
    reference = randomised(ImageNetResNet50(2)).eval()
    torchvision = {
        name.replace('shortcut', 'downsample').replace('linear', 'fc'): tensor
        for name, tensor in reference.state_dict().items()
    }
    loaded = from_torch(torchvision, 'resnet50', normalise='imagenet')
    whole, images = Whole(reference, 'imagenet'), random_images((2, 32, 32, 3))
    with torch.no_grad():
        expected = whole(torch.tensor(images).permute(0, 3, 1, 2))
        outputs = jax.jit(loaded.model.apply)(loaded.variables, images)
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-9, atol=1e-9)
        options = {'arch': 'resnet50', 'variant': 'imagenet', 'normalise': 'imagenet'}
        module = load_module(export.export(loaded.variables, tmp_path, **options))
        np.testing.assert_allclose(
            module.double()(torch.tensor(images).permute(0, 3, 1, 2)), expected, rtol=1e-5, atol=1e-5
        )
    with pytest.raises(InputError, match='1 unknown: fc.weight'):
        from_torch({**torchvision, 'linear.weight': torchvision['fc.weight']}, 'resnet50')


def test_exported_logits_are_those_of_the_network_in_float32(tmp_path):
    model = models.create('wrn_10_2', num_classes=7, width=4, normalise='cifar10')
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE), jnp.float32))
    images = random_images((4, *SHAPE), np.float32)
    expected = np.asarray(jax.jit(model.apply)(variables, images).logits)
    for format in ('torch', 'safetensors'):
        if format == 'safetensors':
            pytest.importorskip('safetensors', reason='writes the file')
        path = export.export(
            variables, tmp_path / format, arch='wrn_10_2', normalise='cifar10', format=format
        )
        with torch.no_grad():
            logits = load_module(path)(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        assert logits.shape == (4, 7)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        weights = next((tmp_path / format).glob('weights.*'))
        loaded = torch_weights.load(weights, 'wrn_10_2', normalise='cifar10', num_classes=7)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, dict(variables))


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.model.'])
@pytest.mark.parametrize('entry', [None, 'state_dict', 'model_state_dict', 'model', 'net'])
def test_prefixes_and_entries(prefix, entry):
    arrays = {'conv1.weight': np.ones((2, 3, 3, 3)), 'bn1.num_batches_tracked': np.zeros(())}
    checkpoint = {prefix + name: array for name, array in arrays.items()}
    checkpoint = checkpoint if entry is None else {'epoch': 1, entry: checkpoint, 'optimizer': {}}
    assert list(state_arrays(checkpoint)) == ['conv1.weight']


def test_a_prefix_that_not_all_names_have_stays():
    names = state_arrays({'module.a': np.ones(1), 'b': np.ones(1)})
    assert set(names) == {'module.a', 'b'}


def test_the_unused_stage_of_wide_networks_is_left_out():
    weights = state('wrn_16_2')
    copies = {f'module.sub_{k}': v for k, v in weights.items() if k.startswith('block1.')}
    loaded = from_torch({**{f'module.{k}': v for k, v in weights.items()}, **copies}, 'wrn_16_2')
    assert loaded.num_classes == 10
    with pytest.raises(InputError, match=r'unknown: .*sub_block1'):
        renamed = {k.replace('fc.', 'linear.'): v for k, v in copies.items()}
        from_torch(
            {**state('resnet18'), **{k.removeprefix('module.'): v for k, v in renamed.items()}}, 'resnet18'
        )


def test_missing_and_unknown_names_are_listed():
    weights = state('resnet18')
    weights['extra.weight'] = weights.pop('bn1.bias')
    with pytest.raises(InputError, match=r'resnet18, 1 missing: bn1\.bias; 1 unknown: extra\.weight'):
        from_torch(weights, 'resnet18', variant='standard')


@pytest.mark.parametrize(
    ('name', 'arch', 'guess'),
    [
        ('wrn_16_2', 'resnet18', 'wrn_16_2'),
        ('wrn_16_2', 'wrn_10_2', 'wrn_16_2'),
        ('resnet18', 'resnet50', 'resnet18'),
        ('resnet50', 'resnet18', 'resnet50'),
        ('fast_at', 'resnet18', 'preact_resnet18'),
        ('resnet18', 'preact_resnet18', 'resnet18'),
    ],
)
def test_the_wrong_architecture_is_refused_and_the_right_one_named(name, arch, guess):
    with pytest.raises(InputError, match=rf'not those of {arch}, .*look like those of {guess}$'):
        from_torch(state(name), arch)


def test_the_wrong_widen_factor_is_refused():
    with pytest.raises(
        InputError, match=r'shapes are not those of wrn_16_4: .*is \[8\], not \[16\]'
    ) as error:
        from_torch(state('wrn_16_2'), 'wrn_16_4')
    message = str(error.value)
    count, more = int(message.split()[0]), int(re.search(r' and (\d+) more', message)[1])
    assert message.count(', not [') == 10 == count - more and message.endswith('look like those of wrn_16_2')


def test_the_wrong_number_of_classes_is_refused():
    with pytest.raises(InputError, match='the checkpoint has 10 classes, num_classes is 100'):
        from_torch(state('wrn_16_2'), 'wrn_16_2', num_classes=100)


def test_twin_variants_must_be_named():
    for name, arch, twins in (
        ('resnet18', 'resnet18', "'standard' or 'gat'"),
        ('fast_at', 'preact_resnet18', "'bag_of_tricks' or 'fast_at'"),
    ):
        with pytest.raises(InputError, match=rf'2 variants of {arch}.*{twins}.*clean accuracy far below'):
            from_torch(state(name), arch)
    # These two compute the same: nothing to choose.
    assert from_torch(state('gradalign'), 'preact_resnet18').model is not None
    with pytest.raises(InputError, match='missing: bn.bias'):
        from_torch(state('gradalign'), 'preact_resnet18', variant='fast_at')


def test_the_hint_for_a_low_accuracy_names_what_else_to_try():
    hint = torch_weights.accuracy_hint('preact_resnet18', 'fast_at', 'none')
    assert (
        "variant='bag_of_tricks'" in hint
        and "normalise='cifar10'" in hint
        and "try variant='fast_at'" not in hint
    )


def test_nan_is_named_with_the_file(tmp_path):
    weights = state('wrn_16_2')
    weights['fc.bias'][2] = float('nan')
    torch.save(weights, tmp_path / 'nan.pt')
    with pytest.raises(InputError, match=r'nan\.pt: .*NaN or infinite, in fc\.bias \(1 of 10 values\)'):
        torch_weights.load(tmp_path / 'nan.pt', 'wrn_16_2')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'epoch': 3, 'best': {}}, r'no weights found: none of its entries \(epoch, best\)'),
        ([1, 2], 'must hold a state_dict, not list'),
        ({}, 'no weights found'),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / 'x.pt')
    with pytest.raises(InputError, match=message):
        torch_weights.load(tmp_path / 'x.pt', 'resnet18')


def test_half_precision_becomes_float32():
    loaded = from_torch({k: v.bfloat16() for k, v in state('wrn_10_1').items()}, 'wrn_10_1')
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype('float32')}
