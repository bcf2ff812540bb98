"""Modules from PyTorch compute the same in JAX, and what cannot be translated is refused with a reason."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import evaluate
from si_jax.errors import InputError
from si_jax.evaluation.classifier import with_logit_scale

torch = pytest.importorskip('torch', reason="the modules are PyTorch's")

from si_jax.interop.torch_graph import TorchClassifier  # noqa: E402
from tests.helpers import torch_zoo as zoo  # noqa: E402
from tests.helpers.parity import assert_parity, offset, random_images  # noqa: E402

nn, F = torch.nn, torch.nn.functional
SHAPE = (16, 16, 3)
WITHOUT_LINEAR_HEAD = ('MixingNet', 'Ensemble', 'Binary')


@pytest.mark.parametrize('name', [*zoo.ZOO, *zoo.PLAIN])
def test_architecture(name):
    module = zoo.randomised({**zoo.ZOO, **zoo.PLAIN}[name]())
    classifier = TorchClassifier(module, SHAPE)
    outputs = assert_parity(classifier, module, random_images((2, *SHAPE)), 1e-9)
    if name in WITHOUT_LINEAR_HEAD:
        assert outputs.features is None and outputs.kernel is None
        assert 'linear layer' in classifier.why_no_features
    else:
        assert classifier.why_no_features is None
        rest = offset(outputs)
        np.testing.assert_allclose(rest, np.broadcast_to(rest[:1], rest.shape), atol=1e-12)


# The networks of the reference material, from its description.
class Residual(nn.Module):
    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(inputs, filters, 3, stride, 1),
            nn.Conv2d(filters, filters, 3, 1, 1),
        )
        self.shortcut = nn.Sequential(*([nn.Conv2d(inputs, filters, 1, stride)] if stride > 1 else []))

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet4b(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1)
        self.layer1 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1))
        self.layer2 = nn.Sequential(Residual(32, 32, 2), Residual(32, 32, 1))
        self.linear1, self.linear2 = nn.Linear(512, 100), nn.Linear(100, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


def sequential(first, second, flat):
    return nn.Sequential(
        nn.Conv2d(3, first, 4, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


REFERENCE = {
    'cnn_a_adv4': ('cifar_cnn_a_adv4.model', lambda: sequential(16, 32, 2048)),
    'kw_base': ('cifar_base.pth', lambda: sequential(8, 16, 1024)),
    'resnet4b': ('resnet4b.pth', ResNet4b),
}


def reference_network(shared, name):
    file, build = REFERENCE[name]
    network, stored = build(), np.load(shared / 'checkpoints' / f'{name}.npz')
    state = torch.load(shared / 'checkpoints' / file, map_location='cpu', weights_only=True)
    state = state.get('state_dict', state)
    network.load_state_dict(state[0] if isinstance(state, list) else state)
    normalised = zoo.Normalised(network)
    normalised.mean, normalised.std = (torch.tensor(stored[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    return normalised.eval(), stored['expected_logits_first64']


@pytest.mark.parametrize('name', REFERENCE)
def test_reference_network_on_1000_images(shared, name):
    module, expected = reference_network(shared, name)
    with np.load(shared / 'data' / 'cifar10_test.npz') as data:
        images = data[next(k for k in data if data[k].ndim == 4)][:1000] / np.float64(255)

    def logits(dtype):
        with torch.no_grad():
            reference = module.to(getattr(torch, dtype))(
                torch.tensor(images.astype(dtype)).permute(0, 3, 1, 2)
            ).numpy()
        classifier = TorchClassifier(module)
        return classifier, jax.jit(classifier)(images.astype(dtype)).logits, reference

    for dtype, tolerance in (('float32', 1e-4), ('float64', 1e-9)):
        classifier, value, reference = logits(dtype)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * np.abs(reference).max())
        np.testing.assert_allclose(value[:64], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    outputs = assert_parity(classifier, module, images[:64], 1e-9)
    assert outputs.features.shape == (64, 100)
    np.testing.assert_allclose(offset(outputs), np.tile(offset(outputs)[:1], (64, 1)), atol=1e-12)


def test_float64_images_widen_a_float32_module():
    module = zoo.randomised(zoo.ImageNetStem()).float()
    images = random_images((2, *SHAPE))
    outputs = jax.jit(TorchClassifier(module, SHAPE))(jnp.asarray(images))
    assert outputs.logits.dtype == np.float64
    expected = module.double()(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(outputs.logits, expected.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_half_precision_weights_are_widened():
    module = zoo.randomised(zoo.ImageNetStem()).bfloat16()
    outputs = jax.jit(TorchClassifier(module, SHAPE))(random_images((2, *SHAPE), np.float32))
    expected = module.float()(torch.tensor(random_images((2, *SHAPE), np.float32)).permute(0, 3, 1, 2))
    assert outputs.logits.dtype == np.float32
    np.testing.assert_allclose(outputs.logits, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_one_graph_serves_all_batch_sizes_and_the_module_stays_as_it_is():
    module = zoo.randomised(zoo.ImageNetStem()).train()
    module.fc = nn.Sequential(nn.Dropout(), module.fc)
    classifier = jax.jit(TorchClassifier(nn.DataParallel(module), SHAPE))
    assert module.training and all(p.requires_grad for p in module.parameters())
    images = random_images((5, *SHAPE))
    together = classifier(jnp.asarray(images)).logits
    for rows in (1, 3):
        np.testing.assert_allclose(classifier(jnp.asarray(images[:rows])).logits, together[:rows], rtol=1e-12)
    expected = module.eval()(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(together, expected.detach().numpy(), rtol=1e-10)


class FixedBatch(nn.Module):
    """Its code depends on the number of images, which torch.export then has to know."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 10)

    def forward(self, x):
        parts = [self.linear(x[i : i + 1].flatten(1)) for i in range(int(x.shape[0]))]
        return torch.cat(parts)


