"""Every ATen operation in the tables equals PyTorch's, in value and in its gradient."""

import jax
import numpy as np
import pytest

from si_jax.interop import aten

torch = pytest.importorskip('torch', reason="the operations are PyTorch's")

from si_jax.interop import torch_graph  # noqa: E402
from tests.helpers.parity import COMPILE  # noqa: E402

F = torch.nn.functional

INDEX = torch.tensor([2, 0, 2])
TABLE = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
WEIGHT = torch.linspace(-1, 1, 4 * 2 * 3 * 3, dtype=torch.float64).reshape(4, 2, 3, 3)


# Functions of images [B, 4, 6, 6]; what each is there for is the operation that it becomes.
CASES = {
    'abs': lambda x: (x - 0.5).abs(),
    'absolute maximum': lambda x: torch.linalg.vector_norm(x, float('inf'), dim=(1, 2)),
    'adaptive average pooling': lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    'adaptive maximum pooling': lambda x: F.adaptive_max_pool2d(x, (4, 2)),
    'product': lambda x: x[0, 0] @ x[0, 1],
    'addmm': lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2], beta=0.5, alpha=2),
    'amax': lambda x: torch.amax(x, (2, 3)) + torch.amax(x, 1, keepdim=True).sum((2, 3)),
    'amin': lambda x: torch.amin(x, 1),
    'any': lambda x: x * (x > 0.99).any(1, keepdim=True),
    'arange': lambda x: x * torch.arange(6) + torch.arange(1, 7) + torch.arange(0, 12, 2),
    'argmax': lambda x: x * x.argmax(1, keepdim=True) + x.flatten(1).argmax(),
    'atan2': lambda x: torch.atan2(x, 1 - x),
    'average pooling': lambda x: F.avg_pool2d(x, 2),
    'average pooling 1d': lambda x: F.avg_pool1d(x.flatten(2), 3, 2),
    'average pooling, ceil': lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    'average pooling, ceil at the edge': lambda x: F.avg_pool2d(x, 2, 3, 1, ceil_mode=True),
    'average pooling, divisor': lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    'average pooling, without padding': lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    'batch norm': lambda x: F.batch_norm(x, TABLE[:, 0], TABLE[:, 1] + 1, TABLE[:, 2], TABLE[:, 0]),
    'batch norm, bare': lambda x: F.batch_norm(x, TABLE[:, 0], TABLE[:, 1] + 1),
    'bicubic': lambda x: F.interpolate(x, size=(9, 4), mode='bicubic'),
    'bilinear': lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
    'bilinear, corners': lambda x: F.interpolate(x, size=(5, 13), mode='bilinear', align_corners=True),
    'bmm': lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    'cast': lambda x: x.double() * (x > 0.5).to(torch.float64),
    'cat': lambda x: torch.cat([x, x.relu(), TABLE.new_ones(x.shape[0], 1, 6, 6)], 1),
    'ceil': lambda x: x * torch.ceil(3 * x),
    'clamp': lambda x: x.clamp(0.25, 0.75) + x.clamp(min=0.5) + x.clamp(max=0.5),
    'convolution': lambda x: F.conv2d(x, WEIGHT.repeat(1, 2, 1, 1), TABLE[:, 0], stride=2, padding=1),
    'convolution, 1d': lambda x: F.conv1d(x.flatten(2), WEIGHT[:, :, 0].repeat(1, 2, 1), padding=1),
    'convolution, dilated': lambda x: F.conv2d(x, WEIGHT.repeat(1, 2, 1, 1), dilation=2),
    'convolution, grouped': lambda x: F.conv2d(x, WEIGHT, padding=1, groups=2),
    'convolution, oblong': lambda x: F.conv2d(x, WEIGHT.repeat(1, 2, 1, 1)[..., :2], padding=(2, 1)),
    'convolution, transposed': lambda x: F.conv_transpose2d(x, WEIGHT, TABLE[:2, 1], 2, 1, 1),
    'convolution, transposed and grouped': lambda x: F.conv_transpose2d(x, WEIGHT, None, 2, 1, 0, 2),
    'cosine': lambda x: torch.cos(x) + torch.sin(2 * x),
    'cumsum': lambda x: x.cumsum(2),
    'division': lambda x: x / (x + 1) + x * torch.div(x, 0.3, rounding_mode='floor'),
    'division, truncated': lambda x: x * torch.div(x - 0.5, 0.3, rounding_mode='trunc'),
    'dropout': lambda x: F.dropout(x, 0.5, training=False) + F.dropout2d(x, 0.5, training=False),
    'elu': lambda x: F.elu(x - 0.5, 0.7) + F.selu(x - 0.2),
    'embedding': lambda x: x * F.embedding((3.99 * x).long(), TABLE).sum(-1),
    'erf': lambda x: torch.erf(x),
    'exp': lambda x: torch.exp(x) + torch.expm1(x),
    'expand': lambda x: x[:, :1].expand(-1, 5, -1, -1),
    'flip': lambda x: x.flip(2, 3) * x,
    'floor': lambda x: x * torch.floor(3 * x),
    'full': lambda x: x + torch.full((6, 6), 2.0) * torch.full_like(x, 3) + torch.ones_like(x),
    'gather': lambda x: x.gather(1, (x * 3.99).long()),
    'gelu': lambda x: F.gelu(3 * x - 1),
    'gelu, tanh': lambda x: F.gelu(3 * x - 1, approximate='tanh'),
    'glu': lambda x: F.glu(x, 1),
    'group norm': lambda x: F.group_norm(x, 2, TABLE[:, 0], TABLE[:, 1]),
    'group norm, bare': lambda x: F.group_norm(x, 4),
    'hardswish': lambda x: F.hardswish(8 * x - 4) + F.hardsigmoid(8 * x - 4),
    'hardtanh': lambda x: F.hardtanh(4 * x - 2) + F.relu6(10 * x - 2),
    'index': lambda x: x[:, INDEX] * x[:, :, INDEX, INDEX][:, INDEX, :, None].sum((1, 2), keepdim=True),
    'index_select': lambda x: x.index_select(1, INDEX),
    'instance norm': lambda x: F.instance_norm(x, weight=TABLE[:, 0], bias=TABLE[:, 1]),
    'isinf': lambda x: torch.where(torch.isinf(x / 0) | torch.isnan(x), x, 0.0),
    'layer norm': lambda x: F.layer_norm(x, (6, 6)),
    'layer norm of channels': lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), TABLE[:, 0], TABLE[:, 1]),
    'leaky relu': lambda x: F.leaky_relu(x - 0.5, 0.2),
    'log': lambda x: torch.log(x + 1) + torch.log2(x + 1) + torch.log1p(x),
    'log_softmax': lambda x: F.log_softmax(x, 1),
    'logic': lambda x: x * ((x > 0.2) & (x <= 0.8) | ~(x < 0.9)) + x * (x >= 0.1).logical_and(x != 0.5),
    'logical_or': lambda x: x * (x > 0.9).logical_or(x == 0.5).logical_not(),
    'max of an axis': lambda x: x.max(1).values * x.max(2, keepdim=True).values[:, 0],
    'max pooling': lambda x: F.max_pool2d(x, 3, 2, 1),
    'max pooling 3d': lambda x: F.max_pool3d(x[:, None], 2),
    'max pooling, ceil': lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    'max pooling, dilated': lambda x: F.max_pool2d(x, 2, 1, 1, 2),
    'maximum': lambda x: torch.maximum(x, 1 - x) * torch.minimum(x, x * x),
    'mean': lambda x: (
        x.mean() + x.mean((2, 3)) + x.mean((-1, -2), keepdim=True).sum(3)[:, :, 0] + x.mean(1).sum()
    ),
    'min of an axis': lambda x: x.min(1).values,
    'mish': lambda x: F.mish(x) + F.softplus(x),
    'nearest': lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(12, 12)),
    'nearest, uneven': lambda x: F.interpolate(x, size=(4, 9)),
    'norm': lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True) + x.norm(3, dim=1, keepdim=True),
    'normalize': lambda x: F.normalize(x.flatten(1)),
    'pad': lambda x: F.pad(x, (1, 2, 0, 1)) + F.pad(x, (2, 1, 1, 0), value=1.0),
    'pad of channels': lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)) ** 2,
    'pad of rows': lambda x: F.pad(x.flatten(1), (-1, 3)) ** 2,
    'pixel shuffle': lambda x: F.pixel_shuffle(x, 2) * F.interpolate(x[:, :1], scale_factor=2),
    'pow': lambda x: x**2 + x**2.5 + 2**x + x**x + x.square(),
    'prelu': lambda x: F.prelu(x - 0.5, TABLE[:, 0]),
    'prod': lambda x: x.prod(1),
    'reciprocal': lambda x: torch.reciprocal(1 + x) + torch.rsqrt(1 + x) + torch.sqrt(1 + x),
    'reflection pad': lambda x: F.pad(x, (1, 2, 3, 0), mode='reflect'),
    'remainder': lambda x: torch.remainder(x, 0.3) + torch.fmod(x, 0.3),
    'repeat': lambda x: x.repeat(1, 2, 1, 3),
    'replication pad': lambda x: F.pad(x, (1, 2, 3, 0), mode='replicate'),
    'roll': lambda x: x.roll((1, 2), (2, 3)) * x,
    'round': lambda x: x * torch.round(3 * x) + x * torch.trunc(3 * x),
    'rsub': lambda x: 1 - x + torch.sub(x, x * x, alpha=2) + torch.add(x, x, alpha=3) + torch.rsub(x, 2),
    'scalar': lambda x: torch.where(x > 0.5, torch.tensor(0.0, dtype=x.dtype), x),
    'scaled dot-product attention': lambda x: F.scaled_dot_product_attention(x, x.relu(), x * x),
    'select_scatter': lambda x: x.select_scatter(x[:, 0] ** 2, 1, 2),
    'sigmoid': lambda x: torch.sigmoid(x) + torch.tanh(x) + F.silu(x) + F.softsign(x),
    'sign': lambda x: x * torch.sign(x - 0.5),
    'slice_scatter': lambda x: x.slice_scatter(x[:, :2] ** 2, 1, 1, 3),
    'softmax': lambda x: F.softmax(x, 1) + F.softmin(x, 2),
    'sorted': lambda x: (
        x.topk(2, 1).values.sum(1) - x.topk(3, 2, largest=False).values.sum((1, 2))[:, None, None]
    ),
    'split': lambda x: (
        x.split([1, 3], 1)[1] * x.chunk(2, 1)[0].sum(1, keepdim=True) + x.unbind(1)[2][:, None]
    ),
    'squeeze': lambda x: x[:, :1].squeeze() * x[:, :1].squeeze(1) + x[:, :1].unsqueeze(1).squeeze((1, 2)),
    'stack': lambda x: torch.stack([x, x * x], 2),
    'sum': lambda x: x.sum() + x.sum((2, 3)).sum(1) + x.sum(1, keepdim=True).sum((1, 2, 3)),
    'swin': lambda x: x.view(x.shape[0], 4, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 4),
    'var': lambda x: x / x.std((1, 2), keepdim=True) + x.var(1, unbiased=False, keepdim=True),
    'var and mean': lambda x: sum(torch.var_mean(x, (2, 3), keepdim=True)) * x,
    'where': lambda x: torch.where(x > 0.5, x, -x).neg(),
    'without gradient': lambda x: x.detach() * x,
}
NAMES = list(CASES)
# PyTorch's own derivative of these has constants in single precision.
ROUGH = ('hardswish',)
GROUPS = [NAMES[i : i + 16] for i in range(0, len(NAMES), 16)]
seen, covered = set(), set()


