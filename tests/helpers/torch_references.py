"""The named architectures in PyTorch, written from the published layouts.

`si_jax.models` names the repositories. The parameter names are those of the published checkpoints.
"""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the reference networks are written in PyTorch')
nn, relu = torch.nn, torch.relu


def conv3(inputs, filters, stride=1):
    return nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)


def conv1(inputs, filters, stride=1):
    return nn.Conv2d(inputs, filters, 1, stride, bias=False)


class Basic(nn.Module):
    expansion, gat = 1, False

    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, filters, stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv3(filters, filters), nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(conv1(inputs, filters, stride), nn.BatchNorm2d(filters))

    def forward(self, x):
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu((relu(y) if self.gat else y) + self.shortcut(x))


class GatBasic(Basic):
    gat = True


class Bottle(nn.Module):
    expansion = 4

    def __init__(self, inputs, filters, stride):
        super().__init__()
        out = 4 * filters
        self.conv1, self.bn1 = conv1(inputs, filters), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv3(filters, filters, stride), nn.BatchNorm2d(filters)
        self.conv3, self.bn3 = conv1(filters, out), nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != out:
            self.shortcut = nn.Sequential(conv1(inputs, out, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        y = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class TorchResNet(nn.Module):
    def __init__(self, block, counts, width):
        super().__init__()
        self.conv1, self.bn1 = conv3(3, width), nn.BatchNorm2d(width)
        inputs = width
        for k, count in enumerate(counts, start=1):
            filters, blocks = width * 2 ** (k - 1), []
            for i in range(count):
                blocks.append(block(inputs, filters, 2 if k > 1 and i == 0 else 1))
                inputs = filters * block.expansion
            setattr(self, f'layer{k}', nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, 10)

    def features(self, x):
        x = relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class ImageNetResNet50(TorchResNet):
    def __init__(self, width):
        super().__init__(Bottle, (3, 4, 6, 3), width)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def features(self, x):
        x = self.maxpool(relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class PreAct(nn.Module):
    def __init__(self, inputs, filters, stride, raw_shortcut):
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, filters, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(filters), conv3(filters, filters)
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(conv1(inputs, filters, stride))

    def forward(self, x):
        o = relu(self.bn1(x))
        shortcut = self.shortcut(x if self.raw_shortcut else o) if hasattr(self, 'shortcut') else x
        return self.conv2(relu(self.bn2(self.conv1(o)))) + shortcut


class TorchPreActResNet(nn.Module):
    def __init__(self, width, raw_shortcut, final):
        super().__init__()
        self.conv1 = conv3(3, width)
        inputs = width
        for k in (1, 2, 3, 4):
            filters = width * 2 ** (k - 1)
            first = PreAct(inputs, filters, 1 if k == 1 else 2, raw_shortcut)
            setattr(self, f'layer{k}', nn.Sequential(first, PreAct(filters, filters, 1, raw_shortcut)))
            inputs = filters
        if final:
            self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, 10)

    def features(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return (relu(self.bn(x)) if hasattr(self, 'bn') else x).mean((2, 3))


class Wide(nn.Module):
    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, filters, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(filters), conv3(filters, filters)
        self.convShortcut = None if inputs == filters else conv1(inputs, filters, stride)

    def forward(self, x):
        a = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(a))))
        return y + (x if self.convShortcut is None else self.convShortcut(a))


class WideStage(nn.Module):
    def __init__(self, inputs, filters, stride, count):
        super().__init__()
        blocks = [Wide(filters if i else inputs, filters, 1 if i else stride) for i in range(count)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class TorchWideResNet(nn.Module):
    def __init__(self, depth, widen, base):
        super().__init__()
        count, widths = (depth - 4) // 6, [base, base * widen, 2 * base * widen, 4 * base * widen]
        self.conv1 = conv3(3, base)
        self.block1 = WideStage(widths[0], widths[1], 1, count)
        self.block2 = WideStage(widths[1], widths[2], 2, count)
        self.block3 = WideStage(widths[2], widths[3], 2, count)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], 10)

    @property
    def linear(self):
        return self.fc

    def features(self, x):
        return relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x)))))).mean((2, 3))


class TorchSmallCNN(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, 2, 1)
        self.hidden, self.linear = (
            nn.Linear(4 * width * (size // 4) ** 2, 8 * width),
            nn.Linear(8 * width, 10),
        )

    def features(self, x):
        x = relu(self.conv3(relu(self.conv2(relu(self.conv1(x))))))
        return relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1)))


# Name -> (arch, options of `create`, reference). Images of 12 x 12 become 6, 3 and 2: even and odd sizes.
NETWORKS = {
    'resnet18': ('resnet18', {'width': 4}, lambda: TorchResNet(Basic, (2, 2, 2, 2), 4)),
    'resnet18-gat': ('resnet18', {'width': 4, 'variant': 'gat'}, lambda: TorchResNet(GatBasic, (2,) * 4, 4)),
    'resnet50': ('resnet50', {'width': 2}, lambda: TorchResNet(Bottle, (3, 4, 6, 3), 2)),
    'bag_of_tricks': (
        'preact_resnet18',
        {'width': 4, 'variant': 'bag_of_tricks'},
        lambda: TorchPreActResNet(4, raw_shortcut=False, final=True),
    ),
    'fast_at': (
        'preact_resnet18',
        {'width': 4, 'variant': 'fast_at'},
        lambda: TorchPreActResNet(4, raw_shortcut=True, final=True),
    ),
    'fast_at_2019': (
        'preact_resnet18',
        {'width': 4, 'variant': 'fast_at_2019'},
        lambda: TorchPreActResNet(4, raw_shortcut=True, final=False),
    ),
    'gradalign': (
        'preact_resnet18',
        {'width': 4, 'variant': 'gradalign'},
        lambda: TorchPreActResNet(4, raw_shortcut=True, final=False),
    ),
    'wrn_16_2': ('wrn_16_2', {'width': 4}, lambda: TorchWideResNet(16, 2, 4)),
    'wrn_10_1': ('wrn_10_1', {'width': 4}, lambda: TorchWideResNet(10, 1, 4)),
    'small_cnn': ('small_cnn', {'width': 4}, lambda: TorchSmallCNN(4, 12)),
}


def randomised(net):
    """The network in float64 with random weights, biases, BN parameters and BN statistics."""
    rng = np.random.default_rng(0)
    net = net.double()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.dim() > 1:
                new = rng.normal(size=value.shape) * (2 / value[0].numel()) ** 0.5
            elif name.endswith(('var', 'weight')):
                new = rng.uniform(0.5, 1.5, value.shape)
            else:
                new = rng.normal(0, 0.3, value.shape)
            value.copy_(torch.tensor(new))
    return net
