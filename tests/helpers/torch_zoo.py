"""The architecture classes of RobustBench's CIFAR leaderboards, written from their descriptions.

Not checked against the authors' code: DMPreActResNet, and which entries of the leaderboard a comment names.

Each is a function without arguments that returns a tiny network: images [B, 3, 16, 16] in [0, 1] -> logits
[B, 10]. What matters is that every kind of layer and of head is there, not the size. Missing is the neural
ODE of Kang et al. (2021): its solver takes steps that depend on values, which torch.export cannot trace.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.torch_references import Basic, Bottle, TorchPreActResNet, TorchResNet

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2471, 0.2435, 0.2616])


def conv(inputs, filters, size=3, stride=1, **options):
    return nn.Conv2d(inputs, filters, size, stride, size // 2, **{'bias': False, **options})


def pooled(x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Normalised(nn.Module):
    """Input normalisation as most entries have it: buffers within the network."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer('mean', MEAN.view(1, 3, 1, 1))
        self.register_buffer('std', STD.view(1, 3, 1, 1))

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


class WideBlock(nn.Module):
    """Pre-activation block of Zagoruyko and Komodakis (2016), with a choice of activation."""

    def __init__(self, inputs, filters, stride, activation=nn.ReLU, dropout=0.0, attention=None):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(filters)
        self.act1, self.act2 = activation(), activation()
        self.conv1, self.conv2 = conv(inputs, filters, 3, stride), conv(filters, filters)
        self.shortcut = conv(inputs, filters, 1, stride) if inputs != filters or stride > 1 else None
        self.attention = nn.Identity() if attention is None else attention(filters)
        self.dropout = dropout

    def forward(self, x):
        y = self.act1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = F.dropout(self.act2(self.bn2(self.conv1(y))), self.dropout, self.training)
        return self.attention(self.conv2(y)) + x


class WideResNet(nn.Module):
    def __init__(self, widths=(4, 8, 8, 16), blocks=(1, 2, 1), head=None, **options):
        super().__init__()
        self.stem, layers = conv(3, widths[0]), []
        for stage, count in enumerate(blocks):
            for i in range(count):
                inputs = widths[stage] if i == 0 else widths[stage + 1]
                layers.append(WideBlock(inputs, widths[stage + 1], 2 if stage and i == 0 else 1, **options))
        self.layers, self.bn = nn.Sequential(*layers), nn.BatchNorm2d(widths[-1])
        self.act = options.get('activation', nn.ReLU)()
        self.fc = nn.Linear(widths[-1], 10) if head is None else head(widths[-1])

    def forward(self, x):
        x = self.act(self.bn(self.layers(self.stem(x))))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).view(-1, x.shape[1]))


class DeepMindWideResNet(nn.Module):
    """Gowal et al. (2020) and all that build on it: SiLU, padding apart from the convolution, normalisation
    by plain tensors that are no buffers."""

    def __init__(self, widths=(4, 8, 16)):
        super().__init__()
        self.mean, self.std = MEAN.view(3, 1, 1), STD.view(3, 1, 1)
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        inputs, layers = 4, []
        for stage, filters in enumerate(widths):
            layers.append(WideBlock(inputs, filters, 2 if stage else 1, nn.SiLU))
            inputs = filters
        self.layers = nn.Sequential(*layers)
        self.bn, self.logits = nn.BatchNorm2d(inputs), nn.Linear(inputs, 10)

    def forward(self, x):
        if self.mean.device != x.device or self.mean.dtype != x.dtype:
            self.mean, self.std = self.mean.to(x), self.std.to(x)
        x = F.pad((x - self.mean) / self.std, (1, 1, 1, 1))
        x = F.silu(self.bn(self.layers(self.stem(x))))
        return self.logits(x.mean((2, 3)))


class ParametricSiLU(nn.Module):
    """PSSiLU of Dai et al. (2021): x * (sigmoid(|a| x) - |b|) / (1 - |b|), a and b learned."""

    def __init__(self):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        beta = self.beta.abs()
        return x * (torch.sigmoid(self.alpha.abs() * x) - beta) / (1 - beta)


class MeanSparse(nn.Module):
    """Amini et al. (2024): entries within a few deviations of their channel's mean become the mean."""

    def __init__(self, channels=8):
        super().__init__()
        self.register_buffer('mean', torch.linspace(-0.2, 0.2, channels).view(1, -1, 1, 1))
        self.register_buffer('var', torch.full((1, channels, 1, 1), 0.04))
        self.register_buffer('threshold', torch.tensor(1.0))

    def forward(self, x):
        if self.threshold == 0:
            return x
        bias = self.threshold * self.var.sqrt()
        return torch.where((x - self.mean).abs() < bias, self.mean, x)