def test_a_module_that_counts_its_images_is_traced_for_each_number():
    module = zoo.randomised(FixedBatch())
    classifier = TorchClassifier(module, (4, 4, 3))
    for rows in (2, 3):
        assert_parity(classifier, module, random_images((rows, 4, 4, 3)), 1e-9)


class BranchOnWeights(nn.Module):
    """Looks at a weight to choose its way, as some defenses do; torch.export cannot follow."""

    def __init__(self):
        super().__init__()
        self.alpha, self.threshold = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.tensor(0.0))
        self.bn, self.linear = nn.BatchNorm2d(3), nn.Linear(48, 10)

    def forward(self, x):
        if self.threshold == 0 and self.alpha.item() != 0:
            x = self.alpha * self.bn(x)
        return self.linear(x.flatten(1).detach() * x.flatten(1))


def test_a_branch_on_weights_is_taken():
    module = zoo.randomised(BranchOnWeights())
    classifier = TorchClassifier(module, (4, 4, 3))
    for rows in (2, 3):
        outputs = assert_parity(classifier, module, random_images((rows, 4, 4, 3)), 1e-9)
        assert outputs.features.shape == (rows, 48)
    other = zoo.randomised(BranchOnWeights())
    other.threshold.data.fill_(1)
    other_outputs = assert_parity(TorchClassifier(other, (4, 4, 3)), other, random_images((3, 4, 4, 3)), 1e-9)
    assert not np.allclose(outputs.logits, other_outputs.logits)


class BranchOnWeightsWith(BranchOnWeights):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.register_buffer('calls', torch.zeros(1))

    def forward(self, x):
        return super().forward(x) + self.call(self, x)


def count(module, x):
    module.calls += 1
    return 0


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda module, x: torch.rand(1), 'draws random numbers with aten.rand.default'),
        (count, 'changes its buffers when it is called: calls'),
        (lambda module, x: x.mean() if x.sum() > 0 else 0, 'free of branches on values of the images'),
        (lambda module, x: torch.lgamma(x).sum(), 'aten.lgamma.default at'),
    ],
)
def test_a_branch_on_weights_hides_nothing_else(call, message):
    with pytest.raises(InputError, match=message):
        TorchClassifier(BranchOnWeightsWith(call), (4, 4, 3))


def test_weights_are_captured_arrays():
    module = zoo.randomised(zoo.ImageNetStem())
    program = jax.make_jaxpr(TorchClassifier(module, SHAPE))(jnp.zeros((1, *SHAPE)))
    captured = sum(np.size(c) for c in program.consts)
    weights = sum(p.numel() for p in module.state_dict().values())
    assert 0.9 * weights < captured < 1.2 * weights


class Head(nn.Module):
    """A linear layer, with or without bias, and what may follow it."""

    def __init__(self, after, bias=True):
        super().__init__()
        self.linear, self.after = nn.Linear(12, 10, bias=bias), after
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 10))

    def forward(self, x):
        return self.after(self.linear(x.mean(3).flatten(1).tanh()), self.scale)