class Functions(torch.nn.Module):
    """Logits [1, K]: one weighted sum of all entries of the result of each function."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.register_buffer('one', torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        x = x * self.one
        results = [CASES[name](x).reshape(-1) for name in self.names]
        sums = [(torch.arange(y.numel(), dtype=y.dtype).sin() * y).sum() for y in results]
        return torch.stack(sums)[None]


@pytest.mark.parametrize('names', GROUPS, ids=lambda names: f'{names[0]} to {names[-1]}')
def test_operations_equal_pytorchs(names, monkeypatch):
    find = aten.find

    def spy(operation, overload):
        for table in aten.TABLES:
            full = f'{operation}.{overload}'
            seen.update({full if full in table else operation} & set(table))
        return find(operation, overload)

    monkeypatch.setattr(aten, 'find', spy)
    covered.add(names[0])
    module = Functions(names)
    classifier = torch_graph.TorchClassifier(module, (6, 6, 4))
    images = np.random.default_rng(0).uniform(size=(2, 6, 6, 4))
    both = jax.jit(
        lambda x: (classifier(x).logits[0], jax.jacrev(classifier)(x).logits[0]),
        compiler_options=COMPILE,
    )
    values, gradients = both(images)
    tensor = torch.tensor(images, requires_grad=True)
    expected = module(tensor.permute(0, 3, 1, 2))[0]
    for name, value, gradient, reference in zip(names, values, gradients, expected, strict=True):
        (reference_gradient,) = torch.autograd.grad(reference, tensor, retain_graph=True)
        np.testing.assert_allclose(value, reference.item(), rtol=1e-10, atol=1e-10, err_msg=name)
        tolerance = 1e-6 if name in ROUGH else 1e-8
        np.testing.assert_allclose(
            gradient, reference_gradient.numpy(), rtol=tolerance, atol=1e-10, err_msg=name
        )


def test_every_row_of_the_tables_is_used():
    if len(covered) < len(GROUPS):
        pytest.skip('needs the other tests of this file to have run')
    unused = {name for table in aten.TABLES for name in table} - seen
    assert not unused