class SqueezeExcitation(nn.Module):
    """Hu et al. (2018), as in Peng et al. (2023) and Huang et al. (2022)."""

    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        scale = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(scale)


class Res2Block(nn.Module):
    """The multi-scale pre-activation block of Huang et al. (2022): a chain of grouped parts."""

    def __init__(self, channels, scales=4):
        super().__init__()
        self.scales, part = scales, channels // scales
        self.bn, self.se = nn.BatchNorm2d(channels), SqueezeExcitation(channels)
        self.convs = nn.ModuleList(conv(part, part) for _ in range(scales - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(part) for _ in range(scales - 1))

    def forward(self, x):
        parts = torch.chunk(F.relu(self.bn(x)), self.scales, 1)
        results, last = [parts[0]], 0
        for part, layer, bn in zip(parts[1:], self.convs, self.bns, strict=True):
            last = layer(F.relu(bn(part + last)))
            results.append(last)
        return self.se(torch.cat(results, 1)) + x


class ResNeXtBlock(nn.Module):
    """Grouped convolutions: Xie et al. (2017), the AugMix entry."""

    def __init__(self, channels, groups=4):
        super().__init__()
        self.reduce, self.bn1 = conv(channels, channels, 1), nn.BatchNorm2d(channels)
        self.conv, self.bn2 = conv(channels, channels, groups=groups), nn.BatchNorm2d(channels)
        self.expand, self.bn3 = conv(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.bn2(self.conv(F.relu(self.bn1(self.reduce(x))))), inplace=True)
        return F.relu(x + self.bn3(self.expand(y)), inplace=True)


class SplitAttention(nn.Module):
    """ResNeSt (Zhang et al., 2020) with radix 2, the Sehwag et al. (2021) entry."""

    def __init__(self, channels, radix=2, cardinality=2):
        super().__init__()
        self.radix, self.cardinality, self.channels = radix, cardinality, channels
        self.conv = conv(channels, channels * radix, groups=cardinality * radix)
        self.fc1 = nn.Conv2d(channels, 8, 1, groups=cardinality)
        self.fc2 = nn.Conv2d(8, channels * radix, 1, groups=cardinality)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x):
        batch = x.shape[0]
        parts = torch.split(F.relu(self.conv(x)), self.channels, 1)
        gap = F.adaptive_avg_pool2d(sum(parts), 1)
        weight = self.fc2(F.relu(self.fc1(gap))).view(batch, self.cardinality, self.radix, -1)
        weight = F.softmax(weight.transpose(1, 2), 1).reshape(batch, -1, 1, 1)
        out = sum(w * p for w, p in zip(torch.split(weight, self.channels, 1), parts, strict=True))
        return self.pool(out.contiguous() + x)


class Hypersphere(nn.Module):
    """Pang et al. (2020, "Boosting"): cosine of features and weights, times 15."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, features))

    def forward(self, x):
        return 15 * F.linear(F.normalize(x), F.normalize(self.weight))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation of BiT (Kolesnikov et al., 2020)."""

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BigTransfer(nn.Module):
    """The accurate half of Bai et al. (2023, 2024): enlarged images, max pooling, group normalisation."""

    def __init__(self):
        super().__init__()
        self.stem = StandardisedConv(3, 8, 7, 2, 3, bias=False)
        self.gn1, self.conv1 = nn.GroupNorm(4, 8), StandardisedConv(8, 8, 3, 1, 1, bias=False)
        self.gn2, self.head = nn.GroupNorm(4, 8), nn.Conv2d(8, 10, 1)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        x = F.max_pool2d(F.pad(self.stem(x), (1, 1, 1, 1)), 3, 2)
        x = x + self.conv1(F.relu(self.gn1(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.gn2(x)), 1))[..., 0, 0]


class Mixed(nn.Module):
    """Bai et al. (2023, 2024): log of a mixture of an accurate and a sharpened robust network."""

    def __init__(self):
        super().__init__()
        self.accurate, self.robust = BigTransfer(), DeepMindWideResNet()
        self.gate = nn.Linear(20, 1)

    def forward(self, x):
        accurate, robust = self.accurate(x), self.robust(x)
        sharpened = F.relu(F.layer_norm(robust, [10]) + 0.2) ** 3
        alpha = torch.sigmoid(self.gate(torch.cat([accurate, robust], 1)))
        return torch.log((1 - alpha) * F.softmax(accurate, 1) + alpha * F.softmax(sharpened, 1))