HEADS = {
    'bias': lambda g, s: g,
    'scale': lambda g, s: 3 * g / s,
    'scale on the right': lambda g, s: g * s * 0.1,
    'shift': lambda g, s: 1 - (g - s) + s,
    'alpha': lambda g, s: torch.sub(s, g, alpha=2),
    'negative': lambda g, s: -g,
    'reshaped': lambda g, s: g.view(-1, 10).clone(),
}


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', HEADS)
def test_the_last_linear_layer_is_found(name, bias):
    module = zoo.randomised(Head(HEADS[name], bias))
    classifier = TorchClassifier(module, (4, 4, 3))
    images = random_images((5, 4, 4, 3))
    outputs = assert_parity(classifier, module, images, 1e-9)
    features = torch.tensor(images).permute(0, 3, 1, 2).mean(3).flatten(1).tanh()
    np.testing.assert_allclose(outputs.features, features.numpy(), rtol=1e-12)
    rest = offset(outputs)
    np.testing.assert_allclose(rest, np.tile(rest[:1], (5, 1)), atol=1e-12)


NO_HEADS = {
    'softmax': (lambda g, s: g.softmax(1), 'aten._softmax.default'),
    'power': (lambda g, s: g**3, 'aten.pow.Tensor_Scalar'),
    'sum of two': (lambda g, s: g + g.relu(), 'aten.add.Tensor'),
    'own scale': (lambda g, s: g * g.norm(dim=1, keepdim=True), 'aten.mul.Tensor'),
    'quotient': (lambda g, s: 1 / (1 + g.exp()), 'aten.reciprocal.default'),
    'change of shape': (lambda g, s: g.view(-1, 2, 5).mean(1).repeat(1, 2), 'aten.repeat.default'),
}


@pytest.mark.parametrize('name', NO_HEADS)
def test_why_there_is_no_linear_layer_is_said(name):
    after, reason = NO_HEADS[name]
    module = zoo.randomised(Head(after))
    classifier = TorchClassifier(module, (4, 4, 3))
    outputs = assert_parity(classifier, module, random_images((3, 4, 4, 3)), 1e-9)
    assert outputs.features is None and outputs.kernel is None
    assert reason in classifier.why_no_features


class Calls(nn.Module):
    """Logits of a linear layer, and a call beside it."""

    def __init__(self, call):
        super().__init__()
        self.linear, self.call = nn.Linear(48, 10), call

    def forward(self, x):
        return self.linear(x.flatten(1) + self.call(x).sum())


class Special(nn.Module):
    def forward(self, x):
        return torch.lgamma(x) + torch.special.i0(x)


def test_operations_without_a_counterpart_are_listed_with_their_place():
    module = nn.Sequential(Calls(Special()), nn.Linear(10, 10))
    with pytest.raises(InputError, match='2 operation') as error:
        TorchClassifier(module, (4, 4, 3))
    lines = [line for line in str(error.value).splitlines() if line.startswith('  aten.')]
    assert [line.split()[0] for line in lines] == ['aten.i0.default', 'aten.lgamma.default']
    assert all('0.call (test_torch_graph.py, line' in line for line in lines)


@pytest.mark.parametrize(
    'draw',
    [
        torch.randn_like,
        lambda x: torch.rand(3, 4, 4),
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: x * torch.bernoulli(torch.full((4,), 0.5)),
    ],
    ids=['like the images', 'apart from the images', 'dropout', 'mask'],
)
def test_a_random_module_is_sent_to_randomised(draw):
    with pytest.raises(InputError, match=r'(?s)aten\..*random numbers.*si_jax\.Randomised'):
        TorchClassifier(Calls(draw), (4, 4, 3))


def test_a_branch_in_the_graph_is_refused():
    module = Calls(lambda x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,)))
    with pytest.raises(InputError, match=r'1 operation.*\n  cond at '):
        TorchClassifier(module, (4, 4, 3))


class Drawing(nn.Module):
    """Something of the host beside the images: a draw, or a counter."""

    def __init__(self, draw):
        super().__init__()
        self.linear, self.draw = nn.Linear(48, 10), draw

    def forward(self, x):
        return self.linear(torch.flatten((x - 0.5) * self.draw(), 1))