class Ensemble(nn.Module):
    """Chen et al. (2020) and Diffenderfer et al. (2021): the mean of the members' probabilities."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return torch.stack([F.softmax(member(x), 1) for member in self.members]).mean(0)


class BinaryConv(nn.Module):
    """Diffenderfer and Kailkhura (2021): signs of the weights with large scores, times their mean size."""

    def __init__(self, inputs, filters):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(filters, inputs, 3, 3))
        self.scores = nn.Parameter(torch.rand(filters, inputs, 3, 3))

    def forward(self, x):
        mask = (self.scores > 0.5).to(self.weight.dtype)
        alpha = (mask * self.weight).abs().sum() / mask.sum()
        return F.conv2d(x, alpha * mask * torch.sign(self.weight), padding=1)


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = BinaryConv(3, 8), nn.BatchNorm2d(8, affine=False)
        self.conv2, self.bn2 = BinaryConv(8, 8), nn.BatchNorm2d(8, affine=False)
        self.linear = nn.Conv2d(8, 10, 1, bias=False)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, 16)).flatten(1)


class CrossCovarianceBlock(nn.Module):
    """XCiT (El-Nouby et al., 2021), the Debenedetti et al. (2022) entries: attention between channels,
    depthwise convolutions between patches, layer scale."""

    def __init__(self, width=16, heads=4, side=4):
        super().__init__()
        self.heads, self.side = heads, side
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.local1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.bn, self.local2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.gammas = nn.Parameter(torch.rand(3, width))

    def forward(self, x):
        batch, patches, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 4, 1)
        attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        y = (attention.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(batch, patches, width)
        x = x + self.gammas[0] * self.project(y)
        y = self.norm2(x).permute(0, 2, 1).reshape(batch, width, self.side, self.side)
        y = self.local2(self.bn(F.gelu(self.local1(y))))
        x = x + self.gammas[1] * y.flatten(2).transpose(1, 2)
        return x + self.gammas[2] * self.mlp(self.norm3(x))


class CrossCovarianceTransformer(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Sequential(conv(3, 8, 3, 2), nn.BatchNorm2d(8), nn.GELU(), conv(8, width, 3, 2))
        self.position = nn.Conv2d(8, width, 1)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.block = CrossCovarianceBlock(width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x)
        batch, _, height, wide = x.shape
        # Sines of the row and of the column, in channels of their own.
        row = torch.ones(batch, height, wide, dtype=x.dtype).cumsum(1)
        rates = 10 ** (torch.arange(2, dtype=x.dtype) / 2)
        waves = [
            f(axis[..., None] / rates) for axis in (row, row.transpose(1, 2)) for f in (torch.sin, torch.cos)
        ]
        x = x + self.position(torch.cat(waves, 3).permute(0, 3, 1, 2))
        x = self.block(x.flatten(2).transpose(1, 2))
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        token, _ = self.attend(x[:, :1], x, x)
        return self.head(self.norm(token + x[:, :1])[:, 0])


class DeepMindPreActBlock(nn.Module):
    """The small network of Rebuffi et al. (2021): the shortcut takes the activated input."""

    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(filters)
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, bias=False)
        self.conv2 = conv(filters, filters)
        self.shortcut = conv(inputs, filters, 1, stride) if inputs != filters or stride > 1 else None

    def forward(self, x):
        y = F.silu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.silu(self.bn2(self.conv1(F.pad(y, (1, 1, 1, 1)))))) + x


class WithForward(nn.Module):
    """One of the named architectures, whose references give features alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.linear(self.network.features(x))