@pytest.mark.parametrize('kind', ['random', 'numpy', 'counter'])
def test_what_the_host_draws_is_refused_before_an_evaluation(kind):
    calls = itertools.count()
    draw = {
        'random': lambda: random.choice((1.0, -1.0)),
        'numpy': lambda: float(np.random.normal()),
        'counter': lambda: 1.0 if next(calls) < 3 else -1.0,
    }[kind]
    images, labels = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype(np.float32), np.arange(8)
    with pytest.raises(InputError, match='disagree by .*, as PyTorch runs the module.* also that of Python'):
        evaluate(Drawing(draw), images, labels, attacks='fgsm', eps=0.1)
    assert evaluate(Drawing(lambda: 1.0), images, labels, attacks='fgsm', eps=0.1).accuracy['clean'] <= 1


def test_a_factor_on_the_logits_hides_no_draw_of_the_host():
    images, labels = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype(np.float32), np.arange(8)
    scaled = with_logit_scale(Drawing(lambda: random.choice((1.0, -1.0))), 2.0)
    with pytest.raises(InputError, match='disagree by .*, as PyTorch runs the module'):
        evaluate(scaled, images, labels, attacks='fgsm', eps=0.1)


class Wrapped(nn.Module):
    """A linear network whose answer is put into something."""

    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(48, 10), wrap

    def forward(self, x):
        self.kept = self.linear(x.flatten(1))  # of the graph of autograd
        return self.wrap(self.kept)


@pytest.mark.parametrize(
    'wrap',
    [lambda z: {'logits': z}, lambda z: (z,), lambda z: z.bfloat16()],
    ids=['dict', 'tuple', 'bfloat16'],
)
def test_what_stands_around_the_logits_and_what_a_call_left_behind_do_no_harm(wrap):
    module = Wrapped(wrap).eval()
    images, labels = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype(np.float32), np.arange(8)
    module(torch.as_tensor(np.moveaxis(images, 3, 1)))
    result = evaluate(module, images, labels, attacks='fgsm', eps=0.1)
    with torch.no_grad():
        logits = module.linear(torch.as_tensor(np.moveaxis(images, 3, 1).copy()).flatten(1))
    assert result.accuracy['clean'] == float((logits.argmax(1).numpy() == labels).mean())


def test_torchscript_is_refused_with_what_to_give():
    with pytest.raises(InputError, match='is TorchScript.*give the torch.nn.Module'):
        TorchClassifier(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(48, 10))), (4, 4, 3))


def test_a_branch_on_values_is_refused():
    module = Calls(lambda x: x if x.sum() > 0 else -x)
    place = (
        r'at test_torch_graph\.py, line \d+ \(return self\.linear\(.*free of branches on values of the images'
    )
    with pytest.raises(InputError, match=f'Calls cannot be traced {place}'):
        TorchClassifier(module, (4, 4, 3))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 10)
        self.register_buffer('calls', torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.linear(x.flatten(1)) + self.calls


def test_a_module_that_changes_its_buffers_is_refused():
    with pytest.raises(InputError, match='changes its buffers when it is called: calls'):
        TorchClassifier(Counting(), (4, 4, 3))


@pytest.mark.parametrize(
    ('after', 'shape'),
    [
        (lambda g, s: (g, g + 1), '2 value'),
        (lambda g, s: g.sum(1), '1 value'),
        (lambda g, s: torch.stack([s, s]), 'depend on'),
    ],
)
def test_other_results_than_logits_are_refused(after, shape):
    with pytest.raises(InputError, match=shape):
        TorchClassifier(Head(after), (4, 4, 3))


def test_values_that_are_not_finite_are_named():
    module = zoo.WideResNet()
    with torch.no_grad():
        module.layers[0].conv1.weight[0, 0, 0, :2] = float('nan')
        module.bn.running_var[3] = float('inf')
    with pytest.raises(
        InputError, match=r'layers\.0\.conv1\.weight \(2 of 288 values\), bn\.running_var \(1 of 16'
    ):
        TorchClassifier(module, SHAPE)


def test_images_of_another_shape_are_refused():
    classifier = TorchClassifier(zoo.randomised(zoo.ImageNetStem()), SHAPE)
    with pytest.raises(
        InputError, match=r'images \[B, 16, 16, 3\], not .*\[2, 8, 8, 3\].*image_shape=\(8, 8, 3\)'
    ):
        classifier(jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(InputError, match=r'image_shape=\(3, 32\) is not \(H, W, C\)'):
        TorchClassifier(zoo.ImageNetStem(), (3, 32))