class ConvStem(nn.Module):
    """Singh et al. (2023): a stem of convolutions before ConvNeXt's blocks, layer norm of channels."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 4, 3, 2, bias=True), conv(4, channels, 3, 2, bias=True)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(channels)
        self.blocks = nn.Sequential(ConvNeXtBlock(channels), ConvNeXtBlock(channels))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    def forward(self, x):
        for layer, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = F.gelu(norm(layer(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.head(self.norm(self.blocks(x).mean((-2, -1))))


def _sequence(*blocks, channels=8):
    return nn.Sequential(
        conv(3, channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


# Class -> network. A comment names entries whose class it is.
ZOO = {
    # Zhang2019Theoretically, Carmon2019Unlabeled, Sehwag2020Hydra, Wu2020Adversarial and many more
    'WideResNet': WideResNet,
    # Sitawarin2020SAT, Chen2020Efficient, Rony2019Decoupling: with normalisation, with dropout
    'WideResNet, normalised': lambda: Normalised(WideResNet(dropout=0.3)),
    # Huang2021Exploring: another width and depth for each stage
    'RobustWideResNet': lambda: WideResNet(widths=(4, 12, 10, 6), blocks=(2, 3, 1)),
    # Gowal2020Uncovering, Rebuffi2021Fixing, Wang2023Better, Cui2023Decoupled, Bartoldson2024Adversarial
    'DMWideResNet': DeepMindWideResNet,
    # Pang2020Boosting
    'BoostingWideResNet': lambda: WideResNet(head=Hypersphere),
    # Dai2021Parameterizing
    'PAF_WideResNet': lambda: WideResNet(activation=ParametricSiLU),
    # Amini2024MeanSparse
    'MeanSparse': lambda: _sequence(ResNeXtBlock(8), MeanSparse()),
    # Peng2023Robust
    'RaWideResNet': lambda: Normalised(WideResNet(activation=nn.SiLU, attention=SqueezeExcitation)),
    # Huang2022Revisiting
    'RobustResNet': lambda: _sequence(Res2Block(8), Res2Block(8)),
    # Engstrom2019Robustness, Addepalli2022Efficient, Sehwag2021Proxy_R18, Atzmon2019Controlling
    'ResNet': lambda: Normalised(WithForward(TorchResNet(Basic, (1, 1, 1, 1), 4))),
    'ResNet, bottleneck': lambda: Normalised(WithForward(TorchResNet(Bottle, (1, 1, 1, 1), 2))),
    # Wong2020Fast, Andriushchenko2020Understanding
    'PreActResNet': lambda: Normalised(WithForward(TorchPreActResNet(4, raw_shortcut=True, final=False))),
    'PreActResNet, final norm': lambda: WithForward(TorchPreActResNet(4, raw_shortcut=False, final=True)),
    # Rebuffi2021Fixing_R18, Rade2021Helper_R18, Gowal2021Improving_R18
    'DMPreActResNet': lambda: Normalised(
        _sequence(DeepMindPreActBlock(8, 8, 1), DeepMindPreActBlock(8, 8, 2), nn.BatchNorm2d(8), nn.SiLU())
    ),
    # The threshold of Amini2024MeanSparse before the activations of a wide network
    'MeanSparse, WideResNet': lambda: WideResNet(activation=lambda: nn.Sequential(MeanSparse(1), nn.SiLU())),
    # Hendrycks2020AugMix
    'ResNeXt': lambda: Normalised(_sequence(ResNeXtBlock(8), ResNeXtBlock(8))),
    # Sehwag2021Proxy
    'ResNeSt': lambda: _sequence(SplitAttention(8), SplitAttention(8)),
    # Bai2023Improving, Bai2024MixedNUTS: the mixture itself
    'MixingNet': Mixed,
    # Chen2020Adversarial, Diffenderfer2021Winning
    'Ensemble': lambda: Ensemble(WideResNet(), Normalised(_sequence(ResNeXtBlock(8)))),
    # Diffenderfer2021Winning_Binary
    'Binary': Binary,
    # Debenedetti2022Light
    'XCiT': CrossCovarianceTransformer,
}


class TransformerBlock(nn.Module):
    """A vision transformer of torch.nn's own layers."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 32, activation='gelu', batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


class ImageNetStem(nn.Module):
    """A residual network with a wide stem and max pooling, as for large images."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.pool = conv(3, 8, 7, 2), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.block, self.fc = ResNeXtBlock(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(pooled(self.block(self.pool(F.relu(self.bn(self.stem(x)))))))


class ConvNeXtBlock(nn.Module):
    """Liu et al. (2022): depthwise 7 x 7, layer normalisation of channels, GELU."""

    def __init__(self, channels=8):
        super().__init__()
        self.depthwise, self.norm = conv(channels, channels, 7, groups=channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 32), nn.GELU(), nn.Linear(32, channels))

    def forward(self, x):
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


PLAIN = {
    'transformer': TransformerBlock,
    'max pooling': ImageNetStem,
    'GELU and layer norm': lambda: _sequence(ConvNeXtBlock(), ConvNeXtBlock()),
    # Singh et al. (2023), of ImageNet's leaderboard
    'convolutional stem': ConvStem,
    'group norm': lambda: _sequence(nn.GroupNorm(2, 8), nn.GELU(), conv(8, 8), nn.GroupNorm(8, 8), nn.ReLU()),
}


def randomised(network, seed=0):
    """The network in float64 and evaluation mode, with statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if name.endswith('running_var'):
            value.data.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith('running_mean') or (value.ndim == 1 and name.endswith('bias')):
            value.data.normal_(0, 0.2, generator=generator)
        elif value.ndim > 1 and 'weight' in name:
            value.data.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return network.double().eval()
